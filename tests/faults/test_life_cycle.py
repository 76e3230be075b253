"""FAULTS 34: whatever callers, workers, orchestrators and clocks do, a task has one place.

Hypothesis tells a real server and the model in `life_cycle.py` the same steps, in any order, with
tokens that are current, stale or of another run, and calls that are repeated as after a lost reply.
The answers must be equal, and after every step what the server holds is read and compared.

300 examples in each run; 10,000 with CONVEYOR_LONG=1 in the environment.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from engine import LISTS, Engine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from servers import Server

from conveyor import Conveyor
from conveyor.broker import commands
from conveyor.records import FOREVER, HEADER, UNLIMITED, Flag, Limits

from .lab import LONG
from .life_cycle import ENDED, PARKED, QUEUED, SETS, Model, Settlement, Task

if TYPE_CHECKING:
    from conveyor.broker.commands import Command, Settled

PARK_MS = 50_000
WORKERS = (b"one ", b"two ")
KNOWN = "app.known"
HIGHEST = 15
OUTCOMES = (
    "success", "success", "error", "timeout", "fatal", "stall", "interrupted", "cancelled",
    "release", "park",
)  # fmt: skip


class NewTask(NamedTuple):
    """What is drawn of a task to enqueue."""

    number: int
    version: int
    name: str
    limits: Limits
    due: str
    expires: str


retries = st.sampled_from((9, UNLIMITED, 2, 1, 0))
limits = st.builds(
    Limits,
    priority=st.sampled_from((0, 5, 9)),
    flags=st.sampled_from((0, 0, 0, Flag.ASYNC, Flag.REMOVE_ON_SUCCESS, Flag.REMOVE_ON_FAILED)),
    retry_limit=st.sampled_from((UNLIMITED, UNLIMITED, 0, 2)),
    error_retry_limit=retries,
    stall_retry_limit=retries,
    stall_ms=st.sampled_from((1000, 15_000, 1, UNLIMITED)),
    acknowledgement_ms=st.just(5000),
    retain_success_ms=st.sampled_from((3_600_000, 10_000, 1, FOREVER, 0)),
    retain_failed_ms=st.sampled_from((3_600_000, 10_000, 1, FOREVER, 0)),
)
#: A moment: none, so long after now (or after it is due), or so far from now.
dues = st.sampled_from(("", "", "", "", "+1", "+1000", "+20000", "@-5", "@3000"))
expiries = st.sampled_from(("", "", "", "+20000", "+20000", "+1000", "+1", "@0"))
new_tasks = st.builds(
    NewTask,
    number=st.integers(0, HIGHEST),
    version=st.integers(0, 1),
    name=st.sampled_from((KNOWN, "app.other")),
    limits=limits,
    due=dues,
    expires=expiries,
)
batches = st.lists(new_tasks, min_size=1, max_size=5, unique_by=lambda new: new.number)
#: Which task or lease: an even one is there or held now, an odd one may be gone.
picks = st.integers(0, 15)
endings = st.lists(
    st.tuples(picks, st.sampled_from(OUTCOMES), st.sampled_from((0, 1, 500))), max_size=4
)

# Everything the queue holds, in one reply: lists, sorted sets, tombstones, memory, broken, records,
# starts.
_DUMP = """
local reply = { {}, {}, {}, {} }
for i = 2, 21 do reply[1][i - 1] = redis.call('LRANGE', KEYS[1] .. ARGV[i], 0, -1) end
for i = 22, 28 do
  reply[2][i - 21] = redis.call('ZRANGE', KEYS[1] .. ARGV[i], 0, -1, 'WITHSCORES')
end
for i, name in ipairs({ 'tombstones', 'm', 'broken' }) do
  reply[3][i] = redis.call('HGETALL', KEYS[1] .. name)
end
for i = 0, tonumber(ARGV[1]) do
  local id = string.format(':t%02d', i)
  local record = redis.call('GET', KEYS[1] .. 't' .. id)
  reply[4][i + 1] = { record, redis.call('HGET', KEYS[1] .. 'x' .. id, 'n') }
