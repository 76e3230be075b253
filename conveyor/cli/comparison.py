"""The demo beside a plain loop: each file the same, and only the killed run repeated."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from conveyor.demo import Counts, Kill, Outcome, Story, app, count, parse_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from conveyor.records import TaskRecord


def compare(files: Sequence[Path], *, children: int, kill: bool, console: Console) -> bool:
    """Parses the files as tasks, then in a plain loop; prints both, and returns whether they agree.

    Raises:
        BrokerUnavailable: There is no server.
        ConveyorError: The worker failed.
    """
    console.print(f"{len(files):,} files, {children} children, {app.client.broker.server.address}")
    story = asyncio.run(parse_all(files, children, kill, console))
    console.print("now the same in a plain loop, to compare")
    began = time.perf_counter()
    expected = [plain_outcome(path) for path in files]
    console.print(report(files, story, time.perf_counter() - began))
    problems = [
        f"{path}: {ours}, but the plain loop has {theirs}"
        for path, ours, theirs in zip(files, story.outcomes, expected, strict=True)
        if ours != theirs
    ]
    repeated = {record.id: record.stall_retries for record in story.records if record.stall_retries}
    if repeated != ({story.kill.task.id: 1} if story.kill else {}):
        problems.append(f"not just the run that was killed was repeated (id, times): {repeated}")
    if kill and not story.kill:
        problems.append(
            "no run was caught in the act, all were too short: --no-kill, or more files"
        )
    console.print("\n".join(problems) or "The same: every file was counted, and counted once.")
    return not problems


def plain_outcome(path: Path) -> Outcome:
    """What comes of a file without any queue."""
    try:
        return count(path)
    except Exception as error:
        return type(error).__qualname__


def report(files: Sequence[Path], story: Story, loop_seconds: float) -> Table:
    """The figures."""
    failures = Counter(each for each in story.outcomes if isinstance(each, str))
    counts = {
        path: each
        for path, each in zip(files, story.outcomes, strict=True)
        if isinstance(each, Counts)
    }
    slowest = sorted(counts, key=lambda path: -counts[path].seconds)[:3]
    rows = {
        "files": f"{len(files):,}",
        "functions": f"{sum(each.functions for each in counts.values()):,}",
        "classes": f"{sum(each.classes for each in counts.values()):,}",
        "failed": ", ".join(f"{name} {times}" for name, times in failures.items()) or "none",
        "slowest": ", ".join(
            f"{path.name} {counts[path].seconds * 1000:.0f} ms" for path in slowest
        ),
        "tasks/s": f"{len(files) / story.seconds:,.0f}, in {story.seconds:.1f} s",
        "plain loop": f"{len(files) / loop_seconds:,.0f}/s, in {loop_seconds:.1f} s",
        "killed run": recovery(story.kill, story.records) if story.kill else "none",
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def recovery(kill: Kill, records: Sequence[TaskRecord]) -> str:
    """How long after its kill the run was queued again, and begun again."""
    record = next(record for record in records if record.id == kill.task.id)
    lost, repeated, *_ = record.attempts
    queued = (lost.ended_at - kill.moment).total_seconds() * 1000
    begun = (repeated.started_at - kill.moment).total_seconds() * 1000
    return f"queued again after {queued:.0f} ms, begun again after {begun:.0f} ms"
