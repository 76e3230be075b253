"""The handle of a task that was sent: its state, its outcome, and stopping it.

A wait registers with the server and is told of the end (see `broker/outcomes.py`): it never polls, and
it outlives a server outage until its timeout.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from conveyor.broker import commands
from conveyor.errors import (
    BrokerUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)
from conveyor.records import TaskRecord, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future

    from conveyor.broker.commands import Snapshot
    from conveyor.broker.outcomes import Ended
    from conveyor.client import Client

R = TypeVar("R")

_NEVER = 10.0**9


class TaskResult(Generic[R]):
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

    def wait(self, timeout: float | None = None) -> R:
        """Waits for the task's end and returns what it returned.

        Args:
            timeout: Most seconds to wait; None waits for ever.

        Raises:
            TaskFailed: It failed; `.record` has the whole story.
            TaskCancelled: It was cancelled.
            WaitTimeout: It has not ended in time.
            TaskNotFound: There is no such task (any more).
        """
        return cast("R", self._value(self._wait_for_end(timeout)))

    def __await__(self) -> Generator[Any, None, R]:
        """Waits like `wait()`, without blocking the event loop."""
        return self._await_end().__await__()

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
            True when it was not running, and is cancelled, or is running, and is being stopped as by a
            timeout; False when it had ended.

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

    def _wait_for_end(self, timeout: float | None) -> Ended:
        deadline = time.monotonic() + (_NEVER if timeout is None else timeout)
        outcomes = self._client.outcomes
        future = outcomes.expect(self.queue, self.id)
        try:
            if outcomes.subscribe(self.queue, max(deadline - time.monotonic(), 0)):
                self._register()
            return future.result(None if timeout is None else max(deadline - time.monotonic(), 0))
        except (FutureTimeout, FutureCancelled) as error:
            raise self._timed_out(timeout) from error
        finally:
            outcomes.forget(self.queue, self.id, future)

    def _register(self) -> None:
        outcomes, broker = self._client.outcomes, self._client.broker
        command = commands.wait(broker.keys(self.queue), outcomes.name, [self.id])
        try:
            (reply,) = broker.run(command)
        except BrokerUnavailable:
            outcomes.register_later()
        else:
            outcomes.answer(self.queue, self.id, reply)

    async def _await_end(self) -> R:
        outcomes = self._client.outcomes
        future = outcomes.expect(self.queue, self.id)
        try:
            if not outcomes.subscribed(self.queue):
                await asyncio.to_thread(outcomes.subscribe, self.queue, _NEVER)
            await self._aregister(future)
            return cast("R", self._value(await asyncio.wrap_future(future)))
        finally:
            outcomes.forget(self.queue, self.id, future)

    async def _aregister(self, future: Future[Ended]) -> None:
        outcomes = self._client.outcomes
        keys = self._client.broker.keys(self.queue)
        command = commands.wait(keys, outcomes.name, [self.id])
        try:
            (reply,) = await self._client.abroker.run(command)
        except BrokerUnavailable:
            outcomes.register_later()
        else:
            outcomes.answer(self.queue, self.id, reply)

    def _value(self, ended: Snapshot | None) -> Any:
        if ended is None:
            raise TaskNotFound(self._missing())
        record = self._client.decode(self.queue, self.id, ended)
        if record.status is TaskStatus.SUCCESS:
            return record.result
        if record.status is TaskStatus.CANCELLED:
            raise TaskCancelled(f"{record.name}[{self.id}] was cancelled")
        raise TaskFailed(f"{record.name}[{self.id}] failed: {record.error}", record)

    def _timed_out(self, timeout: float | None) -> WaitTimeout:
        text = f"task {self.id} on queue {self.queue!r} has not ended after {timeout} s"
        try:
            broker = self._client.broker
            status = broker.run(commands.status(broker.keys(self.queue)))
        except BrokerUnavailable as error:
            return WaitTimeout(f"{text}: {error}")
        if not status.workers:
            text += f"; no worker listens to {self.queue!r}: start one with `conveyor worker`"
        return WaitTimeout(text)

    def _found(self, record: TaskRecord | None) -> TaskRecord:
        if record is None:
            raise TaskNotFound(self._missing())
        return record

    def _cancelled(self, answer: int) -> bool:
        if answer < 0:
            raise TaskNotFound(self._missing())
        return answer == 1

    def _missing(self) -> str:
        return (
            f"there is no task {self.id!r} on queue {self.queue!r}: "
            "it never existed, was removed, or its retention has passed"
        )
