"""purge.lua and destroy.lua: what waits, or everything, a bounded number a call."""

from __future__ import annotations

import pytest
from engine import ERROR, Engine, Worker

from conveyor.broker import commands
from conveyor.records import Flag


def fill(engine: Engine, worker: Worker, many: int = 1) -> None:
    """Tasks of every state, tombstones, a record that is broken, and all that workers leave."""
    engine.put(*(f"run{n}" for n in range(3 * many)))
    held = worker.claim(100)
    for lease in held[: len(held) // 3]:
        worker.end(lease, "success", b"\x07")
    for lease in held[len(held) // 3 : len(held) * 2 // 3]:
        worker.end(lease, "fatal", ERROR)
    engine.put(*(f"parked{n}" for n in range(many)))
    for lease in worker.claim(many):
        worker.end(lease, "park", b"unknown")
    for n in range(3 * many):
        engine.put(f"queued{n}", priority=n % 10, flags=Flag.ASYNC * (n % 2), expires="+60000")
    engine.put("tomb")
    engine.cancel("tomb")
    engine.put(*(f"later{n}" for n in range(many)), due="+1000")


def keys_of(engine: Engine) -> set[str]:
    found = engine.call("KEYS", engine.keys.prefix.replace("[", r"\[") + "*")
    return {key.decode().removeprefix(engine.keys.prefix) for key in found}


def purge(engine: Engine) -> tuple[int, int]:
    """How many were removed, in how many calls."""
    total, calls, more = 0, 0, True
    while more:
        removed, more = engine.run(commands.purge(engine.keys))
        assert removed <= 100
        total, calls = total + removed, calls + 1
    return total, calls


def destroy(engine: Engine) -> int:
    """In how many calls."""
    calls = 1
    while engine.run(commands.destroy(engine.keys)):
        calls += 1
    return calls


def test_what_waits_is_removed_and_nothing_else(engine: Engine, worker: Worker) -> None:
    fill(engine, worker)
    before = engine.counts()
    waiting = before["scheduled"] + before["queued"]
    assert purge(engine)[0] == waiting
    after = engine.counts()
    assert {n: before[n] for n in ("processing", "success", "failed", "cancelled")} == after
    assert worker.claim(100, 100) == []
    assert engine.memory()["tombstones"] == 0
    assert engine.call("ZCARD", engine.key("e")) == 0
    assert engine.broken() == {}
    assert {key for key in keys_of(engine) if key.startswith(("t:queued", "t:later"))} == set()


def test_many_are_purged_in_bounded_calls(engine: Engine, worker: Worker) -> None:
    fill(engine, worker, many=30)
    engine.put(*(f"more{n}" for n in range(300)))
    assert purge(engine) == (450, 5)
    assert purge(engine) == (0, 1)


def test_large_ones_are_purged_a_mebibyte_a_call(engine: Engine) -> None:
    for number in range(6):
        engine.put(f"{number}", args=("x" * 500_000,))
    removed, more = engine.run(commands.purge(engine.keys))
    assert (2 <= removed <= 3, more) == (True, True)
    assert removed + purge(engine)[0] == 6


def test_what_is_listed_and_broken_is_set_aside_by_a_purge(engine: Engine) -> None:
    engine.put("a", "b")
    engine.put("c", due="+1000")
    engine.call("SET", engine.key("t:a"), b"short")
    engine.call("DEL", engine.key("t:c"))
    assert purge(engine)[0] == 1
    assert engine.broken() == {"a": "truncated", "c": "missing"}
    assert engine.counts() == {}


def test_a_destroyed_queue_leaves_no_key(engine: Engine, worker: Worker) -> None:
    engine.run(commands.hello(engine.keys, b"work".hex(), 60_000, b"about"))
    engine.run(commands.hello(engine.keys, b"else".hex(), 60_000, b"about"))
    engine.run(commands.limit_rate(engine.keys, 1000, 1000))
    fill(engine, worker, many=20)
    engine.call("SET", engine.key("t:queued8"), b"short")
    worker.claim(10, 10)
    engine.cancel("run59")
    engine.run(commands.wait(engine.keys, "me", ["run59", "later1"]))
    kinds = {key.partition(":")[0] for key in keys_of(engine)}
    assert kinds >= {*"tmxelrawksc", "ok", "failed", "cancelled", "parked", "starts", "broken"}
    assert destroy(engine) > 2
    assert keys_of(engine) == set()
    assert destroy(engine) == 1
    assert keys_of(engine) == set()


def test_nor_do_workers_that_were_never_announced_or_are_forgotten(engine: Engine) -> None:
    stray, dead = Worker(engine, b"stra"), Worker(engine, b"dead")
    engine.run(commands.hello(engine.keys, b"dead".hex(), 60_000, b"about"))
    engine.put("a", "b", "c")
    (lease,) = stray.claim()
    dead.claim()
    engine.cancel("a")
    engine.cancel("b")
    stray.end(lease, "cancelled")
    engine.call("DEL", engine.keys.worker(b"dead".hex()))
    engine.run(commands.hello(engine.keys, b"live".hex(), 60_000, b"about"))
    assert engine.call("EXISTS", engine.key("c:dead"), engine.keys.marker(b"dead".hex())) == 0
    assert destroy(engine)
    assert keys_of(engine) == set()


def test_while_a_queue_is_destroyed_nothing_is_claimed(engine: Engine, worker: Worker) -> None:
    engine.put(*map(str, range(150)))
    assert engine.run(commands.destroy(engine.keys))
    assert worker.claim(100) == []
    assert engine.run(commands.resume(engine.keys)) is False  # it was not paused
    assert len(worker.claim(100)) == 50
    destroy(engine)
    engine.put("a")
    assert [lease.id for lease in worker.claim()] == ["a"]


def test_a_destruction_that_was_interrupted_holds_back_what_comes_later_only_for_a_while(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*map(str, range(150)))
    assert engine.run(commands.destroy(engine.keys))
    engine.put("a", priority=9)
    engine.take_markers()
    engine.maintain()
    assert worker.claim() == []
    engine.advance(10)
    engine.maintain()
    assert engine.markers() == {"r"}
    assert [lease.id for lease in worker.claim()] == ["a"]


def test_one_that_was_interrupted_leaves_the_counts_right(engine: Engine) -> None:
    names = [f"{number:03}" for number in range(150)]
    for start in (0, 100):
        engine.put(*names[start : start + 100])
    for name in names[:80]:
        engine.cancel(name)
    engine.run(commands.destroy(engine.keys))
    assert engine.counts()["queued"] == 50


def test_one_of_a_paused_queue_leaves_it_paused(engine: Engine, worker: Worker) -> None:
    engine.put(*map(str, range(150)))
    engine.run(commands.pause(engine.keys))
    assert engine.run(commands.destroy(engine.keys))
    engine.advance(10)
    assert worker.claim() == []


def test_the_workers_of_running_tasks_are_told_and_can_change_nothing(
    engine: Engine, worker: Worker
) -> None:
    engine.run(commands.hello(engine.keys, b"work".hex(), 60_000, b"about"))
    engine.put("a", "b")
    held = worker.claim(2)
    engine.advance(0.001)
    assert engine.run(commands.destroy(engine.keys))
    asked = [(lease.id.encode(), lease.token) for lease in held]
    assert engine.run(commands.renew(engine.keys, asked)) == ([0, 0], engine.now_ms)
    told = commands.GONE_MAIL + engine.now_ms.to_bytes(6, "little")
    assert engine.call("ZRANGE", engine.keys.marker(b"work".hex()), 0, -1) == [told]
    destroy(engine)
    assert [worker.end(lease, "success", b"\x07") for lease in held] == [0, 0]
    assert engine.counts() == {}


@pytest.mark.parametrize("act", [purge, destroy])
def test_those_who_wait_are_told_to_look(engine: Engine, act: object) -> None:
    engine.put("a")
    engine.run(commands.wait(engine.keys, "me", ["a"]))
    with engine.app.client.broker.server.client().pubsub() as heard:  # type: ignore[union-attr]
        heard.ssubscribe(engine.keys.outcomes("me"))
        assert heard.get_message(timeout=10) is not None
        act(engine)  # type: ignore[operator]
        assert heard.get_sharded_message(timeout=10)["data"] in (b"\x91\xa1a", "\x91\xa1a")
