"""What each script is asked and what it answers: no I/O here.

A command names its script, its queue's key and its arguments, and reads the reply. The sync and the
async broker and the worker's loop run the same commands, and every command may be sent again after
a lost reply: it changes nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from conveyor.broker.scripts import Script, load_script
from conveyor.errors import IdConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from conveyor.broker.keys import QueueKeys
    from conveyor.events import EventType

T = TypeVar("T")

#: Most tasks one call of a script touches.
BATCH = 100
#: Of each kind that is due, where there are eight of them and each task costs more.
MOVED_AT_ONCE = 50
#: Most bytes of records one call carries.
BATCH_BYTES = 1_048_576

#: In a worker's mailbox is a run to stop (its token, then the task's id), or this: something was
#: parked, and it may know its name.
PARKED_MAIL = b"\1parked"
#: Or this and a moment in ms (6 bytes): the queue is destroyed, with all runs begun before then.
GONE_MAIL = b"\1gone"

_ENQUEUE = load_script("enqueue")
_SETTLE = load_script("settle")
_RENEW = load_script("renew")
_MAINTAIN = load_script("maintain")
_CANCEL = load_script("cancel")
_PROGRESS = load_script("progress")
_READ = load_script("read")
_WAIT = load_script("wait")
_HELLO = load_script("hello")
_UNPARK = load_script("unpark")
_RING = load_script("ring")
_STATUS = load_script("status")
_LIST = load_script("list")
_REMOVE = load_script("remove")
_RETRY = load_script("retry")
_CONTROL = load_script("control")
_PURGE = load_script("purge")
_DESTROY = load_script("destroy")
_ANNOUNCE = load_script("announce")


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """One call of one script.

    Attributes:
        script: What to run.
        keys: The queue's memory, which also names the slot of a cluster, and a key that never is.
        args: ARGV.
        parse: Turns the raw reply into the answer.
    """

    script: Script
    keys: tuple[str, str]
    args: Sequence[bytes | str | int]
    parse: Callable[[Any], T]


class NewTask(NamedTuple):
    """A task to enqueue: see the ARGV of enqueue.lua."""

    id: str
    due: str
    expires: str
    record: bytes


class Settlement(NamedTuple):
    """How one lease ended: see the ARGV of settle.lua."""

    id: bytes
    token: bytes
    outcome: str
    data: bytes
    delay_ms: int


class Verdict:
    """What settle.lua and renew.lua say of one lease."""

    STALE = 0
    ACCEPTED = 1
    ALREADY = 2
    CANCEL_ASKED = 2


class Limited:
    """What settle.lua says of a queue's rate limit."""

    NO = 0
    YES = 1
    HOLDS_BACK = 2


class Settled(NamedTuple):
    """The answer of settle.lua; `limited` is one of `Limited`."""

    now_ms: int
    verdicts: Sequence[int]
    claimed: Sequence[bytes]
    left: bytes
    limited: int


class Renewed(NamedTuple):
    """The answer of renew.lua: a `Verdict` for each, and since when the queue has been."""

    verdicts: Sequence[int]
    since_ms: int


class DueEntry(NamedTuple):
    """A recurring entry that is to be fired: see fire.lua."""

    name: bytes
    due_ms: int
    definition: bytes


class Maintained(NamedTuple):
    """The answer of maintain.lua; `next_due_ms` is None when nothing is waiting."""

    now_ms: int
    moved: int
    next_due_ms: int | None
    more: bool
    entries: Sequence[DueEntry] = ()


class Unparked(NamedTuple):
    """The answer of unpark.lua: where to go on (-1: at the end), and how many were released."""

    following: int
    released: int


class Snapshot(NamedTuple):
    """A task as the server has it, undecoded."""

    record: bytes
    extras: Mapping[bytes, bytes]


class Page(NamedTuple):
    """The answer of list.lua: where to go on (-1: at the end), and what was found."""

    position: int
    skip: int
    tasks: list[tuple[str, Snapshot]]
    met: list[bytes]


