"""Tasks that send others and wait for them, and note when they compute and when they wait.

A worker runs them as `e2e.family`; a test declares them on an app of its own:

    family = Family(app)
    assert family.tree.delay(6, 2).wait() == 127

Every run notes `on` when it begins to compute or goes on, `off` before it waits and at its end.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.history import History

from conveyor import Conveyor, TaskResult, WaitTimeout, current_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

#: Seconds between looks at a gate.
LOOK = 0.005

_histories: dict[str, History] = {}


def note(event: str, *about: object) -> None:
    """Notes an event of the current run, with its kind."""
    history = _histories.setdefault(os.environ["TEST_HISTORY"], History(os.environ["TEST_HISTORY"]))
    history.note(event, current_task().task.id, *about)


@contextmanager
def running(kind: str = "sync") -> Iterator[None]:
    """The run computes in it."""
    note("start", kind)
    note("on", kind)
    try:
        yield
    finally:
        note("off", kind)


@contextmanager
def waiting() -> Iterator[None]:
    """The run waits in it."""
    note("off", "sync")
    try:
        yield
    finally:
        note("on", "sync")


@asynccontextmanager
async def awaiting() -> AsyncIterator[None]:
    """The coroutine waits in it."""
    note("off", "async")
    try:
        yield
    finally:
        note("on", "async")


def wait(result: TaskResult[Any], timeout: float | None = None) -> Any:
    """The result; the run notes that it waits."""
    with waiting():
        return result.wait(timeout)


async def await_(result: TaskResult[Any]) -> Any:
    """The result; the run notes that it waits."""
    async with awaiting():
        return await result


class Family:
    """All of them, declared on an app.

    Args:
        app: Whose.
    """

    def __init__(self, app: Conveyor) -> None:
        @app.task(name="tree")
        def tree(depth: int, fan: int) -> int:
            with running():
                children = [tree.delay(depth - 1, fan) for _ in range(fan if depth else 0)]
                return 1 + sum(wait(child) for child in children)

        @app.task(name="atree")
        async def atree(depth: int, fan: int) -> int:
            with running("async"):
                children = [await atree.adelay(depth - 1, fan) for _ in range(fan if depth else 0)]
                async with awaiting():
                    numbers = await asyncio.gather(*children)
                return 1 + sum(numbers)

        @app.task(name="odd")
        def odd(depth: int) -> int:
            with running():
                children = [even.delay(depth - 1) for _ in range(2 if depth else 0)]
                return 1 + sum(wait(child) for child in children)

        @app.task(name="even")
        async def even(depth: int) -> int:
            with running("async"):
                children = [await odd.adelay(depth - 1) for _ in range(2 if depth else 0)]
                return 1 + sum([await await_(child) for child in children])

        @app.task(name="leaf")
        async def leaf(x: int) -> int:
            with running("async"):
                await asyncio.sleep(0)
                return x

        @app.task(name="parent")
        async def parent(x: int) -> int:
            with running("async"):
                return int(await await_(await leaf.adelay(x)))

        @app.task(name="hold")
        def hold(gate: str) -> int:
            with running():
                while not Path(gate).exists():
                    time.sleep(LOOK)
                return os.getpid()

        @app.task(name="ahold")
        async def ahold(gate: str) -> int:
            with running("async"):
                while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240
                    await asyncio.sleep(LOOK)
                return os.getpid()

        @app.task(name="expect")
        def expect(task_id: str, queue: str) -> int:
            with running():
                wait(app.result(task_id, queue=queue))
                return os.getpid()

        @app.task(name="aexpect")
        async def aexpect(task_id: str, queue: str) -> int:
            with running("async"):
                await await_(app.result(task_id, queue=queue))
                return os.getpid()

        @app.task(name="expect_in_vain")
        def expect_in_vain(task_id: str, queue: str) -> str:
            with running():
                try:
                    wait(app.result(task_id, queue=queue), 0.05)
                except WaitTimeout:
                    return wait(tree.delay(1, 1)) * "in vain"
                return "it had ended"

        @app.task(name="expect_in_threads")
        def expect_in_threads(depth: int) -> list[int]:
            with running():
                numbers: list[int] = []
                children = [tree.delay(depth, 1) for _ in range(3)]
                threads = [
                    threading.Thread(
                        target=copy_context().run,
                        args=(lambda child=child: numbers.append(child.wait()),),
                    )
                    for child in children
                ]
                with waiting():
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                return numbers

        @app.task(name="expect_beside")
        async def expect_beside(x: int) -> int:
            with running("async"):
                result = await leaf.adelay(x)
                async with awaiting():
                    return await asyncio.to_thread(result.wait)

        @app.task(name="leave_behind")
        async def leave_behind(task_id: str, queue: str) -> str:
            with running("async"):
                result = app.result(task_id, queue=queue)
                left = asyncio.ensure_future(_until_ended(result))
                await asyncio.sleep(0.05)
                _left_behind.add(left)
                left.add_done_callback(_left_behind.discard)
                return "left"

        @app.task(name="give_up")
        async def give_up(task_id: str, queue: str) -> str:
            with running("async"):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05), awaiting():
                        await app.result(task_id, queue=queue)
                return "in vain" * (await await_(await leaf.adelay(1)))

        self.tree, self.atree, self.odd, self.even = tree, atree, odd, even
        self.leaf, self.parent, self.hold, self.ahold = leaf, parent, hold, ahold
        self.expect, self.aexpect, self.expect_in_vain = expect, aexpect, expect_in_vain
        self.expect_in_threads, self.expect_beside = expect_in_threads, expect_beside
        self.leave_behind, self.give_up = leave_behind, give_up


async def _until_ended(result: TaskResult[Any]) -> None:
    await result


_left_behind: set[asyncio.Future[None]] = set()

if "TEST_NAMESPACE" in os.environ:
    app = Conveyor(os.environ["TEST_NAMESPACE"])
    family = Family(app)
