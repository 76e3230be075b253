"""Plugins in a real worker: every hook, in sync and async tasks, in order, and none that harms."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from servers import wait_until
from workers import Project

from conveyor import Conveyor, TaskCancelled, TaskFailed, constant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server

SOON = 30.0

SOURCE = """
import asyncio, gc, json, os, threading, time
from conveyor import Conveyor, Plugin, current_task

def note(*what):
    line = json.dumps([os.getpid(), *what], default=str) + "\\n"
    with open("notes", "a") as file:
        file.write(line)

def about(task):
    last = task.attempts[-1].outcome if task.attempts else None
    return [task.name, task.status, task.result, task.error, task.error_retries, last]

class Plain(Plugin):
    def on_before_task_processing(self, task):
        note("plain", "before", *about(task), current_task().task.id == task.id)
    def on_after_task_processing(self, task): note("plain", "after", *about(task))
    def on_after_task_success(self, task): note("plain", "success", *about(task))
    def on_after_task_error(self, task, error): note("plain", "error", *about(task), repr(error))
    def on_after_task_fail(self, task, error): note("plain", "fail", *about(task), repr(error))
    def on_child_start(self): note("plain", "child start")
    def on_child_shutdown(self): note("plain", "child shutdown")
    def on_worker_start(self, worker): note("plain", "worker start", worker.plan.concurrency)
    def on_worker_shutdown(self, worker): note("plain", "worker shutdown", worker.killed)

class Async(Plugin):
    async def note(self, *what):
        await asyncio.sleep(0)
        note("async", *what, id(asyncio.get_running_loop()))
    async def on_before_task_processing(self, task): await self.note("before", *about(task))
    async def on_after_task_processing(self, task): await self.note("after", *about(task))
    async def on_after_task_success(self, task): await self.note("success", *about(task))
    async def on_after_task_error(self, task, error): await self.note("error", *about(task))
    async def on_after_task_fail(self, task, error): await self.note("fail", *about(task))
    async def on_child_start(self): await self.note("child start")
    async def on_child_shutdown(self): await self.note("child shutdown")
    async def on_worker_start(self, worker): await self.note("worker start")
    async def on_worker_shutdown(self, worker): await self.note("worker shutdown")

class Broken(Plugin):
    def fail(self, *_):
        raise SystemExit("broken")
    async def afail(self, *_):
        raise RuntimeError("broken")
    on_before_task_processing = on_after_task_success = on_after_task_error = fail
    on_after_task_processing = on_after_task_fail = on_child_start = on_child_shutdown = afail

class Gone(Plugin):
    def on_worker_start(self, worker): raise RuntimeError("no start")
    async def on_worker_shutdown(self, worker): raise RuntimeError("no shutdown")

class Slow(Plugin):
    def on_before_task_processing(self, task): time.sleep(0.4)
    def on_after_task_processing(self, task): time.sleep(1.5)

class Holding(Plugin):
    def on_before_task_processing(self, task):
        note("holding", task.id)
        while not os.path.exists("gate"):
            time.sleep(0.005)

class Tracing(Plugin):
    async def on_before_enqueue_task(self, task):
        return {"trace": current_task().task.headers["trace"]}

PLUGINS = {plugin.__name__: plugin for plugin in Plugin.__subclasses__()}
app = Conveyor("NAME")
app.register_plugins(*(PLUGINS[name]() for name in os.environ["PLUGINS"].split(",")))

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
def boom() -> None:
    raise ValueError("bad")

class Big:
    def __del__(self): note("big", "freed")

@app.task
def hoard() -> None:
    gc.disable()
    big = Big()
    raise ValueError("bad")

@app.task
def late() -> None:
    while True:
        time.sleep(0.01)

@app.task
def unsendable() -> object:
    return object()

@app.task
def quick() -> int:
    time.sleep(0.8)
    return 1

@app.task
def parent() -> dict[str, str]:
    return add.delay(1, 2).task().headers