class QueueStatus(NamedTuple):
    """The answer of status.lua, undecoded where workers wrote it; `rate` is runs a second."""

    now_ms: int
    scheduled: int
    queued: int
    processing: int
    success: int
    failed: int
    cancelled: int
    parked: int
    workers: Mapping[bytes, bytes]
    parked_reasons: Mapping[bytes, bytes]
    memory: Mapping[bytes, bytes]
    rate: float


def enqueue(
    keys: QueueKeys, tasks: Iterable[NewTask], on_existing: str = "return"
) -> Command[list[bytes | None]]:
    """Adds tasks; answers None for each created one, else the record that already has its id.

    The answer raises IdConflict where what has the id is no record.
    """
    args: list[bytes | str | int] = [on_existing]
    for task in tasks:
        args.extend(task)
    return Command(_ENQUEUE, keys.script, args, partial(_parse_enqueued, args[1::4]))


def settle(
    keys: QueueKeys,
    worker: bytes,
    call: int,
    settlements: Iterable[Settlement],
    *,
    sync: int,
    asynchronous: int,
    keep_success: int,
    park_ms: int,
) -> Command[Settled]:
    """Ends leases and claims up to `sync` and `asynchronous` tasks."""
    args: list[bytes | str | int] = [
        worker,
        call,
        sync,
        asynchronous,
        keep_success,
        park_ms,
    ]
    for settlement in settlements:
        args.extend(settlement)
    return Command(_SETTLE, keys.script, args, Settled._make)


def renew(keys: QueueKeys, leases: Iterable[tuple[bytes, bytes]]) -> Command[Renewed]:
    """Extends leases (id, token)."""
    args: list[bytes | str | int] = []
    for lease in leases:
        args.extend(lease)
    return Command(_RENEW, keys.script, args, Renewed._make)


def maintain(keys: QueueKeys, limit: int = MOVED_AT_ONCE) -> Command[Maintained]:
    """Moves what has come due, so many of each kind at most."""
    return Command(_MAINTAIN, keys.script, [limit], _parse_maintained)


def cancel(keys: QueueKeys, task_id: str) -> Command[int]:
    """Cancels a task; answers 1 (cancelled or being stopped), 0 (had ended) or -1 (none)."""
    return Command(_CANCEL, keys.script, [task_id], int)


def progress(
    keys: QueueKeys, task_id: str, token: bytes, field: str, value: bytes
) -> Command[bool]:
    """Keeps a running task's progress ("p") or data ("d"); answers False when the lease is lost."""
    return Command(_PROGRESS, keys.script, [task_id, token, field, value], bool)


def read(keys: QueueKeys, ids: Sequence[str]) -> Command[list[Snapshot | None]]:
    """Reads whole tasks, at least the first; what is left out was too much for one call."""
    return Command(_READ, keys.script, ids, _parse_snapshots)


def wait(
    keys: QueueKeys, process: str, ids: Sequence[str], *, hurry: bool = False
) -> Command[list[Snapshot | bool]]:
    """Registers for the end of tasks; True: will be told, False: no such task, else its end.

    At least the first is answered; what is left out was too much for one call. With `hurry` sync
    tasks among them go to the head of their queue.
    """
    return Command(_WAIT, keys.script, [process, int(hurry), *ids], _parse_waits)


def hello(keys: QueueKeys, worker: str, ttl_ms: int, about: bytes) -> Command[int]:
    """Greets the server; answers its time in ms."""
    return Command(_HELLO, keys.script, [worker, ttl_ms, about], int)


def announce(keys: QueueKeys, event: EventType, worker: str) -> Command[int]:
    """Tells listeners of a worker, by its id in hex; answers the server's time in ms."""
    return Command(_ANNOUNCE, keys.script, [event, worker], int)


def unpark(
    keys: QueueKeys, start: int, names: Sequence[str], *, most: int = BATCH, lane: str = ""
) -> Command[Unparked]:
    """Releases some of the parked tasks of these names, of one lane or both."""
    return Command(_UNPARK, keys.script, [start, most, lane, *names], Unparked._make)


