"""The demo: parses a whole source tree, one task a file, and kills a child in the middle of a run.

`conveyor demo` runs it on a server of its own. It is what a user would write: an app, a task, a
worker (`conveyor -A conveyor.demo worker --burst`), and the results as they come.

Each run reports its pid, by which one is caught in the act: its child is stopped, the record is
read again, and only if the run is still under way then is the child killed.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from rich.progress import Progress

from conveyor import (
    Context,
    Conveyor,
    ConveyorError,
    TaskFailed,
    TaskRecord,
    TaskResult,
    TaskStatus,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

# What it shows needs these, whatever the environment says.
app = Conveyor("demo", error_retry_limit=0, stall_retry_limit=3, remove_on_success=False)

#: Seconds in which a worker settles what a child had sent it when the child was stopped.
SETTLED = 0.1
#: Seconds in which the last results are here once the worker has ended.
LAST_WORDS = 10.0
#: Seconds between looks at whether a run has begun.
LOOK = 0.002


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in a source file, and how many seconds it took to find out."""

    functions: int
    classes: int
    seconds: float = field(compare=False)


#: Or the name of the exception that parsing it raised.
Outcome: TypeAlias = Counts | str


@dataclass(frozen=True, slots=True)
class Kill:
    """A task whose child was killed, and when."""

    task: TaskResult[Counts]
    moment: datetime


@dataclass(frozen=True, slots=True)
class Story:
    """How it went: what came of each task, its record, the kill, and the seconds it all took."""

    outcomes: Sequence[Outcome]
    records: Sequence[TaskRecord]
    kill: Kill | None
    seconds: float


@app.task(bind=True)
def parse(ctx: Context, path: Path) -> Counts:
    """Counts a file's functions and classes, once it has said which process does."""
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
    """A tree's Python files without installed packages; the largest in the middle, for the kill."""
    files = [
        path
        for path in directory.rglob("*.py")
        if path.is_file() and "site-packages" not in path.relative_to(directory).parts
    ]
    files.sort(key=lambda path: (path.stat().st_size, path))
    return files[::2] + files[1::2][::-1]


async def parse_all(files: Sequence[Path], children: int, kill: bool, console: Console) -> Story:
    """Sends every file, has a worker work until the queue is empty, and follows the results."""
    worker_of = ("-P", "-m", "conveyor", "-A", "conveyor.demo", "worker")
    command = (*worker_of, "--burst", "-c", str(children))
    with tempfile.TemporaryFile() as log:
        async with app:
            began = time.perf_counter()
            tasks = await parse.amap([(path,) for path in files])
            worker = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=log)
            victims = tasks[len(tasks) // 2 :] if kill else []
            work = asyncio.gather(follow(tasks, console), kill_a_run(victims, console))
            try:
                if await worker.wait():
                    log.seek(0)
                    said = log.read().decode().rstrip().rpartition("\n")[2]
                    raise ConveyorError(f"the worker failed, and said last: {said}")
                await asyncio.wait([work], timeout=LAST_WORDS)
                if not work.done():
                    raise ConveyorError("the worker has ended, but not all of its tasks have")
                outcomes, killed = work.result()
                seconds = time.perf_counter() - began
                records = await asyncio.gather(*(task.atask() for task in tasks))
                return Story(outcomes, [each for each in records if each], killed, seconds)
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                if worker.returncode is None:
                    worker.terminate()
                    await worker.wait()


async def follow(tasks: Sequence[TaskResult[Counts]], console: Console) -> list[Outcome]:
    """Waits for all tasks; a bar shows the results as they come."""

    async def outcome(task: TaskResult[Counts]) -> Outcome:
        try:
            return await task
        except TaskFailed as error:
            return str(error.record.error).partition(":")[0]
        finally:
            progress.advance(bar)

    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("parsing", total=len(tasks))
        return await asyncio.gather(*map(outcome, tasks))


async def kill_a_run(tasks: Sequence[TaskResult[Counts]], console: Console) -> Kill | None:
    """Kills the child of the first of these tasks that is caught in the act; None: none was."""
    for task in tasks:
        while (record := await task.atask()) and not record.status.ended:
            if not is_running(record):
                await asyncio.sleep(LOOK)
                continue
            pid = record.data
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(SETTLED)
            if is_running(await task.atask()):
                killed = Kill(task, datetime.now(UTC))
                os.kill(pid, signal.SIGKILL)
                console.print(f"killed child {pid} (SIGKILL) while it parsed {record.args[0].name}")
                return killed
            os.kill(pid, signal.SIGCONT)
    return None


def is_running(record: TaskRecord | None) -> bool:
    """Whether the task has said by whom it is being run."""
    return record is not None and record.status is TaskStatus.PROCESSING and record.data is not None
