"""Whether what happened, and what the server has, is what was promised: C1 to C9.

Written apart from the product's code: the layout of records and keys is stated here again, so that
a mistake in one is not repeated in the other. `check` is given the events of all processes and what
one queue holds, and answers with a sentence a violation, each beginning with the rule's name.

C1 what was enqueued for certain ends in one terminal state; what may have been is one task or none
C2 what succeeded had its effect, in the run that is recorded
C3 one completion is accepted a task, and of its newest run
C4 no two leases of one task overlap, and no lease is begun twice
C5 it starts no more often than 1 + what it was retried, stalled and interrupted
C6 (one child, no faults) it starts in the order it was enqueued, within a priority
C7 each record is in one place, and counters say what the places hold
C8 nothing starts before it is due
C9 nothing is known that nobody enqueued
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import redis

    from .history import Event

HEADER = 102
STATES = ("scheduled", "queued", "processing", "success", "failed", "cancelled", "parked")
ENDED = ("success", "failed", "cancelled")
#: The sorted set in which a record of a state has its place; queued ones are in lists.
PLACES = {
    "scheduled": "s",
    "processing": "l",
    "success": "ok",
    "failed": "failed",
    "cancelled": "cancelled",
    "parked": "parked",
}
LISTS = tuple(f"{lane}:{priority}" for lane in "ra" for priority in range(10))
#: What a queue keeps when all of its tasks are gone: memory, markers, workers and their claims.
OWN = ("m", "k:", "w", "w:", "c:", "starts", "pace")


@dataclass(slots=True)
class Record:
    """A task as the server has it.

    Attributes:
        state: One of STATES.
        priority: 0 to 9.
        starts: How often it was leased: the fence of its newest run.
        started: When that was, ms.
        due: When it was to be queued, ms; 0 at once.
        errors: Retries after errors.
        stalls: Retries after stalls.
        interruptions: Runs that shutdowns ended.
        result: Of a success, decoded as plain msgpack; None when it is more than that.
        attempts: Start and end of earlier runs, ms; the last ten.
    """

    state: str
    priority: int = 5
    starts: int = 1
    started: int = 0
    due: int = 0
    errors: int = 0
    stalls: int = 0
    interruptions: int = 0
    result: Any = None
    attempts: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Contents:
    """All that one queue has.

    Attributes:
        records: By id.
        places: For each id, the lists and sets that have it, without tombstones.
        counters: Of the queue's memory.
        tombstones: How many there are.
        broken: What was set aside, and why.
        keys: Names of all keys, without the queue's prefix.
    """

    records: dict[str, Record]
    places: dict[str, list[str]]
    counters: dict[str, int]
    tombstones: int
    broken: dict[str, str]
    keys: set[str]


def check(
    events: Sequence[Event],
    contents: Contents,
    *,
    drained: bool = True,
    in_order: bool = False,
    fences: bool = True,
) -> list[str]:
    """Every violation found, none when all is well.

    Args:
        events: Of all processes.
        contents: What the queue holds afterwards, nothing removed yet.
        drained: Whether everything must have ended.
        in_order: Whether one child ran without faults.
        fences: Whether each task returned the fence of its run, so that results tell of it.
    """
    found = list(_check_promises(events, contents, drained=drained))
    found += _check_effects(events, contents)
    found += _check_completions(contents, fences=fences)
    found += _check_leases(events, contents)
    found += _check_starts(events, contents)
    found += _check_order(events, contents) if in_order else []
    found += _check_places(contents)
    found += _check_due(events, contents)
    found += _check_known(events, contents)
    return found


def repeated_effects(events: Iterable[Event]) -> int:
    """How many tasks had their effect more than once."""
    effects = Counter(event.id for event in events if event.name == "effect")
    return sum(count > 1 for count in effects.values())


def leftovers(contents: Contents) -> set[str]:
    """Keys that should be gone once every task is."""
    return {key for key in contents.keys if not any(_is_own(key, name) for name in OWN)}


def read_contents(client: redis.Redis, namespace: str, queue: str = "default") -> Contents:
    """Reads all that a queue has; meant for one that nobody is changing."""
    prefix = f"conveyor:{{{namespace}:{queue}}}:"
    keys = {
        key.decode(errors="replace").removeprefix(prefix)
        for key in client.scan_iter(f"{prefix}*", 5000)
    }
    ids = sorted(key[2:] for key in keys if key.startswith("t:"))
    tombstones = Counter({k.decode(): int(v) for k, v in _hash(client, prefix + "tombstones")})
    memory = {name.decode(): value for name, value in _hash(client, prefix + "m")}
    return Contents(
        records=_read_records(client, prefix, ids, keys),
        places=_read_places(client, prefix, tombstones),
        counters={name: int(value) for name, value in memory.items() if value.isdigit()},
        tombstones=tombstones.total(),
        broken={id_.decode(): reason.decode() for id_, reason in _hash(client, prefix + "broken")},
        keys=keys,
    )


def parse_record(data: bytes, attempts: Mapping[bytes, bytes]) -> Record:
    """Reads a packed record; offsets as in the table of lib/record.lua, but from 0."""

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], "little")

    state = STATES[data[2]]
    result = data[HEADER + number(96, 2) + number(98, 4) :] if state == "success" else b""
    return Record(
        state=state,
        priority=data[1],
        starts=number(10, 4),
        started=number(22, 6),
        due=number(34, 6),
        errors=number(52, 4),
        stalls=number(56, 4),
        interruptions=number(60, 4),
        result=_plain(result),
        attempts=list(_attempts(attempts)),
    )


def _check_promises(events: Sequence[Event], contents: Contents, *, drained: bool) -> Iterator[str]:
    certain = {event.id for event in events if event.name == "enq-ok"}
    for task_id in sorted(certain):
        record = contents.records.get(task_id)
        if record is None:
            yield f"C1: {task_id} was enqueued and is gone"
        elif drained and record.state not in ENDED:
            yield f"C1: {task_id} has not ended, it is {record.state}"
    if drained:
        for task_id in sorted({e.id for e in events if e.name == "enq-unknown"} - certain):
            record = contents.records.get(task_id)
            if record is not None and record.state not in ENDED:
                yield f"C1: {task_id} has not ended, it is {record.state}"


def _check_effects(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    effects = {(event.id, event.fence) for event in events if event.name == "effect"}
    for task_id, record in contents.records.items():
        if record.state == "success" and (task_id, record.starts) not in effects:
            yield f"C2: {task_id} succeeded in run {record.starts}, which had no effect"


def _check_completions(contents: Contents, *, fences: bool) -> Iterator[str]:
    ended = Counter(record.state for record in contents.records.values())
    for state in ENDED:
        accepted = contents.counters.get(PLACES[state], 0)
        if accepted != ended[state]:
            yield f"C3: {accepted} ends as {state} were accepted, of {ended[state]} tasks"
    for task_id, record in contents.records.items():
        if fences and record.state == "success" and record.result != record.starts:
            yield f"C3: {task_id} has the result of run {record.result}, not of {record.starts}"


def _check_leases(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    starts = Counter((event.id, event.fence) for event in events if event.name == "start")
    for (task_id, fence), count in starts.items():
        if count > 1:
            yield f"C4: run {fence} of {task_id} was begun {count} times"
        if task_id in contents.records and fence > contents.records[task_id].starts:
            yield f"C3: run {fence} of {task_id} is newer than the recorded one"
    for task_id, record in contents.records.items():
        following = [start for start, _ in record.attempts[1:]] + [record.started]
        for (start, end), later in zip(record.attempts, following, strict=False):
            # The last attempt is the recorded run itself, unless another has begun since.
            if later != start and later < end:
                yield f"C4: {task_id} was leased at {later}, while it was until {end}"


def _check_starts(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    starts = Counter(event.id for event in events if event.name == "start")
    for task_id, count in starts.items():
        record = contents.records.get(task_id)
        if record is None:
            continue
        allowed = 1 + record.errors + record.stalls + record.interruptions
        if count > allowed:
            yield f"C5: {task_id} started {count} times, {allowed} are accounted for"


def _check_order(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    enqueued = dict.fromkeys(event.id for event in events if event.name == "enq-try")
    started = dict.fromkeys(event.id for event in events if event.name == "start")
    for priority in range(10):
        expected, actual = (
            [i for i in order if i in started and _has_priority(contents, i, priority)]
            for order in (enqueued, started)
        )
        for first, second in zip(expected, actual, strict=False):
            if first != second:
                yield f"C6: at priority {priority} {second} started before {first}"
                break


def _check_places(contents: Contents) -> Iterator[str]:
    for task_id, record in contents.records.items():
        places = contents.places.get(task_id, [])
        if len(places) != 1:
            yield f"C7: {task_id} ({record.state}) is in {len(places)} places: {places}"
        elif record.state == "queued" and not _is_list_of(places[0], record.priority):
            yield f"C7: {task_id} is queued but its place is {places[0]}"
        elif record.state != "queued" and places[0] != PLACES[record.state]:
            yield f"C7: {task_id} is {record.state} but its place is {places[0]}"
    for task_id, places in contents.places.items():
        if task_id not in contents.records and places:
            yield f"C7: {task_id} is in {places} and has no record"
    if contents.counters.get("tombstones", 0) != contents.tombstones:
        counted = contents.counters.get("tombstones", 0)
        yield f"C7: {counted} tombstones were counted, there are {contents.tombstones}"
    for task_id, reason in contents.broken.items():
        yield f"C7: {task_id} was set aside: {reason}"
    for key in contents.keys:
        if key.startswith("x:") and key[2:] not in contents.records:
            yield f"C7: {key} belongs to no record"


def _check_due(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    for event in events:
        record = contents.records.get(event.id)
        # A retry's due moment takes the place of the first one's, so only first runs are judged.
        if event.name == "start" and record is not None and not record.attempts:
            early = record.due - event.moment // 1_000_000
            if early > 0:
                yield f"C8: {event.id} started {early} ms before it was due"


def _check_known(events: Sequence[Event], contents: Contents) -> Iterator[str]:
    known = {event.id for event in events if event.name == "enq-try"}
    heard = {event.id for event in events} | set(contents.records) | set(contents.places)
    for task_id in sorted(heard - known):
        yield f"C9: nobody enqueued {task_id}"


def _has_priority(contents: Contents, task_id: str, priority: int) -> bool:
    record = contents.records.get(task_id)
    return record is not None and record.priority == priority


def _is_list_of(place: str, priority: int) -> bool:
    return place in LISTS and place.endswith(f":{priority}")


def _is_own(key: str, name: str) -> bool:
    return key.startswith(name) if name.endswith(":") else key == name


def _hash(client: redis.Redis, key: str) -> list[tuple[bytes, bytes]]:
    fields: Any = client.hgetall(key)
    return list(fields.items())


def _read_records(
    client: redis.Redis, prefix: str, ids: Sequence[str], keys: set[str]
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for start in range(0, len(ids), 1000):
        some = ids[start : start + 1000]
        values: Any = client.mget([f"{prefix}t:{task_id}" for task_id in some])
        for task_id, data in zip(some, values, strict=True):
            extra = f"x:{task_id}"
            attempts = dict(_hash(client, prefix + extra)) if extra in keys else {}
            records[task_id] = parse_record(data, attempts)
    return records


def _read_places(
    client: redis.Redis, prefix: str, tombstones: Mapping[str, int]
) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name in LISTS:
        ids: Any = client.lrange(prefix + name, 0, -1)
        for task_id in ids:
            places[task_id.decode()].append(name)
    for task_id, count in tombstones.items():
        del places[task_id][:count]
    for name in PLACES.values():
        ids = client.zrange(prefix + name, 0, -1)
        for task_id in ids:
            places[task_id.decode()].append(name)
    return dict(places)


def _attempts(fields: Mapping[bytes, bytes]) -> Iterator[tuple[int, int]]:
    count = int(fields.get(b"n", 0))
    for number in range(max(0, count - 10), count):
        data = fields[b"a%d" % (number % 10)]
        yield int.from_bytes(data[:6], "little"), int.from_bytes(data[6:12], "little")


def _plain(result: bytes) -> Any:
    try:
        return msgpack.unpackb(result)
    except (ValueError, msgpack.UnpackException):
        return None
