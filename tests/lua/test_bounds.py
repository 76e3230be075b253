"""However much comes due at one instant, nothing is lost and no script does more than its share.

What counts are the commands that one call of a script runs, since every loop in it runs some. How
long that takes is a question for `benchmarks bounds`: here it would be the machine's answer too.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from engine import NOTICE, Engine, Worker, ids
from servers import Server

from conveyor import Conveyor
from conveyor.broker import commands
from conveyor.broker.commands import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Binary

T = TypeVar("T")
MANY = 100_000
#: Enough where every call does the same.
FEWER = 20_000
NAMES = [f"{number:05}" for number in range(MANY)]
#: Most commands that one call may run: a dozen for each task that it may touch.
LIMIT = 12 * BATCH


class Counted:
    """Calls, and how many commands the largest of them ran."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.most = 0
        self._before = self._commands()

    def call(self, call: Callable[[], T]) -> T:
        """What the test did itself since the call before counts too: it is little."""
        answer = call()
        before, self._before = self._before, self._commands()
        self.most = max(self.most, self._before - before)
        return answer

    def maintain_to_the_end(self) -> int:
        """As an orchestrator does; how many were moved."""
        told = self.call(self.engine.maintain)
        moved = told.moved
        while told.more:
            told = self.call(self.engine.maintain)
            moved += told.moved
        return moved

    def claim_to_the_end(self) -> list[str]:
        """As an eager worker does; the ids in their order."""
        worker = Worker(self.engine, os.urandom(4))
        claimed: list[str] = []
        while batch := self.call(lambda: worker.claim(BATCH)):
            claimed += ids(batch)
        return claimed

    def _commands(self) -> int:
        return int(self.engine.call("INFO", "stats")["total_commands_processed"])


@pytest.fixture
def engine(binary: Binary) -> Iterator[Engine]:
    """A queue on a server of its own, which is gone with all that is put there."""
    with Server(binary) as server, Conveyor("bounds", broker=server.url) as app:
        yield Engine(app)


@pytest.fixture
def counted(engine: Engine) -> Counted:
    return Counted(engine)


def put_many(counted: Counted, many: int = MANY, **about: Any) -> None:
    engine = counted.engine
    new = engine.new("", **about)
    for start in range(0, many, BATCH):
        batch = [new._replace(id=name) for name in NAMES[start : start + BATCH]]
        assert counted.call(partial(engine.enqueue, *batch)) == [None] * BATCH


def test_a_hundred_thousand_due_at_one_instant(engine: Engine, counted: Counted) -> None:
    put_many(counted, due="+1000")
    engine.advance(1)
    assert counted.maintain_to_the_end() == MANY
    assert engine.counts() == {"queued": MANY}
    assert counted.claim_to_the_end() == NAMES
    assert counted.most < LIMIT


def test_twenty_thousand_listed_and_purged(engine: Engine, counted: Counted) -> None:
    put_many(counted, FEWER)
    for name in NAMES[:2]:
        engine.cancel(name)
    position, skip = 0, FEWER - 3
    while position >= 0:
        command = commands.list_tasks(engine.keys, "queued", position, skip, 100)
        page = counted.call(partial(engine.run, command))
        position, skip = page.position, page.skip
    assert [task_id for task_id, _ in page.tasks] == NAMES[FEWER - 1 : FEWER]
    purged, more = 0, True
    while more:
        removed, more = counted.call(partial(engine.run, commands.purge(engine.keys)))
        purged += removed
    assert purged == FEWER - 2
    assert engine.counts() == {"cancelled": 2}
    assert counted.most < LIMIT


def test_twenty_thousand_destroyed(engine: Engine, counted: Counted) -> None:
    put_many(counted, FEWER, expires="+1000000")
    assert len(counted.claim_to_the_end()) == FEWER
    running = commands.list_tasks(engine.keys, "processing", 0, FEWER - 1, 100)
    assert len(counted.call(partial(engine.run, running)).tasks) == 1
    while counted.call(partial(engine.run, commands.destroy(engine.keys))):
        pass
    assert engine.call("DBSIZE") == 0
    assert counted.most < LIMIT


def test_a_hundred_thousand_leases_that_run_out_at_one(engine: Engine, counted: Counted) -> None:
    put_many(counted)
    assert counted.claim_to_the_end() == NAMES
    for wait in (15, NOTICE):
        engine.advance(wait)
        assert counted.maintain_to_the_end() == MANY
    assert engine.counts() == {"queued": MANY}
    assert sorted(counted.claim_to_the_end()) == NAMES
    assert engine.task(NAMES[-1]).stall_retries == 1
    assert counted.most < LIMIT


def test_a_hundred_thousand_that_expire_at_one(engine: Engine, counted: Counted) -> None:
    put_many(counted, expires="+1000")
    engine.advance(1)
    assert counted.maintain_to_the_end() == MANY
    assert engine.counts() == {"failed": MANY}
    assert counted.claim_to_the_end() == []
    engine.advance(604_800)
    assert counted.maintain_to_the_end() == MANY
    assert engine.counts() == {}
    assert counted.most < LIMIT


def test_of_large_tasks_few_are_read_at_once(engine: Engine) -> None:
    names = list("abcde")
    engine.put(*names, args=("x" * 600_000,))
    found = engine.run(commands.read(engine.keys, names))
    assert len(found) == 2
    assert len(engine.run(commands.read(engine.keys, names[2:3]))) == 1
    assert engine.run(commands.wait(engine.keys, "one", names)) == [True, True]


@pytest.mark.parametrize("state", ["cancelled", "expired"])
def test_of_large_tasks_that_cannot_be_claimed_few_are_read_at_once(
    engine: Engine, state: str
) -> None:
    names = list("abcdefgh")
    engine.put(*names[:-1], args=("x" * 600_000,), expires="+1000" if state == "expired" else "")
    engine.put(names[-1])
    for name in names[:-1] if state == "cancelled" else ():
        engine.cancel(name)
    engine.call("HSET", engine.keys.memory, "due", engine.now_ms + 2000)
    engine.advance(1)
    engine.call("DEL", engine.key("e"))
    worker = Worker(engine)
    left = []
    while not (settled := worker.send(sync=100)).claimed:
        assert settled.left == b"r"
        left.append(len(engine.ready()))
    assert left == [6, 4, 2]


def test_waits_for_large_tasks_all_hear_of_their_end(engine: Engine) -> None:
    names = list("abcde")
    engine.put(*names, args=("x" * 600_000,))
    worker = Worker(engine)
    for name in names:
        worker.run(name, "success", b"\x07")

    async def wait(name: str) -> object:
        return await engine.app.result(name)

    async def wait_for_all() -> list[object]:
        async with engine.app:
            return await asyncio.gather(*map(wait, names))

    assert asyncio.run(wait_for_all()) == [7] * 5
