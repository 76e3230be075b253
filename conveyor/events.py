"""What listeners hear of: the kinds of events, and how one is read from what a script published.

An event is published inside the script that makes it happen (`broker/scripts/lib/event.lua`): with
the record as it was at that moment, so that it can be told though the task has moved on since, or
its record is gone. Arguments and results are decoded only for those who may see them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from conveyor.errors import SerializationError
from conveyor.moments import from_ms
from conveyor.packing import unpack
from conveyor.records import REDACTED, TaskRecord, decode_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from conveyor.codec import Codec


class EventType(StrEnum):
    """What can happen; a member equals its text, such as ``"task_complete"``."""

    #: The task waits for its moment: scheduled by its caller, or for a retry that has a delay.
    TASK_SCHEDULED = "task_scheduled"
    #: The task is ready to run: enqueued, due, to be retried, or handed back.
    TASK_QUEUED = "task_queued"
    #: A worker has claimed the task.
    TASK_PROCESSING = "task_processing"
    #: The running task said how far it is; ``data`` has the value.
    TASK_PROGRESS_UPDATED = "task_progress_updated"
    #: The running task changed its data (``data`` has the value), or it was parked or released.
    TASK_UPDATED = "task_updated"
    #: A run ended in an error; another one or `TASK_FAIL` follows.
    TASK_ERROR = "task_error"
    #: A run's worker died or went silent; another run or `TASK_FAIL` follows.
    TASK_STALLED = "task_stalled"
    #: The task ended well.
    TASK_SUCCESS = "task_success"
    #: The task ended for lack of retries, or because it expired, or nobody knew its name.
    TASK_FAIL = "task_fail"
    #: The task ended because somebody cancelled it.
    TASK_CANCELLED = "task_cancelled"
    #: The task ended, however; once a task, after one of the three above.
    TASK_COMPLETE = "task_complete"
    #: A worker greets its queue; ``data`` has what it says of itself.
    WORKER_STARTED = "worker_started"
    #: A worker takes no more tasks for now.
    WORKER_PAUSED = "worker_paused"
    #: A worker takes tasks again.
    WORKER_RESUMED = "worker_resumed"
    #: A worker says goodbye; one that dies cannot.
    WORKER_SHUTDOWN = "worker_shutdown"
    #: No task of the queue is begun for now.
    QUEUE_PAUSED = "queue_paused"
    #: The queue's tasks are begun again.
    QUEUE_RESUMED = "queue_resumed"
    #: The queue's rate limit was set or cleared; ``data`` has it.
    QUEUE_RATE_LIMIT_UPDATED = "queue_rate_limit_updated"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a queue.

    Attributes:
        created_at: When, by the server's clock.
        type: What.
        queue: Where.
        task: The task as it was then; its `args`, `kwargs` and `result` are `REDACTED` unless the
            app's setting `log_arguments` is on. None for an event of a worker or the queue.
        worker: Id of the worker that it is about, or that ran the task last.
        data: What the event brings, as its type says; `REDACTED` when larger than 32 KiB.
    """

    created_at: datetime
    type: EventType
    queue: str
    task: TaskRecord | None = None
    worker: str | None = None
    data: Any = None


def decode_event(queue: str, message: bytes, codec: Codec, *, reveal: bool) -> Event:
    """Reads what `tell` in lib/event.lua published.

    Args:
        queue: On whose channel.
        message: The bytes.
        codec: For what users passed in.
        reveal: Whether arguments and results may be seen.

    Raises:
        SerializationError: It cannot be read, as one of another version may not.
    """
    try:
        kind, now, task_id, record, extras, data, worker = cast(
            "list[Any]", unpack(message, "an event", raw=True)
        )[:7]
        task = None
        if task_id is not False:
            found = dict(zip(extras[::2], extras[1::2], strict=True)) if extras else {}
            task = _task(task_id.decode(), queue, record, found, codec, reveal=reveal)
        return Event(
            created_at=from_ms(now),
            type=EventType(kind.decode()),
            queue=queue,
            task=task,
            worker=worker.decode() if worker else None if task is None else task.worker,
            data=_data(data, codec),
        )
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise SerializationError(f"an event cannot be read: {error}") from error


def _task(
    task_id: str,
    queue: str,
    record: bytes,
    extras: Mapping[bytes, bytes],
    codec: Codec,
    *,
    reveal: bool,
) -> TaskRecord:
    if reveal:
        try:
            return decode_task(task_id, queue, record, extras, codec)
        except SerializationError:
            pass  # too large to travel whole, or a call that nobody can read: told without it
    return decode_task(task_id, queue, record, extras, codec, reveal=False)


def _data(data: bytes | bool, codec: Codec) -> Any:
    if isinstance(data, bool):
        return None
    return codec.decode(data) if data else REDACTED
