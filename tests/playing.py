"""What tests of callers need of a worker: one task ended by hand, or all of them in a thread.

end(app, "success", 3)              # claims the next task and ends it
with Player(app):                   # runs the app's tasks, one after the other
    assert add.delay(1, 2).wait(10) == 3
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from engine import Engine, Lease, Worker
from servers import wait_until

from conveyor.packing import pack_error
from conveyor.records import payload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import pytest

    from conveyor import Conveyor, Task, TaskResult

T = TypeVar("T")

#: Seconds in which anything here happens unless it hangs.
SOON = 20.0
#: How a task ends that fails.
ERROR = pack_error("ValueError", "no", "Traceback: line 1")


def claim(app: Conveyor, queue: str = "default") -> tuple[Worker, Lease]:
    """The next task of a queue, running, and who runs it."""
    worker = _worker(app, queue)
    (lease,) = worker.claim() or worker.claim(0, 1)
    return worker, lease


def end(app: Conveyor, outcome: str, value: Any = None, *, queue: str = "default") -> str:
    """Ends the next task of a queue: "success" with a value, else with an error; its id."""
    worker, lease = claim(app, queue)
    encoded = app.client.codec.encode(value, "the result") if outcome == "success" else value
    assert worker.end(lease, outcome, encoded or b"") == 1
    return lease.id


class Player:
    """Runs an app's tasks in a thread, until the end of its `with` block."""

    def __init__(self, app: Conveyor, queue: str = "default") -> None:
        self._app = app
        self._worker = _worker(app, queue)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(SOON)
        assert not self._thread.is_alive()

    def _play(self) -> None:
        while not self._stop.is_set():
            claimed = self._worker.claim(sync=10, asynchronous=10)
            for lease in claimed:
                self._worker.end(lease, *self._run(lease))
            if not claimed:
                self._stop.wait(0.01)

    def _run(self, lease: Lease) -> tuple[str, bytes]:
        codec = self._app.client.codec
        payload = payload_of(lease.record)
        args, kwargs = codec.decode_call(payload.call)
        try:
            value = self._app.tasks[payload.name].definition.function(*args, **kwargs)
            if inspect.isawaitable(value):
                value = asyncio.run(_await(value))
        except Exception as error:
            return "fatal", pack_error(type(error).__name__, str(error))
        return "success", codec.encode(value, "the result")


def _worker(app: Conveyor, queue: str) -> Worker:
    # A worker's name is its own: the server repeats its claims to it.
    return Worker(Engine(app, queue, stopped=False), os.urandom(4))


def run(app: Conveyor, coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns in an event loop of its own, which is left clean."""

    async def clean() -> T:
        try:
            return await coroutine
        finally:
            await app.client.abroker.aclose()

    return asyncio.run(clean())


def wait_in_thread(app: Conveyor, result: TaskResult[Any], timeout: Any = SOON) -> Future[Any]:
    """The future of a wait that has registered."""
    engine = Engine(app, stopped=False)
    future = in_thread(lambda: result.wait(timeout))
    wait_until(lambda: engine.call("HEXISTS", engine.key(f"x:{result.id}"), "w") == 1, "waiting")
    return future


def in_thread(work: Callable[[], T]) -> Future[T]:
    """The future of what is done in a thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In it no thread can be started."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def works(app: Conveyor, add: Task[..., int]) -> bool:
    """Whether calls of a task that adds go there and back, sync and async."""

    async def there_and_back() -> int:
        return await (await add.adelay(3, 4))

    with Player(app):
        return add.delay(1, 2).wait(SOON) == 3 and run(app, there_and_back()) == 7


async def _await(value: Any) -> Any:
    return await value
