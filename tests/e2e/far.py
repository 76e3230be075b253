"""An app on servers that are several: its worker as a process, and callers in full swing.

    with FarWorker(cluster.url, "shop", ["default"]):
        with Rush(cluster.url, "shop") as rush:
            cluster.failover(slot)
        rush.check()

Run as a program, this file is the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from servers import wait_until
from workers import ROOT, Running

from conveyor import BrokerUnavailable, Context, Conveyor, WaitTimeout, constant
from conveyor.broker import commands
from conveyor.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servers import Server

    from conveyor import Call, TaskResult
    from conveyor.broker.commands import QueueStatus

#: Seconds that anything here may take: only what hangs takes as long.
DEADLINE = 30.0
#: The stall timeout of every task here: shorter than a failover takes.
STALL = 1.5
#: Seconds within which a caller is promised to hear that its servers are down.
PROMISED = 5.0
#: Seconds between two calls of a producer, so that it does not take the processor from the rest.
_BETWEEN = 0.002


def far_app(broker: Any, namespace: str) -> Conveyor:
    """The app; each test has a namespace of its own."""
    app = Conveyor("far", broker=broker, namespace=namespace, stall_timeout=STALL)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="aadd")
    async def aadd(x: int, y: int) -> int:
        return x + y

    @app.task(name="nap")
    def nap(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @app.task(name="third_time", bind=True, error_retry_limit=2, backoff=constant(0.01))
    def third_time(context: Context) -> int:
        if context.fence < 3:
            raise ValueError("not yet")
        return context.fence

    return app


def call(app: Conveyor, task: str, *args: object) -> Call[Any]:
    """One call of one of the app's tasks."""
    return app.tasks[task].call(*args)


def status_of(app: Conveyor, queue: str) -> QueueStatus:
    """What the server says of a queue."""
    broker = app.client.broker
    return broker.run(commands.status(broker.keys(queue)))


def runs(result: TaskResult[Any]) -> tuple[int, int]:
    """How often a task was begun, and how often it was taken for stalled."""
    record = result.task()
    assert record is not None
    return len(record.attempts), record.stall_retries


def answers(app: Conveyor) -> bool:
    """Whether a call goes through its servers and a worker."""
    try:
        return bool(call(app, "add", 1, 2).delay().wait(1) == 3)
    except (BrokerUnavailable, WaitTimeout):
        return False


def replicate(primary: Server, app: Conveyor, queue: str) -> None:
    """Return once the replica has all that the queue's primary has taken so far."""
    with primary.client() as client:
        # WAIT is about the writes of its own connection, and so about all that came before them.
        client.set(app.client.broker.keys(queue).prefix + "test", "")
        assert client.execute_command("WAIT", 1, round(DEADLINE * 1000)) == 1


