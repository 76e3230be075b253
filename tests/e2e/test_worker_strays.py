"""What goes wrong beside runs, or where outcomes are found and sent: every task still ends."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from servers import wait_until
from workers import Project

from conveyor import Conveyor, TaskFailed, TaskResult, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server
    from workers import RunningWorker

SOON = 30.0

SOURCE = """
import asyncio, dataclasses, errno, math, os, resource, sys, time
from conveyor import Conveyor, Plugin, Retry

if "POLICY" in os.environ:
    import uvloop
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

class Noting(Plugin):
    def on_after_task_error(self, task, error):
        with open("notes", "a") as file:
            file.write(f"{task.name} {task.enqueue_after.year}\\n")

app = Conveyor("NAME", plugins=[Noting()] if "PLUGIN" in os.environ else [])
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
KINDS = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}

def give_up(record, error):
    raise SystemExit("no backoff")

def never(record, error):
    return math.inf

@dataclasses.dataclass
class Hostile:
    x: int = 1
    def __getattribute__(self, name):
        if name == "x":
            raise SystemExit(9)
        return object.__getattribute__(self, name)

@app.task
async def hold(gate: str) -> int:
    with open("begun", "a") as file:
        file.write("held\\n")
    while not os.path.exists(gate):
        await asyncio.sleep(0.005)
    return os.getpid()

async def leave(kind: str) -> None:
    raise KINDS[kind](3)

@app.task
async def gather(kind: str) -> None:
    await asyncio.gather(leave(kind), asyncio.sleep(3600))

@app.task
async def group(kind: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(kind))
        await asyncio.sleep(3600)

@app.task
async def wait_for(kind: str) -> None:
    await asyncio.wait_for(leave(kind), 3600)

@app.task
async def abandon(kind: str) -> str:
    task = asyncio.create_task(leave(kind))
    while not task.done():
        await asyncio.sleep(0)
    return "done"

@app.task
async def call(kind: str) -> str:
    called = asyncio.Event()
    def exit() -> None:
        called.set()
        raise KINDS[kind](3)
    asyncio.get_running_loop().call_soon(exit)
    await called.wait()
    return "done"

@app.task
async def stop(kind: str) -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "done"

@app.task
async def cancel_all() -> str:
    # Goes first in every turn of the loop: so what it sees for the first time has not begun.
    known = asyncio.all_tasks()
    print("spinning", flush=True)
    while asyncio.all_tasks() <= known:
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return "done"

@app.task
async def add(x: int, y: int) -> int:
    return x + y

@app.task
DEF close_files() -> None:
    os.closerange(3, 256)

@app.task
DEF where() -> int:
    return os.getpid()

@app.task
DEF echo(value: bytes) -> bytes:
    return value

@app.task
DEF allow_files(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most or HARD, HARD))

@app.task
DEF return_much(size: int) -> bytes:
    allow_files_now(3)
    return b"x" * size

@app.task
DEF raise_much(size: int) -> None:
    allow_files_now(3)
    raise ValueError("\\U0001f40d" * size)

def allow_files_now(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, HARD))

@app.task(backoff=give_up)
DEF fail() -> None:
    raise ValueError("bad")

@app.task(backoff=never)
DEF fail_for_good() -> None:
    raise ValueError("bad")

@app.task(bind=True)
DEF ask(context, delay: float) -> int:
    if not context.task.error_retries:
        raise Retry("later", delay)
    return 1

@app.task(bind=True)
DEF ask_properly(context, delay: float) -> None:
    context.retry(delay)

@app.task
DEF return_hostile() -> Hostile:
    return Hostile()

@app.task
DEF close_stdout() -> None:
    sys.stdout.close()