def ring(keys: QueueKeys, lane: str, member: str) -> Command[bool]:
    """Adds a marker; answers False when it was there."""
    return Command(_RING, keys.script, [lane, member], bool)


def status(keys: QueueKeys) -> Command[QueueStatus]:
    """Counts tasks and lists live workers."""
    return Command(_STATUS, keys.script, [], _parse_status)


def list_tasks(
    keys: QueueKeys, status: str, position: int, skip: int, limit: int, met: Sequence[bytes] = ()
) -> Command[Page]:
    """Lists up to `limit` tasks of a status, from where the last page ended."""
    return Command(_LIST, keys.script, [status, position, skip, limit, *met], _parse_page)


def remove(keys: QueueKeys, task_id: str) -> Command[bool]:
    """Removes a task; answers False when there is none."""
    return Command(_REMOVE, keys.script, [task_id], bool)


def retry(keys: QueueKeys, task_id: str, nonce: bytes) -> Command[int]:
    """Queues an ended task again; answers 1, 0 (has not ended) or -1 (none)."""
    return Command(_RETRY, keys.script, [task_id, nonce], int)


def pause(keys: QueueKeys) -> Command[bool]:
    """Has nothing claimed any more; answers False when it was so."""
    return Command(_CONTROL, keys.script, ["pause"], bool)


def resume(keys: QueueKeys) -> Command[bool]:
    """Has tasks claimed again; answers False when they were."""
    return Command(_CONTROL, keys.script, ["resume"], bool)


def limit_rate(keys: QueueKeys, points: int, duration_ms: int) -> Command[bool]:
    """Allows so many starts in any window of so long, or any number (0 points)."""
    return Command(_CONTROL, keys.script, ["limit", points, duration_ms], bool)


def purge(keys: QueueKeys) -> Command[tuple[int, bool]]:
    """Removes some of what waits; answers how many, and whether there may be more."""
    return Command(_PURGE, keys.script, [], _parse_purged)


def destroy(keys: QueueKeys) -> Command[bool]:
    """Removes some of everything; answers whether there may be more."""
    return Command(_DESTROY, keys.script, [], bool)


def snapshot(reply: Sequence[Any]) -> Snapshot:
    """Reads {record, extras} as scripts return and publish it."""
    return Snapshot(reply[0], pairs(reply[1]))


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Reads a flat list of field, value, …"""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _parse_enqueued(ids: Sequence[bytes | str | int], reply: Sequence[Any]) -> list[bytes | None]:
    for task_id, item in zip(ids, reply[1:], strict=True):
        if item == 0:
            raise IdConflict(
                f"task id {task_id!r} belongs to a record that cannot be read: choose another id"
            )
    return [None if item == 1 else item for item in reply[1:]]


def _parse_maintained(reply: Sequence[Any]) -> Maintained:
    now, moved, due, more, flat = reply
    entries = [DueEntry(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
    return Maintained(now, moved, None if due < 0 else due, bool(more), entries)


def _parse_snapshots(reply: Sequence[Any]) -> list[Snapshot | None]:
    return [snapshot(item) if item else None for item in reply]


def _parse_waits(reply: Sequence[Any]) -> list[Snapshot | bool]:
    return [bool(item) if isinstance(item, int | None) else snapshot(item) for item in reply]


def _parse_page(reply: Sequence[Any]) -> Page:
    position, skip, flat, met = reply
    found = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    tasks = [
        (task_id.decode(errors="replace"), Snapshot(record, pairs(extras)))
        for task_id, record, extras in found
    ]
    return Page(position, skip, tasks, met)


def _parse_purged(reply: Sequence[int]) -> tuple[int, bool]:
    removed, more = reply
    return removed, bool(more)


def _parse_status(reply: Sequence[Any]) -> QueueStatus:
    now, counts, workers, parked, memory, runs, span_ms = reply
    rate = runs * 1000 / span_ms
    return QueueStatus._make([now, *counts, pairs(workers), pairs(parked), pairs(memory), rate])
