"""What a running task knows and can say about itself."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from conveyor.broker import commands
from conveyor.errors import ConveyorError, Retry
from conveyor.moments import Duration, to_ms
from conveyor.records import FENCE

if TYPE_CHECKING:
    from concurrent.futures import Future
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from conveyor.broker.commands import Command
    from conveyor.client import Client
    from conveyor.records import TaskRecord

T = TypeVar("T")


class Lender(Protocol):
    """Lends the slot of a run to others while it waits: what a worker's child gives a run."""

    def blocked(self, run: int, future: Future[Any]) -> AbstractContextManager[None]:
        """In it a thread of the run blocks on the future; left once the run may go on."""
        ...

    def suspended(self, run: int) -> AbstractAsyncContextManager[None]:
        """In it a coroutine of the run awaits; left once the run may go on."""
        ...


@dataclass(slots=True)
class Context:
    """The running task's side of its record: `@app.task(bind=True)` or `current_task()`.

    Example:
        >>> @app.task(bind=True)
        ... def resize(ctx: Context, paths: list[str]) -> None:
        ...     for number, path in enumerate(paths):
        ...         ctx.update_progress(number / len(paths))
    """

    _client: Client
    _queue: str
    _id: str
    _name: str
    _token: bytes
    _record: bytes
    _run: int = 0
    _lender: Lender | None = None

    @property
    def task(self) -> TaskRecord:
        """The task as it was when this run was claimed, with what earlier runs left.

        Example:
            >>> start = ctx.task.data or 0  # what the run before said by `ctx.update(line)`
        """
        return self._client.decode_claimed(self._queue, self._id, self._record)

    @property
    def fence(self) -> int:
        """The start counter: higher in every later run, for `UPDATE … WHERE fence < ?`."""
        return int(FENCE.unpack(self._token)[0])

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the task and its id."""
        extra = {"task": self._name, "id": self._id, "queue": self._queue}
        return logging.LoggerAdapter(logging.getLogger(f"conveyor.task.{self._name}"), extra)

    def update_progress(self, value: Any) -> bool:
        """Keeps a value as `TaskRecord.progress`; False when this run has lost its lease."""
        return self._client.broker.run(self._said("p", value))

    def update(self, data: Any) -> bool:
        """Keeps a value as `TaskRecord.data`; False when this run has lost its lease."""
        return self._client.broker.run(self._said("d", data))

    async def aupdate_progress(self, value: Any) -> bool:
        """The async twin of `update_progress`."""
        return await self._client.abroker.run(self._said("p", value))

    async def aupdate(self, data: Any) -> bool:
        """The async twin of `update`."""
        return await self._client.abroker.run(self._said("d", data))

    def retry(self, delay: Duration | None = None, reason: str | None = None) -> NoReturn:
        """Ends this run and asks for another; it counts as an error retry.

        Args:
            delay: Seconds or a timedelta until the next run; None takes the task's backoff.
            reason: Kept as the run's error.

        Raises:
            Retry: Always.
        """
        ms = None if delay is None else to_ms(delay, "delay")
        raise Retry(reason, None if ms is None else ms / 1000)

    def _said(self, field: str, value: Any) -> Command[bool]:
        what = "progress" if field == "p" else "data"
        encoded = self._client.codec.encode(value, f"{self._name}: {what}")
        keys = self._client.broker.keys(self._queue)
        return commands.progress(keys, self._id, self._token, field, encoded)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("conveyor.current_task")


def current_task() -> Context:
    """The context of the task that is running here.

    Raises:
        ConveyorError: No task is running here.
    """
    try:
        return _current.get()
    except LookupError:
        raise ConveyorError(
            "no task is running here: current_task() works inside a task's run"
        ) from None


def wait_for(future: Future[T], timeout: float | None) -> T:
    """A future's result; a running task that has to wait for it lends its slot meanwhile.

    Raises:
        TimeoutError: It has none after so many seconds.
    """
    if timeout is not None:
        timeout = min(timeout, threading.TIMEOUT_MAX)
    lender, run = _slot(future)
    if lender is None:
        return future.result(timeout)
    with lender.blocked(run, future):
        return future.result(timeout)


async def await_for(future: Future[T]) -> T:
    """The async twin of `wait_for`."""
    lender, run = _slot(future)
    if lender is None:
        return await asyncio.wrap_future(future)
    async with lender.suspended(run):
        return await asyncio.wrap_future(future)


def _slot(future: Future[Any]) -> tuple[Lender | None, int]:
    """Who lends the slot of the task that is running here, unless it need not wait; and its run."""
    context = _current.get(None)
    if context is None or future.done():
        return None, 0
    return context._lender, context._run  # pyright: ignore[reportPrivateUsage]


def enter(context: Context) -> contextvars.Token[Context]:
    """Makes a context the current one; for the child that runs the task."""
    return _current.set(context)


def leave(token: contextvars.Token[Context]) -> None:
    """Undoes `enter`."""
    _current.reset(token)


def detach(context: Context) -> None:
    """Has a run that has ended lend its slot no more: what it left behind has none."""
    context._lender = None  # pyright: ignore[reportPrivateUsage]
