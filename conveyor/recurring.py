"""Recurring tasks: how entries are added, declared, listed and fired.

An entry is kept by the queue of its task: when (`recurrence.py`) and the packed task to enqueue.
The server tells an orchestrator which entries are due, the orchestrator computes which moments have
come and which one follows, and `fire.lua` enqueues and moves on in one step, if the entry is still
as it was seen. So any number of orchestrators may try, and one of them fires.

An orchestrator that dies before that has changed nothing, and another one fires. When none lives,
the entry stays due, and `catch_up` says what becomes of the moments that were missed.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from conveyor.broker import recurring as commands
from conveyor.broker.broker import read_names
from conveyor.broker.commands import BATCH, BATCH_BYTES, NewTask
from conveyor.broker.keys import check_name, known_queues
from conveyor.errors import ConfigurationError, ConveyorError, SerializationError
from conveyor.moments import from_ms
from conveyor.options import RECURRING_OPTIONS, refuse_unknown
from conveyor.records import payload_of
from conveyor.recurrence import Entry, Recurrence, RecurringRecord, make_recurrence, moment_text
from conveyor.task import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conveyor.broker.commands import Command, DueEntry
    from conveyor.broker.keys import QueueKeys
    from conveyor.broker.link import Link
    from conveyor.broker.recurring import Declared, ListedEntry
    from conveyor.client import Client, Steps
    from conveyor.task import BaseTask

log = logging.getLogger("conveyor.orchestrator")

#: How long an entry outlives the last process that declares it, in ms.
LAPSE_MS: Final = 3_600_000
#: Seconds between two declarations of a process, and until one that was refused is tried again.
PROLONG: Final = 1_200.0
REFUSED: Final = 60.0
#: Ms after which an entry that cannot be read here is looked at again: thrice before it is missed.
POSTPONED_MS: Final = 20_000


class NewEntry(NamedTuple):
    """An entry on its way to the server."""

    name: str
    queue: str
    recurrence: Recurrence
    definition: bytes


def make_entry(client: Client, name: str, call: Call[Any], options: Mapping[str, Any]) -> NewEntry:
    """Checks and packs an entry; `options` are `RecurringOptions`.

    Raises:
        ConfigurationError: Something of it cannot work.
        SerializationError: An argument of the call cannot be encoded.
    """
    check_name(name, "recurring name")
    what = f"recurring {name!r}"
    refuse_unknown(options, RECURRING_OPTIONS, what)
    if not isinstance(call, Call):
        raise ConfigurationError(f"{what}: {call!r} is not a Call: make one with task.call(...)")
    if call.task.client is not client:
        raise ConfigurationError(f"{what}: {call.task.name} belongs to another app: add it there")
    if call.id or call.task.plan().id is not None:
        raise ConfigurationError(f"{what}: each firing has an id of its own: leave id= out")
    return _pack(name, call, _recurrence(client, what, options))


def check_declared(task: BaseTask[..., Any]) -> None:
    """Raises ConfigurationError if what the decorator says of recurrence cannot work."""
    if RECURRING_OPTIONS.isdisjoint(task.definition.options):
        return
    _recurrence(task.client, f"task {task.name}", task.definition.options)
    try:
        task.definition.signature.bind((), {})
    except TypeError as error:
        raise ConfigurationError(
            f"task {task.name} needs arguments, so its decorator cannot have it recur: give them"
            " defaults, or use app.add_recurring(name, task.call(...), ...)"
        ) from error


def declared_entry(task: BaseTask[..., Any]) -> NewEntry | None:
    """The entry that a task's decorator declares, or None."""
    if RECURRING_OPTIONS.isdisjoint(task.definition.options):
        return None
    recurrence = _recurrence(task.client, f"task {task.name}", task.definition.options)
    return _pack(declared_name(task.name), Call(task, (), {}), recurrence)


def declared_name(task: str) -> str:
    """The name of the entry that a task's decorator declares: the task's own, where it is one.

    Example:
        >>> declared_name("app.tick"), declared_name("app.main.<locals>.tick")
        ('app.tick', 'app.main._locals_.tick-c25c122d')
    """
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", task):
        return task
    digest = hashlib.sha1(task.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)[-55:]}-{digest}"


def add_entry(client: Client, entry: NewEntry) -> Steps[None]:
    """Keeps an entry until it is removed; one of this name on another queue gives way."""
    yield ("SADD", known_queues(client.namespace), entry.queue)
    keys, due = client.broker.keys(entry.queue), None
    while not (answer := (yield _declare(keys, entry, due))).kept:
        due = entry.recurrence.next_after(answer.now_ms)
    for queue in read_names((yield ("SMEMBERS", known_queues(client.namespace)))):
        if queue != entry.queue:
            yield commands.forget(client.broker.keys(queue), entry.name)


def remove_entry(client: Client, name: str, queue: str | None) -> Steps[bool]:
    """Removes an entry from a queue, or from whichever has it; False when there is none."""
    check_name(name, "recurring name")
    if queue is None:
        queues = read_names((yield ("SMEMBERS", known_queues(client.namespace))))
    else:
        queues = [check_name(queue, "queue")]
    removed = False
    for each in queues:
        removed = (yield commands.forget(client.broker.keys(each), name)) or removed
    return removed