"""

PLAIN = SOURCE.replace("DEF ", "def ")
ASYNC = SOURCE.replace("DEF ", "async def ")
LANES = pytest.mark.parametrize(
    ("source", "args"),
    [(PLAIN, ()), (PLAIN, ("--threads", "2")), (ASYNC, ())],
    ids=["sync", "threads", "async"],
)


class Case:
    """A project of that source, and an app of the same namespace that sends to it."""

    def __init__(self, directory: Path, url: str, source: str, **env: str) -> None:
        self.project = Project(directory, url, source)
        self.project.env |= env
        self.directory = directory
        self.app = Conveyor(self.project.name, broker=url)

    def worker(self, *args: str) -> RunningWorker:
        return self.project.worker("-c", "1", *args)

    def send(self, task_name: str, /, *args: Any, **options: Any) -> TaskResult[Any]:
        @self.app.task(name=f"myapp.{task_name}")
        def task(*args: Any) -> Any: ...

        return task.options(**options).delay(*args)

    def ended(self, result: TaskResult[Any]) -> Any:
        wait_until(lambda: result.status.ended, "it has ended", seconds=SOON)
        return result.task()

    def lines(self, name: str) -> list[str]:
        with suppress(FileNotFoundError):
            return (self.directory / name).read_text().splitlines()
        return []


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Iterator[Any]:
    made: list[Case] = []

    def make(source: str, **env: str) -> Case:
        made.append(Case(tmp_path, server.url, source, **env))
        return made[-1]

    yield make
    for case in made:
        case.app.close()


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("gather", "SystemExit"),
        ("gather", "KeyboardInterrupt"),
        ("group", "SystemExit"),
        ("wait_for", "SystemExit"),
        ("abandon", "KeyboardInterrupt"),
        ("call", "SystemExit"),
        ("stop", ""),
    ],
)
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_an_exit_beside_a_run_ends_that_run_at_most(
    make: Any, policy: str, task: str, kind: str
) -> None:
    if policy == "uvloop":
        pytest.importorskip("uvloop")
    case = make(ASYNC, **{"POLICY": policy} if policy == "uvloop" else {})
    gate = case.directory / "gate"
    with case.worker() as worker:
        children = worker.children()
        held = case.send("hold", str(gate))
        wait_until(lambda: case.lines("begun"), "another runs beside it", seconds=SOON)
        record = case.ended(case.send(task, kind))
        if task in ("abandon", "call", "stop"):
            assert (record.status, record.result) == (TaskStatus.SUCCESS, "done")
        else:
            assert (record.status, record.error) == (TaskStatus.FAILED, f"{kind}: 3")
        assert record.stall_retries == 0
        assert case.send("add", 1, 2).wait(SOON) == 3
        gate.touch()
        assert [held.wait(SOON)] == children == worker.children()
        if task != "wait_for":  # whose coroutine is a task of its own in Python 3.11 alone
            said = "it is run again" if task == "stop" else f"{kind} beside a run"
            assert worker.output.count(said) == 1
        assert worker.stop() == 0


def test_a_task_that_cancels_all_others_ends_no_loop_and_loses_none(make: Any) -> None:
    case = make(ASYNC)
    with case.worker() as worker:
        held = case.send("hold", str(case.directory / "never"))
        wait_until(lambda: case.lines("begun"), "one has begun", seconds=SOON)
        guilty = case.send("cancel_all")
        worker.wait_for("spinning")
        unbegun = case.send("add", 1, 2)
        assert unbegun.wait(SOON) == 3
        assert unbegun.task().stall_retries == 1
        assert guilty.wait(SOON) == "done"
        assert case.ended(held).error.startswith("CancelledError")
        assert case.send("add", 3, 4).wait(SOON) == 7
        assert worker.stop() == 0


@LANES
def test_a_run_whose_outcome_cannot_be_sent_is_charged_with_the_end_of_its_child(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        children = worker.children()
        result = case.send("close_files", stall_retry_limit=1)
        with pytest.raises(TaskFailed, match="exited with code 70"):
            result.wait(SOON)
        assert len(result.task().attempts) == 2
        assert [case.send("where").wait(SOON)] != children
        assert f"child {children[0]} failed" in worker.output
        assert "Bad file descriptor" in worker.output


@LANES
def test_a_large_result_without_a_descriptor_for_it_fails_its_task_alone(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        children = worker.children()
        record = case.ended(case.send("return_much", 40_000))
        assert record.status is TaskStatus.FAILED
        assert record.error.startswith("OSError: [Errno 24] myapp.return_much(): the result, 40,0")
        assert record.error.endswith("bytes, cannot leave its process: Too many open files")
        assert len(record.attempts) == 1
        case.send("allow_files", 0).wait(SOON)
        assert [case.send("where").wait(SOON)] == children


@LANES
def test_a_large_error_without_a_descriptor_for_it_is_shortened(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args):
        record = case.ended(case.send("raise_much", 10_000))
        assert record.error == "ValueError: " + "\U0001f40d" * 1024
        assert "Too many open files" in record.traceback
        assert len(record.attempts) == 1


@LANES
def test_a_large_task_that_a_child_has_no_descriptor_for_runs_in_another(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        case.send("allow_files", 3).wait(SOON)
        value = os.urandom(40_000)
        result = case.send("echo", value)
        assert result.wait(SOON) == value
        assert result.task().stall_retries == 0
        assert "came without its file" in worker.output


@LANES
def test_a_backoff_that_exits_gives_way_to_the_default(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        record = case.ended(case.send("fail", error_retry_limit=1))
        assert (record.error, record.error_retries, record.stall_retries) == (
            "ValueError: bad",
            1,
            0,
        )
        assert "the backoff of myapp.fail failed: the default is used" in worker.output


@LANES
def test_hooks_are_told_of_a_backoff_without_end(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source, PLUGIN="1")
    with case.worker(*args):
        result = case.send("fail_for_good", error_retry_limit=1)
        wait_until(lambda: result.status is TaskStatus.SCHEDULED, "scheduled", seconds=SOON)
        due = result.task().enqueue_after
        assert due.year >= 3026
        assert case.lines("notes") == [f"myapp.fail_for_good {due.year}"]


@LANES
@pytest.mark.parametrize("delay", [-5.0, float("nan"), "soon"])
def test_a_delay_that_is_none_harms_nobody(
    make: Any, source: str, args: tuple[str, ...], delay: Any
) -> None:
    case = make(source)
    with case.worker(*args):
        assert case.send("ask", delay, error_retry_limit=1).wait(SOON) == 1


@LANES
def test_a_delay_may_be_longer_than_fifty_days(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    days = 100
    with case.worker(*args):
        result = case.send("ask_properly", days * 86_400.0, error_retry_limit=1)
        wait_until(lambda: result.status is TaskStatus.SCHEDULED, "scheduled", seconds=SOON)
        record = result.task()
        assert (record.enqueue_after - record.created_at).days >= days


@LANES
def test_a_result_that_exits_when_it_is_read_fails_its_task(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        children = worker.children()
        record = case.ended(case.send("return_hostile", error_retry_limit=1))
        assert (record.status, record.error) == (TaskStatus.FAILED, "SystemExit: 9")
        assert [case.send("where").wait(SOON)] == children


@LANES
def test_a_child_whose_output_was_closed_ends_in_peace(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make(source)
    with case.worker(*args) as worker:
        case.send("close_stdout").wait(SOON)
        assert worker.stop() == 0
        assert "Traceback" not in worker.output
