"""Every error Conveyor raises, in one tree.

    ConveyorError
    ├── ConfigurationError      an app, task, option or ``-A`` that cannot work; a ValueError too
    ├── BrokerUnavailable       the server cannot be reached, or is not one we can use
    ├── SerializationError      a value cannot be encoded, or a payload cannot be decoded
    │   └── PayloadTooLarge     an encoded call or result over ``max_payload``
    ├── QueueFull               the server is out of memory and takes no new work
    ├── IdConflict              a custom id that already belongs to another task
    ├── PartialEnqueue          ``map`` stopped half-way; carries what was sent and what was not
    ├── TaskNotFound            no record with that id: never there, removed, or retention passed
    ├── TaskFailed              raised by ``wait``: the task ended as failed
    ├── TaskCancelled           raised by ``wait``: it was cancelled; also raised in a cancelled run
    ├── WaitTimeout             raised by ``wait``: it has not ended yet; a TimeoutError too
    ├── Retry                   raised by ``Context.retry`` to end this run and try again
    └── why a run ended, as the record names it: workers store these as text (``TaskRecord.error``)
        ├── TaskTimeout         it took longer than ``execution_timeout``; also raised in the run
        ├── TaskStalled         the worker or child that ran it died or went silent
        ├── TaskInterrupted     a shutdown ended an at-most-once run
        ├── TaskExpired         it had not begun by ``expires``
        └── UnknownTask         no worker knew its name for ``unknown_task_grace``

All of them can be imported from ``conveyor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor.records import TaskRecord


class ConveyorError(Exception):
    """The root of every error raised by Conveyor."""


class ConfigurationError(ConveyorError, ValueError):
    """An app, a task or an option that cannot work; the message names the nearest valid choice."""


class BrokerUnavailable(ConveyorError):
    """The server cannot be reached or used; the text has its address, the cause and what to do."""


class SerializationError(ConveyorError):
    """A value cannot be encoded, or a payload cannot be decoded."""


class PayloadTooLarge(SerializationError):
    """An encoded call or result is larger than ``max_payload`` bytes."""


class QueueFull(ConveyorError):
    """The server is out of memory and refused new work; running work still ends."""


class IdConflict(ConveyorError):
    """The id belongs to a task of another name or other arguments, or ``on_existing="error"``.

    Among many it is the cause of a ``PartialEnqueue``.
    """


class PartialEnqueue(ConveyorError):
    """``map`` failed half-way; ``app.map(error.pending)`` sends the rest, nothing twice.

    If it failed by an ``IdConflict`` (its cause), the calls that conflict come first in
    ``pending``, and the text says how many there are: leave them out.

    Attributes:
        results: Handles of the tasks that are certainly there, in order.
        pending: Calls of the rest: each is enqueued or not, and has its id.
    """

    def __init__(self, message: str, results: Sequence[Any], pending: Sequence[Any]) -> None:
        super().__init__(message)
        self.results = list(results)
        self.pending = list(pending)


class TaskNotFound(ConveyorError):
    """There is no record with this id: it never existed, was removed, or its retention passed."""


class TaskFailed(ConveyorError):
    """The awaited task ended as failed; the text has the error's type and message.

    Attributes:
        record: The task's final ``TaskRecord``.
    """

    def __init__(self, message: str, record: TaskRecord) -> None:
        super().__init__(message)
        self.record = record

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, TaskRecord]]:
        # Without it one raised in a process pool breaks the pool.
        return type(self), (str(self), self.record)


class TaskCancelled(ConveyorError):
    """The task was cancelled."""


class WaitTimeout(ConveyorError, TimeoutError):
    """The task had not ended within ``timeout`` seconds; it goes on regardless."""


class TaskTimeout(ConveyorError):
    """The run took longer than its ``execution_timeout``."""


class TaskStalled(ConveyorError):
    """The worker or child that ran the task died or went silent."""


class TaskInterrupted(ConveyorError):
    """A shutdown ended the run of a task that may run at most once."""


class TaskExpired(ConveyorError):
    """The task had not begun by the moment it expires."""


class UnknownTask(ConveyorError):
    """No worker knew the task's name for as long as ``unknown_task_grace``."""


class Retry(ConveyorError):
    """Ends the current run and asks for another; raised by ``Context.retry``.

    Attributes:
        delay: Seconds until the next run, or None for the task's backoff.
    """

    def __init__(self, reason: str | None = None, delay: float | None = None) -> None:
        super().__init__(reason or "the task asked to be retried")
        self.delay = delay
