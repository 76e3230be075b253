"""What the server says of a queue as a whole: counts of its tasks, its workers, its rate limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from conveyor.errors import SerializationError
from conveyor.packing import unpack


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many tasks of a queue are where; parked ones are among the queued.

    Example:
        >>> app.manager().get_task_counts()
        TaskCounts(scheduled=0, queued=2, processing=0, success=0, failed=0, cancelled=0)
    """

    scheduled: int
    queued: int
    processing: int
    success: int
    failed: int
    cancelled: int


class RateLimit(NamedTuple):
    """At most `points` starts in any `duration` seconds."""

    points: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A live worker, as it announced itself.

    Attributes:
        id: By which records and attempts name it.
        host: Where it runs.
        pid: Its parent process there.
        queues: Those it serves, in its order.
        concurrency: Its children.
        threads: Sync tasks at once in a child.
        coroutines: Async tasks at once in a child.
        beat: Whether it also is an orchestrator.
        paused: Whether it takes no more tasks for now.
    """

    id: str
    host: str = ""
    pid: int = 0
    queues: tuple[str, ...] = ()
    concurrency: int = 0
    threads: int = 0
    coroutines: int = 0
    beat: bool = False
    paused: bool = False


def read_worker(worker_id: bytes, about: bytes) -> WorkerRecord:
    """A worker from its announcement; what another version wrote differently is left out."""
    known = {"host": str, "pid": int, "queues": list, "concurrency": int, "threads": int,
             "coroutines": int, "beat": bool, "paused": bool}  # fmt: skip
    fields = read_announcement(about)
    told = {name: fields[name] for name, kind in known.items() if type(fields.get(name)) is kind}
    queues = tuple(str(name) for name in cast("list[Any]", told.pop("queues", [])))
    return WorkerRecord(id=worker_id.decode(errors="replace"), queues=queues, **told)


def read_announcement(data: bytes) -> dict[str, Any]:
    """What a worker says of itself, or nothing of it when another version wrote something else."""
    try:
        fields = unpack(data, "a worker's announcement")
    except SerializationError:
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
