"""Every key, in one table.

All keys of a queue share the hash tag `{namespace:queue}`, so they live in one slot of a cluster.
The scripts make them from `memory`, the one key they are given; Python needs only those below.

| key                | type   | holds                                                                   |
|--------------------|--------|-------------------------------------------------------------------------|
| `Q:absent`         | -      | never there: a cluster refuses scripts while it moves the queue's slot |
| `Q:m`              | hash   | memory: last time `seen`, `since` when the queue has been, next due moments, server run id, counters; `paused` since when, `limit` (points:ms), `hold`: until when nothing is claimed; `unheard`: nobody listens |
| `Q:t:<id>`         | string | one record (see `records.py`)                                           |
| `Q:x:<id>`         | hash   | extras: p progress, d data, e error, n and a0-a9 attempts, w waiters, u parked because, r the call that retried it |
| `Q:r:<0-9>`, `Q:a:<0-9>` | list | ready ids, sync (or unknown) and async, by priority               |
| `Q:tombstones`     | hash   | ids that ended while still in a ready list, and how often               |
| `Q:l`              | zset   | leased ids by the end of their lease: the running tasks                 |
| `Q:s`, `Q:e`       | zset   | scheduled ids by due time, expiring ids by expiry                       |
| `Q:ok`, `Q:failed`, `Q:cancelled` | zset | ended ids by the moment their record is removed          |
| `Q:gone`           | zset   | calls that ended without a record and may be sent again, by creation    |
| `Q:parked`         | zset   | ids whose name no worker knew, by the moment they are given up          |
| `Q:pace`           | hash   | how many runs ended in each ten seconds of the last minute              |
| `Q:starts`         | list   | moments of the last starts, while there is a rate limit                 |
| `Q:broken`         | hash   | ids set aside, and why                                                  |
| `Q:recurring`      | hash   | recurring entries: definitions by name                                  |
| `Q:recurring:due`, `Q:recurring:lapse` | zset | their names by next due moment; those that code declares by the moment they lapse |
| `Q:recurring:since` | hash  | the moment of each that whoever saw it due could not read, and put off  |
| `Q:recurring:last` | hash   | moment and id of the last task of each                                  |
| `Q:k:r`, `Q:k:a`, `Q:k:o` | zset | markers that idle workers and orchestrators block on             |
| `Q:k:<worker>`     | zset   | mailbox of one worker: runs to stop, and more (`lib/mail.lua`)          |
| `Q:c:<worker>`     | string | the worker's last claim, so that it can be repeated                     |
| `Q:w`, `Q:w:<worker>` | set, string | live workers, for people only; the string's expiry tells who lives |
| `Q:d:<process>`    | sharded channel | outcomes that a process waits for                              |
| `Q:events`         | sharded channel | events, for listeners                                          |
| `conveyor:{namespace}:queues` | set | known queues, for people only                                  |
"""

from __future__ import annotations

import re

from conveyor.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Longest custom id, in bytes of UTF-8.
MAX_ID = 256


def check_name(name: str, what: str) -> str:
    """Returns the name of a queue or namespace if it is a valid one.

    Raises:
        ConfigurationError: It has other characters than letters, digits and ``_.-``, or not 1 to 64.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not valid: use 1 to 64 letters, digits, '_', '.' or '-'"
        )
    return name


def check_id(task_id: str) -> str:
    """Returns a custom task id if it is a valid one.

    Raises:
        ConfigurationError: It is empty, too long, or not printable.
    """
    if not isinstance(task_id, str) or not task_id or not task_id.isprintable():
        raise ConfigurationError(f"task id {task_id!r} is not valid: use printable text")
    if len(task_id.encode()) > MAX_ID:
        raise ConfigurationError(f"task id {task_id[:20]!r}… is longer than {MAX_ID} bytes")
    return task_id


def check_text(task_id: str) -> str:
    """Returns an id that is text, though maybe not one that a task can have.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(task_id, str):
        raise TypeError(
            f"task id {task_id!r} is no text: use the id that a TaskResult or a TaskRecord has"
        )
    return task_id


def check_given_id(task_id: str) -> str:
    """Returns the id of a task that is asked for, if a task can have it.

    Raises:
        TypeError: It is no text.
        ConfigurationError: See `check_id`.
    """
    return check_id(check_text(task_id))


def known_queues(namespace: str) -> str:
    """The set of queues that a namespace has had tasks or workers on."""
    return f"conveyor:{{{namespace}}}:queues"


class QueueKeys:
    """The keys of one queue."""

    __slots__ = ("memory", "namespace", "prefix", "queue", "script")

    def __init__(self, namespace: str, queue: str) -> None:
        self.namespace = namespace
        self.queue = queue
        self.prefix = f"conveyor:{{{namespace}:{queue}}}:"
        self.memory = self.prefix + "m"
        self.script = (self.memory, self.prefix + "absent")

    def ready(self, lane: str) -> list[str]:
        """The ready lists of a lane ("r" or "a"), one per priority."""
        return [f"{self.prefix}{lane}:{priority}" for priority in range(10)]

    def marker(self, name: str) -> str:
        """What to block on: "r", "a", "o", or a worker's id in hex (its mailbox)."""
        return f"{self.prefix}k:{name}"

    def worker(self, worker: str) -> str:
        """What a worker says of itself, for as long as it lives."""
        return f"{self.prefix}w:{worker}"

    def outcomes(self, process: str) -> str:
        """The channel on which a process hears how tasks ended."""
        return f"{self.prefix}d:{process}"

    @property
    def events(self) -> str:
        """The channel on which listeners hear what happens in the queue."""
        return f"{self.prefix}events"