end
reply[5] = redis.call('LRANGE', KEYS[1] .. 'starts', 0, -1)
return reply
"""
_SORTED = (*SETS.values(), "e")


class Contents(NamedTuple):
    """Everything the queue holds, as it was read."""

    ready: dict[str, list[str]]
    sets: dict[str, dict[str, float]]
    tombstones: dict[str, int]
    memory: dict[str, str]
    broken: dict[str, str]
    records: dict[str, tuple[Any, ...]]
    starts: list[int]


class LifeCycle(RuleBasedStateMachine):
    """A queue that starts empty, and its model."""

    def __init__(self, app: Conveyor) -> None:
        super().__init__()
        self.app = app
        self.held: list[tuple[str, bytes]] = []
        self.calls = dict.fromkeys(WORKERS, 0)
        self.retries = 0

    @initialize(batch=batches)
    def start(self, batch: list[NewTask]) -> None:
        self.app.client.broker.execute(("FLUSHALL",))
        self.engine = Engine(self.app)
        self.model = Model(self.engine.now_ms)
        self.enqueue(batch, replace=False)

    # What callers do.

    @rule(batch=batches, replace=st.booleans())
    def enqueue(self, batch: list[NewTask], replace: bool) -> None:
        sent: list[commands.NewTask] = []
        added: list[bool] = []
        for new in batch:
            due_text, due = self._moment(new.due, self.model.now)
            expires_text, expires = self._moment(new.expires, max(due, self.model.now))
            told = {one: getattr(new.limits, one) for one in Limits.__slots__}
            one = self.engine.new(
                f"t{new.number:02}", new.version,
                due=due_text, expires=expires_text, name=new.name, **told,
            )  # fmt: skip
            sent.append(one)
            task = Task(one.id, new.name, new.version, new.limits, due, expires, QUEUED)
            added.append(self.model.enqueue(task, replace=replace))
        existing = self.engine.enqueue(*sent, on_existing="replace_ended" if replace else "return")
        assert [one is None for one in existing] == added

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        task_id = self._any(pick)
        assert self.engine.cancel(task_id) == self.model.cancel(task_id)

    @rule(pick=picks)
    def remove(self, pick: int) -> None:
        task_id = self._any(pick)
        removed = self.engine.run(commands.remove(self.engine.keys, task_id))
        assert removed == self.model.remove(task_id)

    @rule(pick=picks, again=st.booleans())
    def retry(self, pick: int, again: bool) -> None:
        ended = sorted(one.id for one in self.model.tasks.values() if one.state in ENDED)
        task_id = ended[pick % len(ended)] if ended and pick % 4 else self._any(pick)
        self.retries += 1
        retry = commands.retry(self.engine.keys, task_id, b"%d" % self.retries)
        answer = self.engine.run(retry)
        assert answer == self.model.retry(task_id)
        if again:
            assert self.engine.run(retry) == answer

    @rule(pause=st.sampled_from((True, False, False, False)))
    def pause_or_resume(self, pause: bool) -> None:
        command = (commands.pause if pause else commands.resume)(self.engine.keys)
        assert self.engine.run(command) == self.model.pause(pause)

    @rule(limit=st.sampled_from((None, None, (1, 1000), (3, 1000), (2, 60_000), (1, 1))))
    def limit_rate(self, limit: tuple[int, int] | None) -> None:
        command = commands.limit_rate(self.engine.keys, *(limit or (0, 0)))
        assert self.engine.run(command) == self.model.set_limit(limit)

    # What workers do.

    @rule(worker=st.sampled_from(WORKERS), sync=st.integers(1, 6), asynchronous=st.integers(0, 3))
    def claim(self, worker: bytes, sync: int, asynchronous: int) -> None:
        self._call(worker, [], sync, asynchronous)

    @rule(
        worker=st.sampled_from(WORKERS),
        endings=endings,
        sync=st.sampled_from((3, 1, 0)),
        keep_success=st.sampled_from((1_000_000, 1)),
        again=st.booleans(),
    )
    def settle(
        self,
        worker: bytes,
        endings: list[tuple[int, str, int]],
        sync: int,
        keep_success: int,
        again: bool,
    ) -> None:
        settlements = [
            Settlement(*self._pick(pick), outcome, delay)
            for pick, outcome, delay in endings
            if self.held
        ]
        self._call(worker, settlements, sync, sync, keep_success)
        if again:
            self._call(worker, settlements, sync, sync, keep_success, again=True)

    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        if self.held:
            task_id, token = self._pick(pick)
            command = commands.renew(self.engine.keys, [(task_id.encode(), token)])
            assert self.engine.run(command).verdicts == [self.model.renew(task_id, token)]

    @rule(pick=picks)
    def speak(self, pick: int) -> None:
        if self.held:
            task_id, token = self._pick(pick)
            command = commands.progress(self.engine.keys, task_id, token, "p", b"\x01")
            assert self.engine.run(command) is self.model.speak(task_id, token)

    @rule(names=st.sampled_from(([KNOWN], [KNOWN, "app.other"], [])))
    def unpark(self, names: list[str]) -> None:
        assert self.engine.run(commands.unpark(self.engine.keys, 0, names)).following == -1
        self.model.unpark(names)

    # What orchestrators, clocks and servers do.

    @rule(limit=st.sampled_from((100, 100, 1)))
    def maintain(self, limit: int) -> None:
        told = self.engine.maintain(limit)
        assert told.now_ms == self.model.now
        assert told.moved == self.model.maintain(limit)
        assert told.more == (self.model.earliest() <= self.model.now)

    @rule(ms=st.sampled_from((1, 1, 500, 1000, 15_000, 60_000, 5_000_000)))
    def pass_time(self, ms: int) -> None:
        self.engine.advance(ms / 1000)
        self.model.now += ms

    @rule()
    def another_server(self) -> None:
        self.engine.call("HSET", self.engine.keys.memory, "run", "another")
        self.engine.run(commands.hello(self.engine.keys, "", 0, b""))
        self.model.gap = self.model.now

    @rule()
    def forget_scripts(self) -> None:
        self.engine.call("SCRIPT", "FLUSH")

    # What is true after every step.

    @invariant()
    def what_the_server_holds_is_right(self) -> None:
        contents = self._dump()
        self._is_what_the_model_holds(contents)
        self._each_task_is_in_one_place(contents)

    @invariant()
    def the_counts_are_right(self) -> None:
        status = self.engine.run(commands.status(self.engine.keys))
        counts = dict(zip(status._fields[1:8], status[1:8], strict=True))
        assert counts == self.model.counts()

    def _is_what_the_model_holds(self, contents: Contents) -> None:
        memory = contents.memory
        assert contents.ready == {name: ids for name, ids in self.model.ready.items() if ids}
        assert contents.sets == self.model.sets
        assert contents.broken == {}
        buried = {one: count for one, count in self.model.tombstones.items() if count}
        assert contents.tombstones == buried
        assert int(memory.get("tombstones", 0)) == sum(buried.values())
        counted = {name: int(memory.get(name, 0)) for name in ENDED.values()}
        assert counted == {name: self.model.ended[name] for name in ENDED.values()}
        assert contents.records == {one.id: _facts(one) for one in self.model.tasks.values()}
        assert ("paused" in memory) == self.model.paused
        assert contents.starts == self.model.starts
        # Whoever sleeps until the moment that was announced, a whole ms, sleeps past nothing.
        told = min(float(memory.get(name, math.inf)) for name in ("due", "kept"))
        assert told <= self.model.earliest() + 0.5

    def _each_task_is_in_one_place(self, contents: Contents) -> None:
        records = contents.records
        places: dict[str, list[str]] = {task_id: [] for task_id in records}
        for name, ids in contents.ready.items():
            for task_id in ids:
                places.setdefault(task_id, []).append(name)
        for task_id, count in contents.tombstones.items():
            assert len(places[task_id]) >= count
            del places[task_id][:count]
        for name in SETS.values():
            for task_id in contents.sets[name]:
                places.setdefault(task_id, []).append(name)
        for task_id, found in places.items():
            state = records[task_id][0] if task_id in records else None
            expected = 0 if state is None else 1
            assert len(found) == expected, f"{task_id} is in {found}"
            if state is not None and state != QUEUED:
                assert found == [SETS[state]]
        assert all(records[one][0] in (QUEUED, PARKED, 0) for one in contents.sets["e"])

    def _any(self, pick: int) -> str:
        """The id of a task that is there, or of one that may be."""
        there = sorted(self.model.tasks)
        return f"t{pick:02}" if pick % 2 or not there else there[pick // 2 % len(there)]

    def _moment(self, text: str, base: int) -> tuple[str, int]:
        """A moment as it is sent, and as it is meant."""
        if text.startswith("@"):
            moment = self.model.now + int(text[1:])
            return str(moment), moment
        return text, base + int(text) if text else 0

    def _pick(self, pick: int) -> tuple[str, bytes]:
        leased = sorted(self.model.sets["l"])
        if pick % 2 or not leased:
            return self.held[-1 - pick % len(self.held)]
        task = self.model.tasks[leased[pick // 2 % len(leased)]]
        return task.id, task.token

    def _call(
        self,
        worker: bytes,
        settlements: list[Settlement],
        sync: int,
        asynchronous: int,
        keep_success: int = 1_000_000,
        *,
        again: bool = False,
    ) -> None:
        """One call of a worker's loop, to the server and to the model."""
        self.calls[worker] += not again
        number = self.calls[worker]
        command: Command[Settled] = commands.settle(
            self.engine.keys,
            worker,
            number,
            [
                commands.Settlement(
                    one.id.encode(), one.token, one.outcome, b"\x93\xa1E\xa0\xa0", one.delay
                )
                for one in settlements
            ],
            sync=sync,
            asynchronous=asynchronous,
            keep_success=keep_success,
            park_ms=PARK_MS,
        )
        answer = self.engine.run(command)
        assert answer.now_ms == self.model.now
        assert answer.verdicts == self.model.settle(settlements, keep_success, PARK_MS)
        assert (answer.limited == commands.Limited.NO) == (self.model.limit is None)
        claimed = (
            self.model.claim(worker, number, sync, asynchronous) if sync + asynchronous else []
        )
        assert [one.decode() for one in answer.claimed[::2]] == claimed
        for task_id, record in zip(claimed, answer.claimed[1::2], strict=True):
            assert record[10:22] == self.model.tasks[task_id].token
            self.held.append((task_id, record[10:22]))

    def _dump(self) -> Contents:
        reply = self.engine.call(
            "EVAL", _DUMP, 1, self.engine.keys.prefix, HIGHEST, *LISTS, *_SORTED
        )
        lists, sorts, hashes, raw, starts = reply
        ready = {
            name: [one.decode() for one in ids]
            for name, ids in zip(LISTS, lists, strict=True)
            if ids
        }
        sets = {
            name: {one.decode(): float(score) for one, score in _pairs(flat)}
            for name, flat in zip(_SORTED, sorts, strict=True)
        }
        tombstones, memory, broken = (
            {one.decode(): value.decode() for one, value in _pairs(flat)} for flat in hashes
        )
        counts = {one: int(count) for one, count in tombstones.items()}
        records = {
            f"t{number:02}": _read(record, attempts)
            for number, (record, attempts) in enumerate(raw)
            if record
        }
        return Contents(ready, sets, counts, memory, broken, records, [int(one) for one in starts])


def _pairs(flat: list[bytes]) -> Any:
    return zip(flat[::2], flat[1::2], strict=True)


def _facts(task: Task) -> tuple[Any, ...]:
    """What a record must say of a task."""
    return (
        task.state, task.token, task.due, task.expires, task.errors, task.stalls,
        task.interruptions, task.cancel_asked, task.attempts,
    )  # fmt: skip


def _read(record: bytes, attempts: bytes | None) -> tuple[Any, ...]:
    (
        _, _, state, flags, _, starts, nonce, _, _, due, _, expires,
        errors, stalls, interruptions, *_,
    ) = HEADER.unpack_from(record)  # fmt: skip
    return (
        state, starts.to_bytes(4, "little") + nonce, int.from_bytes(due, "little"),
        int.from_bytes(expires, "little"), errors, stalls, interruptions,
        bool(flags & Flag.CANCEL_ASKED), int(attempts or 0),
    )  # fmt: skip


@pytest.mark.timeout(0 if LONG else 600)
def test_the_life_of_tasks() -> None:
    with Server() as server, Conveyor("life", broker=server.url) as app:
        machine: Any = partial(LifeCycle, app)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=10_000 if LONG else 300,
                stateful_step_count=50,
                deadline=None,
            ),
        )