def list_entries(client: Client, queue: str) -> Steps[list[RecurringRecord]]:
    """The entries of a queue, by the moment at which they are due next."""
    keys, start = client.broker.keys(check_name(queue, "queue")), 0
    records: list[RecurringRecord] = []
    while start >= 0:
        start, listed = yield commands.list_recurring(keys, start)
        records += _records(queue, listed)
    return records


def fire_entry(keys: QueueKeys, due: DueEntry, now_ms: int) -> Command[int]:
    """What an orchestrator does with an entry that is due.

    One that cannot be read here may be one of a newer version, or of a time zone that this host
    lacks: it is put off for a while, so that an orchestrator which can read it finds it as it was,
    and this one has nothing to do in between.
    """
    name = due.name.decode(errors="replace")
    try:
        entry = Entry.unpack(due.definition)
        most = max(1, min(BATCH, BATCH_BYTES // len(entry.record)))
        moments, following = entry.recurrence.firings(due.due_ms, now_ms, most)
    except ConveyorError as error:
        log.error("recurring %r on %s cannot be fired: %s", name, keys.queue, error)
        return commands.fire(keys, due, now_ms + POSTPONED_MS, "postpone", ())
    tasks = [
        NewTask(f"{name}@{moment_text(ms)}", str(ms), entry.expires, entry.record) for ms in moments
    ]
    return commands.fire(keys, due, following, entry.recurrence.overlap, tasks)


class Declarer:
    """Declares what the decorators of one queue's tasks say, for as long as the process lives.

    At first what it says replaces what is there; later, when an old process may be the one that
    speaks, it only keeps alive what is.

    Args:
        keys: The queue's.
        tasks: All that the process knows, by name.
    """

    def __init__(self, keys: QueueKeys, tasks: Mapping[str, BaseTask[..., Any]]) -> None:
        self._keys = keys
        self._tasks = tasks
        self._entries: list[NewEntry] | None = None
        self._said: set[str] = set()
        self.due = 0.0

    def ring(self) -> None:
        """The server may have forgotten everything."""
        self.due = 0.0

    def deadline(self, link: Link) -> float | None:
        """When `run` has something to do, monotonic."""
        return self.due if link.connected else None

    def run(self, link: Link, now: float) -> None:
        """Declares, when it is time to."""
        if now < self.due or not link.connected:
            return
        if self._entries is None:
            found = [declared_entry(task) for task in self._tasks.values()]
            self._entries = [one for one in found if one and one.queue == self._keys.queue]
        self.due = now + PROLONG if self._entries else math.inf
        for entry in self._entries:
            self._declare(link, entry)

    def _declare(self, link: Link, entry: NewEntry, due: int | None = None) -> None:
        replace = entry.name not in self._said
        command = _declare(self._keys, entry, due, lapse_ms=LAPSE_MS, replace=replace)
        link.send(command, functools.partial(self._answered, link, entry))

    def _answered(self, link: Link, entry: NewEntry, answer: Declared | None) -> None:
        if answer is None:
            self.due = min(self.due, time.monotonic() + REFUSED)
        elif answer.kept:
            self._said.add(entry.name)
        else:
            self._declare(link, entry, entry.recurrence.next_after(answer.now_ms))


def _declare(
    keys: QueueKeys, entry: NewEntry, due: int | None, *, lapse_ms: int = 0, replace: bool = True
) -> Command[Declared]:
    return commands.declare(
        keys, entry.name, entry.definition, next_due_ms=due, lapse_ms=lapse_ms, replace=replace
    )


def _recurrence(client: Client, what: str, given: Mapping[str, Any]) -> Recurrence:
    return make_recurrence(
        what,
        cron=given.get("cron"),
        every=given.get("every"),
        timezone=given.get("timezone"),
        catch_up=given.get("catch_up", "skip"),
        overlap=given.get("overlap", "allow"),
        app_timezone=client.timezone,
    )


def _pack(name: str, call: Call[Any], recurrence: Recurrence) -> NewEntry:
    sending = call.pack()
    definition = Entry(recurrence, sending.task.expires, sending.task.record).pack()
    return NewEntry(name, sending.queue, recurrence, definition)


def _records(queue: str, listed: list[ListedEntry]) -> list[RecurringRecord]:
    """Those that can be read; the others, perhaps of a newer version, are logged and left out."""
    records: list[RecurringRecord] = []
    for one in listed:
        try:
            records.append(_record(queue, one, Entry.unpack(one.definition)))
        except SerializationError as error:
            name = one.name.decode(errors="replace")
            log.warning("recurring %r on %s is not listed: %s", name, queue, error)
    return records


def _record(queue: str, listed: ListedEntry, entry: Entry) -> RecurringRecord:
    when = entry.recurrence
    return RecurringRecord(
        name=listed.name.decode(),
        task=payload_of(entry.record).name,
        queue=queue,
        cron=when.cron,
        every=None if when.every_ms is None else when.every_ms / 1000,
        timezone=None if when.cron is None else when.timezone,
        catch_up=when.catch_up,
        overlap=when.overlap,
        next_due_at=from_ms(listed.due_ms),
        last_due_at=from_ms(int(listed.last.split()[0])) if listed.last else None,
        declared=bool(listed.declared),
    )
