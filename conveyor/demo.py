"""The demo: parses a whole source tree, one task a file, and kills a child in the middle of a run.

`conveyor demo` runs it, and it is written as a user would write it. The server is an embedded one in a
directory of its own; the worker is `conveyor -A conveyor.demo worker`. Each run reports its pid, by
which a run is caught in the act: its child is stopped, the record is read once more, and only if the run
is still under way then is the child killed. In the end exactly that run was repeated, and every file's
outcome is what a plain loop in this process finds.
"""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress
from rich.table import Table

from conveyor import Context, Conveyor, ConveyorError, TaskFailed, TaskRecord, TaskResult, TaskStatus
from conveyor.broker import embedded

if TYPE_CHECKING:
    from rich.console import Console

app = Conveyor("demo")

#: Seconds in which a worker has certainly settled what a child sent it before the child was stopped.
SETTLED = 0.1


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in a source file; `seconds` is what finding out took."""

    functions: int
    classes: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class Kill:
    """A child that was killed, when, and the task that it was running."""

    pid: int
    moment: datetime
    result: TaskResult[Counts]


@app.task(bind=True)
def parse(ctx: Context, path: Path) -> Counts:
    """Counts a file's functions and classes, after it has said which process does."""
    ctx.update(os.getpid())
    return count(path)


def count(path: Path) -> Counts:
    """Counts a file's functions and classes; raises what parsing it raises."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files have old habits
        nodes = list(ast.walk(ast.parse(path.read_bytes(), path.name)))
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    return Counts(functions, classes, time.perf_counter() - began)


def source_files(directory: Path) -> list[Path]:
    """A tree's Python files without installed packages, the largest in the middle."""
    files = [
        path
        for path in directory.rglob("*.py")
        if path.is_file() and "site-packages" not in path.relative_to(directory).parts
    ]
    files.sort(key=lambda path: (path.stat().st_size, path))
    return files[::2] + files[1::2][::-1]


def run(files: Sequence[Path], *, children: int, kill: bool, console: Console) -> bool:
    """Parses the files as tasks, then in a loop; prints how it went and returns whether all is well.

    Raises:
        BrokerUnavailable: There is no server to embed.
        ConveyorError: The worker ended.
    """
    with private_server() as home:
        console.print(f"{len(files):,} files, {children} children, a Valkey of its own in {home}")
        began = time.perf_counter()
        outcomes, records, killed = asyncio.run(parse_all(files, children, kill, home, console))
        seconds = time.perf_counter() - began
    console.print("now the same in a plain loop, to compare …")
    began = time.perf_counter()
    expected = {path: outcome_of(lambda path=path: count(path)) for path in files}
    loop_seconds = time.perf_counter() - began
    console.print(report(outcomes, records, killed, seconds, loop_seconds))
    wrong = [path for path in files if outcomes.get(path) != expected[path]]
    stalled = {record.id: record.stall_retries for record in records if record.stall_retries}
    for path in wrong:
        console.print(f"WRONG: {path}: {outcomes.get(path)}, but the loop has {expected[path]}")
    if stalled != ({killed.result.id: 1} if killed else {}):
        console.print(f"WRONG: repeated after a stall (id, times): {stalled}")
        return False
    if kill and not killed:
        console.print("no run lasted long enough to be killed in the act: try more files, or --no-kill")
        return False
    return not wrong


@contextmanager
def private_server() -> Iterator[Path]:
    """A directory for an embedded server, to which the app then connects; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="conveyor-demo-") as name:
        os.environ["CONVEYOR_BROKER"] = f"embedded://{name}"
        try:
            yield Path(name)
        finally:
            embedded.stop(Path(name))
