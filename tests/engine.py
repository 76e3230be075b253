"""A queue driven by hand: a test plays its workers, its orchestrator and its clock.

Everything that moves a task is a command of the product, run on a real server. The clock is the
queue's own: its time never runs backwards, so a moment that is written ahead of the real time
stands still there until a test moves it on. Nothing has to be slept for.

    engine = Engine(app)
    worker = Worker(engine)
    engine.put("a", error_retry_limit=1)
    (lease,) = worker.claim()
    worker.end(lease, "error", pack_error("ValueError", "no"), delay_ms=1000)
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["r:5"]
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from conveyor.broker import commands
from conveyor.broker.commands import Command, Maintained, NewTask, Settled, Settlement
from conveyor.moments import from_ms
from conveyor.packing import pack_error
from conveyor.records import UNLIMITED, Limits, Template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from conveyor import Conveyor
    from conveyor.records import TaskRecord

T = TypeVar("T")

#: The states of a record, as lib/record.lua numbers them.
SCHEDULED, QUEUED, PROCESSING, SUCCESS, FAILED, CANCELLED, PARKED = range(7)
#: Every list and sorted set that a task can be in.
LISTS = tuple(f"{lane}:{priority}" for lane in "ra" for priority in range(10))
SETS = ("s", "l", "parked", "ok", "failed", "cancelled")
#: How a run ends that fails.
ERROR = pack_error("ValueError", "no")
#: How far ahead of the server the clock of a test is set.
_AHEAD_MS = 86_400_000
#: Seconds of notice that a lease is given before it is taken back, and a little more.
NOTICE = 0.501
DEFAULTS = Limits(
    priority=5,
    flags=0,
    retry_limit=UNLIMITED,
    error_retry_limit=0,
    stall_retry_limit=3,
    stall_ms=15_000,
    acknowledgement_ms=5_000,
    retain_success_ms=3_600_000,
    retain_failed_ms=604_800_000,
)


class Lease(NamedTuple):
    """A claimed task, as its worker has it."""

    id: str
    token: bytes
    record: bytes


class Engine:
    """One queue of an app, its clock stopped.

    Args:
        app: Whose.
        queue: Which.
        stopped: False leaves the clock to the server.
    """

    def __init__(self, app: Conveyor, queue: str = "default", *, stopped: bool = True) -> None:
        self.app = app
        self.broker = app.client.broker
        self.queue = queue
        self.keys = self.broker.keys(queue)
        if stopped:
            seconds, _ = self.call("TIME")
            self.call("HSET", self.keys.memory, "seen", int(seconds) * 1000 + _AHEAD_MS)

    def run(self, command: Command[T]) -> T:
        """What a command of the product answers."""
        return self.broker.run(command)

    def call(self, *command: Any) -> Any:
        """What a plain command of the server answers, undecoded."""
        return self.broker.execute(command)

    def key(self, name: str) -> str:
        """The key of the queue that the tables call `Q:name`."""
        return self.keys.prefix + name

    @property
    def now_ms(self) -> int:
        """The time on the stopped clock."""
        return int(self.call("HGET", self.keys.memory, "seen"))

    @property
    def now(self) -> datetime:
        """The same, as records have it."""
        return from_ms(self.now_ms)

    def advance(self, seconds: float) -> None:
        """Moves the stopped clock on."""
        self.call("HINCRBY", self.keys.memory, "seen", round(seconds * 1000))

    def in_(self, seconds: float) -> datetime:
        """The moment so many seconds from now."""
        return self.now + timedelta(seconds=seconds)

    def new(
        self,
        task_id: str,
        *args: Any,
        due: str = "",
        expires: str = "",
        name: str = "app.add",
        options: bytes = b"",
        **limits: Any,
    ) -> NewTask:
        """A task to enqueue, with what differs from `DEFAULTS`."""
        call = self.app.client.codec.encode_call(f"{name}()", args, {})
        template = Template(name, replace(DEFAULTS, **limits), options)
        return NewTask(task_id, due, expires, template.record(call))

    def enqueue(self, *tasks: NewTask, on_existing: str = "return") -> list[bytes | None]:
        """Enqueues in one call; None for each that was created."""
        return self.run(commands.enqueue(self.keys, tasks, on_existing))

    def put(self, *ids: str, args: tuple[Any, ...] = (), **about: Any) -> None:
        """Enqueues tasks that do not exist yet, all alike."""
        assert self.enqueue(*(self.new(one, *args, **about) for one in ids)) == [None] * len(ids)

    def cancel(self, task_id: str) -> int:
        """See cancel.lua."""
        return self.run(commands.cancel(self.keys, task_id))

    def maintain(self, limit: int = commands.BATCH) -> Maintained:
        """What an orchestrator does."""
        return self.run(commands.maintain(self.keys, limit))

    def run_out(self, seconds: float) -> None:
        """Leaves leases of so many seconds to run out, and the notice that they are given then."""
        for wait in (seconds, NOTICE):
            self.advance(wait)
            self.maintain()

    def task(self, task_id: str) -> TaskRecord:
        """The task as users read it."""
        found = self.app.client.task(self.queue, task_id)
        assert found is not None, f"{task_id} is gone"
        return found

    def exists(self, task_id: str) -> int:
        """How many of the keys of one task there are."""
        return int(self.call("EXISTS", self.key(f"t:{task_id}"), self.key(f"x:{task_id}")))

    def ready(self, name: str = "r:5") -> list[str]:
        """The ids in a ready list, tombstones too."""
        return [one.decode() for one in self.call("LRANGE", self.key(name), 0, -1)]

    def score(self, name: str, task_id: str) -> int | None:
        """The score of an id in a sorted set, or None when it is not there."""
        score = self.call("ZSCORE", self.key(name), task_id)
        return None if score is None else math.ceil(float(score))

    def places(self, task_id: str) -> list[str]:
        """Where an id is: a sound one is in one place."""
        lists = [name for name in LISTS for one in self.ready(name) if one == task_id]
        for _ in range(int(self.call("HGET", self.key("tombstones"), task_id) or 0)):
            lists.pop()
        return lists + [name for name in SETS if self.score(name, task_id) is not None]

    def memory(self) -> dict[str, int]:
        """The counters and moments of the queue's memory."""
        fields = self.call("HGETALL", self.keys.memory)
        return {name.decode(): int(value) for name, value in fields.items() if value.isdigit()}

    def broken(self) -> dict[str, str]:
        """What was set aside, and why."""
        fields = self.call("HGETALL", self.key("broken"))
        return {name.decode(): reason.decode() for name, reason in fields.items()}

    def counts(self) -> dict[str, int]:
        """What status.lua counts, but for zeros."""
        status = self.run(commands.status(self.keys))
        counts = dict(zip(status._fields[1:8], status[1:8], strict=True))
        return {name: count for name, count in counts.items() if count}

    def markers(self) -> set[str]:
        """Which of the workers' and orchestrators' markers are there."""
        return {name for name in "rao" if self.call("EXISTS", self.keys.marker(name))}

    def take_markers(self) -> None:
        """Takes all markers, as those who block on them do."""
        self.call("DEL", *(self.keys.marker(name) for name in "rao"))


