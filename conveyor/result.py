"""The handle of a task that was sent: its state, its outcome, and stopping it.

A wait registers with the server and is told of the end (see `broker/outcomes.py`): it never polls,
and it outlives a server outage until its timeout, which a server that says nothing does not delay:
a wait that has little time is registered by the thread that listens.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from conveyor.broker import commands
from conveyor.broker.broker import LONGEST_CALL, unavailable
from conveyor.broker.keys import check_given_id
from conveyor.context import await_for, wait_for
from conveyor.errors import (
    BrokerUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)
from conveyor.moments import to_ms
from conveyor.records import TaskRecord, TaskStatus, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from conveyor.broker.commands import Command, QueueStatus, Snapshot
    from conveyor.client import Client, Steps
    from conveyor.moments import Duration

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

#: Seconds that the server has, once a wait's time is up, to say what there is to say.
LATE: Final = 0.4


class TaskResult(Generic[R_co]):
    """A handle of one task, by queue and id; cheap, and safe to keep or make anew from an id.

    Attributes:
        id: The task's id.
        queue: The queue it was sent to.
        created: False when a task of this id existed and nothing was enqueued.

    Example:
        >>> result = add.delay(1, 2)
        >>> result.wait(timeout=5)
        3
    """

    __slots__ = ("_client", "created", "id", "queue")

    def __init__(self, client: Client, queue: str, task_id: str, *, created: bool = True) -> None:
        self._client = client
        self.queue = queue
        self.id = task_id
        self.created = created

    def __repr__(self) -> str:
        """The id and the queue."""
        return f"TaskResult(id={self.id!r}, queue={self.queue!r})"

    def __eq__(self, other: object) -> bool:
        """Handles of the same task are equal."""
        if not isinstance(other, TaskResult):
            return NotImplemented
        return (self.queue, self.id) == (other.queue, other.id)

    def __hash__(self) -> int:
        """Agrees with equality."""
        return hash((self.queue, self.id))

    def wait(self, timeout: Duration | None = None) -> R_co:
        """Waits for the task's end and returns what it returned.

        Args:
            timeout: Most seconds to wait, or a timedelta; None waits for ever.

        Raises:
            TaskFailed: It failed; `.record` has the whole story.
            TaskCancelled: It was cancelled.
            WaitTimeout: It has not ended in time.
            TaskNotFound: There is no such task (any more).
        """
        return self._value(self._ended(timeout))

    def __await__(self) -> Generator[Any, None, R_co]:
        """Waits like `wait()`, without blocking the event loop."""
        return self._await_end().__await__()

    def _ended(self, timeout: Duration | None) -> Snapshot:
        """The task, once it has ended."""
        ms = None if timeout is None else to_ms(timeout, "timeout")
        deadline = math.inf if ms is None else time.monotonic() + ms / 1000
        outcomes = self._client.outcomes
        future = outcomes.expect(self.queue, self.id)
        try:
            if outcomes.hurries or outcomes.hears(self.queue):
                self._register(deadline)
            left = None if ms is None else max(deadline - time.monotonic(), 0)
            ended = wait_for(future, left)
        except FutureTimeout:
            ended = self._read_late(timeout)
        finally:
            outcomes.forget(self.queue, self.id, future)
        return self._found(ended)

    @property
    def status(self) -> TaskStatus:
        """Where the task is in its life.

        Raises:
            TaskNotFound: There is no such task (any more).
        """
        return self._found(self.task()).status

    @property
    def progress(self) -> Any:
        """What the running task last said of its progress, or None."""
        return self._found(self.task()).progress

    def task(self) -> TaskRecord | None:
        """A snapshot of the task, or None when there is no such task (any more)."""
        return self._client.task(self.queue, self.id)

    def cancel(self) -> bool:
        """Cancels the task.

        Returns:
            True when it was not running, and is cancelled, or is running, and is being stopped as
            by a timeout; False when it had ended.

        Raises:
            TaskNotFound: There is no such task (any more).
        """
        broker = self._client.broker
        return self._cancelled(broker.run(commands.cancel(broker.keys(self.queue), self.id)))

    async def astatus(self) -> TaskStatus:
        """The async twin of `status`."""
        return self._found(await self.atask()).status

    async def atask(self) -> TaskRecord | None:
        """The async twin of `task`."""
        return await self._client.atask(self.queue, self.id)

    async def acancel(self) -> bool:
        """The async twin of `cancel`."""
        keys = self._client.broker.keys(self.queue)
        return self._cancelled(await self._client.abroker.run(commands.cancel(keys, self.id)))

    def _register(self, deadline: float) -> None:
        outcomes = self._client.outcomes
        if deadline - time.monotonic() < LONGEST_CALL:
            # A server that says nothing would hold up the caller for longer than it wants to wait.
            outcomes.register_later(self.queue, self.id)
            return
        try:
            (reply,) = self._client.broker.run(self._registration())
        except BrokerUnavailable:
            outcomes.register_later(self.queue, self.id)
        else:
            outcomes.answer(self.queue, self.id, reply)

    async def _aregister(self) -> None:
        try:
            (reply,) = await self._client.abroker.run(self._registration())
        except BrokerUnavailable:
            self._client.outcomes.register_later(self.queue, self.id)
        else:
            self._client.outcomes.answer(self.queue, self.id, reply)

    def _registration(self) -> Command[list[Snapshot | bool]]:
        keys = self._client.broker.keys(self.queue)
        outcomes = self._client.outcomes
        return commands.wait(keys, outcomes.name, [self.id], hurry=outcomes.hurries)

    async def _await_end(self) -> R_co:
        return self._value(await self._aended())

    async def _aended(self, timeout: Duration | None = None) -> Snapshot:  # noqa: ASYNC109
        ms = None if timeout is None else to_ms(timeout, "timeout")
        outcomes = self._client.outcomes
        future = outcomes.expect(self.queue, self.id)
        try:
            async with asyncio.timeout(None if ms is None else ms / 1000):
                if outcomes.hurries or outcomes.hears(self.queue):
                    await self._aregister()
                ended = await await_for(future)
        except TimeoutError:
            ended = await self._aread_late(timeout)
        finally:
            outcomes.forget(self.queue, self.id, future)
        return self._found(ended)

    def _record(self, ended: Snapshot) -> TaskRecord:
        return self._client.decode(self.queue, self.id, ended)

    def _value(self, ended: Snapshot) -> R_co:
        encoded = result_of(ended.record)
        if encoded is not None:
            return cast("R_co", self._client.codec.decode(encoded))
        record = self._record(ended)
        if record.status is TaskStatus.CANCELLED:
            raise TaskCancelled(f"{record.name}[{self.id}] was cancelled")
        raise TaskFailed(f"{record.name}[{self.id}] failed: {record.error}", record)

    def _read_late(self, timeout: Duration | None) -> Snapshot | None:
        """What the server has once the time is up: word of the end may be under way."""
        try:
            look = _in_thread(lambda: self._client.drive(self._late(timeout), patience=0))
        except RuntimeError as error:  # no thread can be started
            raise self._timed_out(timeout, f"; {error}") from None
        if not wait([look], LATE).done:
            raise self._timed_out(timeout, self._silence()) from None
        try:
            return look.result()
        except BrokerUnavailable as error:
            raise self._timed_out(timeout, f"; {error}") from None

    async def _aread_late(self, timeout: Duration | None) -> Snapshot | None:  # noqa: ASYNC109
        """The async twin of `_read_late`."""
        try:
            async with asyncio.timeout(LATE):
                return await self._client.adrive(self._late(timeout))
        except WaitTimeout:
            raise
        except BrokerUnavailable as error:
            raise self._timed_out(timeout, f"; {error}") from None
        except TimeoutError:
            raise self._timed_out(timeout, self._silence()) from None

    def _late(self, timeout: Duration | None) -> Steps[Snapshot | None]:
        keys = self._client.broker.keys(self.queue)
        (found,) = yield commands.read(keys, [self.id])
        if found is None or self._record(found).status.ended:
            return cast("Snapshot | None", found)
        status: QueueStatus = yield commands.status(keys)
        lonely = f"; no worker listens to {self.queue!r}: start one with `conveyor worker`"
        raise self._timed_out(timeout, "" if status.workers else lonely) from None

    def _silence(self) -> str:
        error = TimeoutError("no answer in time")
        return f"; {unavailable(self._client.broker.server, error)}"

    def _timed_out(self, timeout: Duration | None, why: str) -> WaitTimeout:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        text = f"task {self.id!r} on queue {self.queue!r} has not ended after {seconds} s"
        return WaitTimeout(text + why)

    def _found(self, what: T | None) -> T:
        if what is None:
            raise TaskNotFound(self._missing())
        return what

    def _cancelled(self, answer: int) -> bool:
        if answer < 0:
            raise TaskNotFound(self._missing())
        return answer == 1

    def _missing(self) -> str:
        return (
            f"there is no task {self.id!r} on queue {self.queue!r}: "
            "it never existed, was removed, or its retention has passed"
        )


def _in_thread(call: Callable[[], T]) -> Future[T]:
    """The future of a call on a thread of its own, so that nobody has to wait for its end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="conveyor-late", daemon=True).start()
    return future


def result_by_id(client: Client, queue: str, task_id: str) -> TaskResult[Any]:
    """A handle of a task that was sent before.

    Raises:
        TypeError: The id is no text.
        ConfigurationError: No task can have it.
    """
    return TaskResult(client, queue, check_given_id(task_id), created=False)


def wait_for_record(result: TaskResult[Any], timeout: Duration | None) -> TaskRecord:
    """Waits like `TaskResult.wait`, and returns the record however the task ended."""
    return result._record(result._ended(timeout))  # pyright: ignore[reportPrivateUsage]


async def await_record(
    result: TaskResult[Any],
    timeout: Duration | None,  # noqa: ASYNC109
) -> TaskRecord:
    """The async twin of `wait_for_record`."""
    return result._record(await result._aended(timeout))  # pyright: ignore[reportPrivateUsage]