@app.task
async def blocking_parent() -> str:
    try:
        add.delay(1, 2)
    except ValueError as error:
        return str(error)
    return "sent"
"""

#: The same tasks for the event loop, and the names without the module.
ASYNC_SOURCE = (
    SOURCE.replace("\ndef add", "\nasync def add")
    .replace("\ndef boom", "\nasync def boom")
    .replace("\ndef late", "\nasync def late")
    .replace("    time.sleep(0.01)\n\n", "    await asyncio.sleep(0.01)\n\n")
    .replace("\ndef hoard", "\nasync def hoard")
    .replace("\ndef unsendable", "\nasync def unsendable")
    .replace("\ndef quick", "\nasync def quick")
    .replace("time.sleep(0.8)", "await asyncio.sleep(0.8)")
)


class Case:
    """A project with plugins, and an app of the same namespace that sends to it."""

    def __init__(self, directory: Path, url: str, source: str, plugins: str) -> None:
        self.project = Project(directory, url, source)
        self.project.env["PLUGINS"] = plugins
        self.path = directory / "notes"
        self.app = Conveyor(self.project.name, broker=url)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        @self.app.task(name=f"myapp.{name}")
        def task(*args: Any) -> Any: ...

        return task.options(**options).delay(*args)

    def boom(self) -> Any:
        return self.send("boom", error_retry_limit=1, backoff=constant(0.1))

    def fails(self, result: Any) -> None:
        with pytest.raises(TaskFailed):
            result.wait(SOON)

    def notes(self, name: str) -> list[list[Any]]:
        """What a plugin noted: without the pid, and the loop."""
        return [line[2:] for line in self.lines() if line[1] == name]

    def lines(self) -> list[list[Any]]:
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in self.path.read_text().splitlines()]
        return []


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Iterator[Any]:
    made: list[Case] = []

    def make(plugins: str, source: str = SOURCE) -> Case:
        made.append(Case(tmp_path, server.url, source, plugins))
        return made[-1]

    yield make
    for case in made:
        case.app.close()


KINDS = pytest.mark.parametrize(
    ("source", "args"),
    [(SOURCE, ()), (SOURCE, ("--threads", "2")), (ASYNC_SOURCE, ())],
    ids=["sync", "threads", "async"],
)
PLUGINS = pytest.mark.parametrize("plugin", ["Plain", "Async"])
BAD = "ValueError: bad"


@KINDS
@PLUGINS
def test_every_hook_of_a_child(make: Any, source: str, args: tuple[str, ...], plugin: str) -> None:
    case = make(plugin, source)
    with case.project.worker("-c", "1", *args) as worker:
        assert case.send("add", 1, 2).wait(SOON) == 3
        case.fails(case.boom())
        assert worker.stop() == 0
    notes = [note[:7] for note in case.notes(plugin.lower())]
    add, boom = "myapp.add", "myapp.boom"
    expected = [
        ["before", add, "processing", None, None, 0, None],
        ["success", add, "success", 3, None, 0, "success"],
        ["after", add, "success", 3, None, 0, "success"],
        ["before", boom, "processing", None, None, 0, None],
        ["error", boom, "scheduled", None, BAD, 1, "error"],
        ["after", boom, "scheduled", None, BAD, 1, "error"],
        ["before", boom, "processing", None, BAD, 1, "error"],  # of the run before
        ["error", boom, "failed", None, BAD, 1, "error"],
        ["fail", boom, "failed", None, BAD, 1, "error"],
        ["after", boom, "failed", None, BAD, 1, "error"],
    ]
    assert [note for note in notes if len(note) == 7] == expected
    assert [note[0] for note in notes if not note[0].startswith("worker")] == [
        "child start",
        *(step for step, *_ in expected),
        "child shutdown",
    ]


@KINDS
def test_hooks_know_the_error_and_the_run(make: Any, source: str, args: tuple[str, ...]) -> None:
    case = make("Plain", source)
    with case.project.worker("-c", "1", *args):
        case.fails(case.boom())
        case.fails(case.send("late", execution_timeout=0.2))
        case.fails(case.send("unsendable"))
        notes = case.notes("plain")
    assert {note[-1] for note in notes if note[0] == "before"} == {True}
    last = {note[1]: note[-2:] for note in notes if note[0] == "fail"}
    assert last["myapp.boom"] == ["error", "ValueError('bad')"]
    outcome, error = last["myapp.late"]
    assert outcome == "timeout"
    assert error.startswith("TaskTimeout('the run took longer")
    assert last["myapp.unsendable"][1].startswith("SerializationError(")


@KINDS
def test_hooks_are_called_in_the_order_of_registration(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make("Async,Plain", source)
    with case.project.worker("-c", "1", *args) as worker:
        assert case.send("add", 1, 2).wait(SOON) == 3
        worker.stop()
    steps = [(line[2], line[1]) for line in case.lines()]
    assert [one for one in steps if not one[0].startswith("worker")] == [
        (step, name)
        for step in ("child start", "before", "success", "after", "child shutdown")
        for name in ("async", "plain")
    ]


@KINDS
def test_async_hooks_of_a_child_share_one_loop(
    make: Any, source: str, args: tuple[str, ...]
) -> None:
    case = make("Async", source)
    with case.project.worker("-c", "1", *args) as worker:
        (child,) = worker.children()
        assert case.send("add", 1, 2).wait(SOON) == 3
        assert case.send("blocking_parent").wait(SOON) == "sent"
        worker.stop()
    loops = {line[-1] for line in case.lines() if line[0] == child}
    assert len(loops) == 1


@KINDS
@pytest.mark.parametrize("plugin", ["Plain", "Gone"])
def test_what_a_run_held_is_freed_when_it_has_failed(
    make: Any, source: str, args: tuple[str, ...], plugin: str
) -> None:
    case = make(plugin, source)
    with case.project.worker("-c", "1", *args):
        case.fails(case.send("hoard"))
        wait_until(lambda: case.notes("big") == [["freed"]], "it is freed", seconds=10)


@KINDS
def test_a_hook_that_raises_harms_nothing(make: Any, source: str, args: tuple[str, ...]) -> None:
    case = make("Broken,Plain", source)
    with case.project.worker("-c", "1", *args) as worker:
        children = worker.children()
        assert case.send("add", 1, 2).wait(SOON) == 3
        result = case.boom()
        case.fails(result)
        assert worker.children() == children
        assert worker.stop() == 0
        for name in ("fail", "afail"):
            assert f"Broken.{name} raised" in worker.output
    assert result.task().error == BAD
    # What is registered behind it is called all the same.
    steps = [note[0] for note in case.notes("plain")]
    assert (steps.count("success"), steps.count("error"), steps.count("after")) == (1, 2, 3)


@pytest.mark.parametrize("plugin", ["Plain", "Async"])
@pytest.mark.parametrize("args", [(), ("--burst",)])
def test_hooks_of_the_worker(make: Any, plugin: str, args: tuple[str, ...]) -> None:
    case = make(plugin)
    result = case.send("add", 1, 2)
    with case.project.worker("-c", "2", *args, up=False) as worker:
        result.wait(SOON)
        parent = worker.pid
        assert (worker.wait() if args else worker.stop()) == 0
    lines = case.lines()
    of_worker = [line for line in lines if line[2].startswith("worker")]
    assert [line[0] for line in of_worker] == [parent, parent]
    assert [line[2] for line in of_worker] == ["worker start", "worker shutdown"]
    assert lines[-1][2] == "worker shutdown"
    if plugin == "Plain":
        assert [line[3] for line in of_worker] == [2, False]
    # Each child was told of its end, in burst mode too.
    children = {line[0] for line in lines} - {parent}
    for step in ("child start", "child shutdown"):
        assert sorted(line[0] for line in lines if line[2] == step) == sorted(children)
    assert len(children) == 2


def test_a_hook_of_the_worker_that_raises_harms_nothing(make: Any) -> None:
    case = make("Gone,Plain")
    with case.project.worker("-c", "1") as worker:
        assert case.send("add", 1, 2).wait(SOON) == 3
        assert worker.stop() == 0
        assert "Gone.on_worker_start raised" in worker.output
        assert "Gone.on_worker_shutdown raised" in worker.output
    assert [n[0] for n in case.notes("plain") if n[0].startswith("worker")] == [
        "worker start",
        "worker shutdown",
    ]


def test_children_that_are_replaced_are_told(make: Any) -> None:
    case = make("Plain")
    with case.project.worker("-c", "1", "--max-tasks-per-child", "2") as worker:
        for _ in range(4):
            assert case.send("add", 1, 2).wait(SOON) == 3
        wait_until(
            lambda: [note[0] for note in case.notes("plain")].count("child start") == 3,
            "the third child has started",
            seconds=SOON,
        )
        worker.stop()
    steps = [line for line in case.lines() if line[2].startswith("child")]
    for child in {line[0] for line in steps}:
        assert [line[2] for line in steps if line[0] == child] == ["child start", "child shutdown"]


@pytest.mark.parametrize("source", [SOURCE, ASYNC_SOURCE], ids=["sync", "async"])
def test_what_hooks_take_is_not_the_runs_own_time(make: Any, source: str) -> None:
    # A run of 0.8 s may take 1 s, and its hooks take 1.9: it would be ended with its child.
    case = make("Slow", source)
    with case.project.worker("-c", "1"):
        result = case.send("quick", execution_timeout=1.0)
        assert result.wait(SOON) == 1
    assert [run.outcome for run in result.task().attempts] == ["success"]


@pytest.mark.parametrize("source", [SOURCE, ASYNC_SOURCE], ids=["sync", "async"])
def test_a_task_that_is_cancelled_in_a_hook_is_stopped(
    make: Any, tmp_path: Path, source: str
) -> None:
    case = make("Holding,Plain", source)
    with case.project.worker("-c", "1") as worker:
        children = worker.children()
        result = case.send("late")
        wait_until(lambda: case.notes("holding") == [[result.id]], "it is held", seconds=SOON)
        assert result.cancel()
        (tmp_path / "gate").touch()
        with pytest.raises(TaskCancelled):
            result.wait(SOON)
        # Had the wish been lost in the hook, the child would have been killed for it.
        assert worker.children() == children
        assert worker.stop() == 0
    steps = [note[0] for note in case.notes("plain")]
    assert "success" not in steps
    assert steps[-2:] == ["child shutdown", "worker shutdown"]


def test_a_run_that_is_killed_in_a_hook_is_run_again(make: Any, tmp_path: Path) -> None:
    case = make("Holding,Plain")
    with case.project.worker("-c", "1") as worker:
        result = case.send("add", 1, 2)
        wait_until(lambda: len(case.notes("holding")) == 1, "it is held", seconds=SOON)
        (child,) = worker.children()
        os.kill(child, 9)
        (tmp_path / "gate").touch()
        assert result.wait(SOON) == 3
    assert [run.outcome for run in result.task().attempts] == ["stall", "success"]


@pytest.mark.parametrize("args", [(), ("--threads", "2")])
def test_an_async_enqueue_hook_is_awaited_for_a_sync_task(make: Any, args: tuple[str, ...]) -> None:
    case = make("Tracing")
    with case.project.worker("-c", "1", *args):
        result = case.send("parent", headers={"trace": "abc"})
        assert result.wait(SOON) == {"trace": "abc"}


def test_an_async_enqueue_hook_is_refused_where_it_would_block_the_loop(make: Any) -> None:
    case = make("Tracing")
    with case.project.worker("-c", "1"):
        result = case.send("blocking_parent", headers={"trace": "abc"})
        assert "use adelay()" in result.wait(SOON)