class Worker:
    """A worker that does what it is told.

    Args:
        engine: The queue it works on.
        name: Its id, four bytes.
    """

    def __init__(self, engine: Engine, name: bytes = b"work") -> None:
        self.engine = engine
        self.name = name
        self.calls = 0

    def send(
        self,
        *settlements: Settlement,
        sync: int = 0,
        asynchronous: int = 0,
        keep_success: int = 1_000_000,
        park_ms: int = 86_400_000,
        again: bool = False,
    ) -> Settled:
        """One call of settle.lua; `again` repeats the number of the last call."""
        self.calls += not again
        command = commands.settle(
            self.engine.keys, self.name, self.calls, settlements,
            sync=sync, asynchronous=asynchronous, keep_success=keep_success, park_ms=park_ms,
        )  # fmt: skip
        return self.engine.run(command)

    def claim(self, sync: int = 1, asynchronous: int = 0, *, again: bool = False) -> list[Lease]:
        """Claims, as in a call that settles nothing."""
        return leases(self.send(sync=sync, asynchronous=asynchronous, again=again))

    def end(self, lease: Lease, outcome: str, data: bytes = b"", *, delay_ms: int = 0) -> int:
        """Settles one lease and claims nothing; the verdict."""
        (verdict,) = self.send(settlement(lease, outcome, data, delay_ms=delay_ms)).verdicts
        return verdict

    def run(self, task_id: str, outcome: str, data: bytes = b"", *, delay_ms: int = 0) -> Lease:
        """Claims the next task, which must be this one, and ends it so."""
        (lease,) = self.claim()
        assert lease.id == task_id
        assert self.end(lease, outcome, data, delay_ms=delay_ms) == commands.Verdict.ACCEPTED
        return lease

    def renew(self, *held: Lease) -> Sequence[int]:
        """See renew.lua."""
        asked = [(lease.id.encode(), lease.token) for lease in held]
        return self.engine.run(commands.renew(self.engine.keys, asked)).verdicts


def settlement(lease: Lease, outcome: str, data: bytes = b"", *, delay_ms: int = 0) -> Settlement:
    """How a lease ended, for `Worker.send`."""
    return Settlement(lease.id.encode(), lease.token, outcome, data, delay_ms)


def leases(settled: Settled) -> list[Lease]:
    """What a call of settle.lua claimed."""
    claimed = settled.claimed
    return [
        Lease(task_id.decode(), record[10:22], record)
        for task_id, record in zip(claimed[::2], claimed[1::2], strict=True)
    ]


def ids(held: list[Lease]) -> list[str]:
    """The ids of leases, in order."""
    return [lease.id for lease in held]