def refusal(app: Conveyor) -> str:
    """How a caller is told that its servers cannot be used: in time, and in one line."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        call(app, "add", 1, 2).delay()
    return _checked(str(caught.value), app, began)


def arefusal(app: Conveyor) -> str:
    """The same of an async caller."""

    async def main() -> str:
        async with app:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable) as caught:
                await call(app, "add", 1, 2).adelay()
            return _checked(str(caught.value), app, began)

    return asyncio.run(main())


def _checked(text: str, app: Conveyor, began: float) -> str:
    assert time.monotonic() - began < PROMISED
    assert "\n" not in text
    assert app.client.broker.server.address in text
    return text


class FarWorker(Running):
    """A worker of the app, up once it is created.

    Args:
        url: Of the servers.
        namespace: Whose queues.
        queues: Names.
    """

    def __init__(self, url: str, namespace: str, queues: Sequence[str]) -> None:
        tests = Path(__file__).parent.parent
        path = os.pathsep.join(map(str, (ROOT, tests)))
        super().__init__(__file__, url, namespace, *queues, cwd=tests, env={"PYTHONPATH": path})
        try:
            with far_app(url, namespace) as app:
                wait_until(lambda: self._serves(app, queues), "the worker up", seconds=DEADLINE)
        except BaseException:
            self.close()
            raise

    def _serves(self, app: Conveyor, queues: Sequence[str]) -> bool:
        if not self.alive:
            raise RuntimeError(f"the worker ended before it was up:\n{self.output}")
        return all(status_of(app, queue).workers for queue in queues)


class Rush:
    """Sync and async callers that send without end, and waits for tasks that run meanwhile.

    Args:
        broker: The URL of the servers, or a client to share.
        namespace: Whose queue "default".
        long: Seconds that a task takes which runs from the beginning.

    Attributes:
        app: The sync callers' app.
    """

    def __init__(self, broker: Any, namespace: str, *, long: float = 3 * STALL) -> None:
        self.app = far_app(broker, namespace)
        self._broker = broker
        self._refused = 0
        self._numbers = count()
        self._sent: list[tuple[str, int]] = []
        self._stopping = threading.Event()
        self._turns = (threading.Lock(), threading.Lock())
        self._long = call(self.app, "nap", long).delay()
        self._naps = [self._long, *self.app.map([call(self.app, "nap", 0.05)] * 30)]
        self._threads = ThreadPoolExecutor(len(self._naps) + 3)
        self._producers: list[Future[None]] = []
        self._waits: list[Future[Any]] = []

    def __enter__(self) -> Self:
        """Begins."""
        start = self._threads.submit
        self._producers = [start(self._produce), start(asyncio.run, self._aproduce())]
        self._waits = [start(nap.wait, DEADLINE) for nap in self._naps]
        self._waits.append(start(asyncio.run, self._await_naps()))
        self._await_calls()
        return self

    def __exit__(self, *_: object) -> None:
        """Sends no more; waits go on."""
        self._stopping.set()
        for producer in self._producers:
            producer.result(DEADLINE)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Nothing is sent meanwhile, and no call is under way."""
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            yield

    def go_on(self) -> None:
        """Return when calls return, and the last of them has its result."""
        self._await_calls()
        task_id, expected = self._sent[-1]
        assert self.app.result(task_id).wait(DEADLINE) == expected

    def end_waits(self) -> None:
        """Return when all waits have ended that there were from the beginning."""
        for wait in self._waits:
            wait.result(DEADLINE)

    def check(self) -> None:
        """Every call that returned has its result, every wait ended, and nothing is left over."""
        self.end_waits()
        # If its lease ran out while no server was there, that was a gap, and not a stall.
        assert runs(self._long) == (1, 0)
        for task_id, expected in self._sent:
            assert self.app.result(task_id).wait(DEADLINE) == expected
        wait_until(self._is_drained, "the queue is empty", seconds=DEADLINE)
        status = status_of(self.app, "default")
        assert (status.failed, status.cancelled, status.parked) == (0, 0, 0)
        known = len(self._naps) + len(self._sent)
        assert known <= status.success <= known + self._refused
        self.app.close()
        self._threads.shutdown()

    def _await_calls(self) -> None:
        before = len(self._sent)
        wait_until(lambda: len(self._sent) > before + 100, "calls returning", seconds=DEADLINE)

    def _is_drained(self) -> bool:
        status = status_of(self.app, "default")
        return not (status.queued or status.processing or status.scheduled)

    def _next(self, app: Conveyor) -> tuple[int, Call[int]]:
        number = next(self._numbers)
        return number + 1, call(app, ("add", "aadd")[number // 2 % 2], number, 1)

    def _produce(self) -> None:
        while not self._stopping.wait(_BETWEEN):
            with self._turns[0]:
                expected, one = self._next(self.app)
                try:
                    self._sent.append((one.delay().id, expected))
                except BrokerUnavailable:
                    self._refused += 1

    async def _aproduce(self) -> None:
        async with far_app(self._broker, self.app.namespace) as app:
            while not self._stopping.is_set():
                await asyncio.sleep(_BETWEEN)
                with self._turns[1]:
                    expected, one = self._next(app)
                    try:
                        self._sent.append(((await one.adelay()).id, expected))
                    except BrokerUnavailable:
                        self._refused += 1

    async def _await_naps(self) -> None:
        async def ended(nap: str) -> None:
            await app.result(nap)

        async with far_app(self._broker, self.app.namespace) as app, asyncio.timeout(DEADLINE):
            await asyncio.gather(*(ended(nap.id) for nap in self._naps))


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(message)s")
    url, namespace, *names = sys.argv[1:]
    Worker(far_app(url, namespace), names, concurrency=2).run()
