"""remove.lua: whatever its state, nothing of a task is left, and nobody takes it for there."""

from __future__ import annotations

import pytest
from engine import ERROR, Engine, Worker, ids

from conveyor.broker import commands


def remove(engine: Engine, task_id: str) -> bool:
    return engine.run(commands.remove(engine.keys, task_id))


def assert_gone(engine: Engine, task_id: str) -> None:
    assert engine.exists(task_id) == 0
    assert engine.places(task_id) == []
    assert engine.score("e", task_id) is None


@pytest.mark.parametrize("about", [{}, {"due": "+1000"}, {"expires": "+1000"}])
def test_a_waiting_task(engine: Engine, worker: Worker, about: dict[str, str]) -> None:
    engine.put("a", "b", "c", **about)
    assert remove(engine, "b")
    assert_gone(engine, "b")
    assert sum(engine.counts().values()) == 2
    if "due" in about:
        engine.advance(1)
    assert ids(worker.claim(10)) == ["a", "c"]
    assert engine.broken() == {}
    assert engine.memory().get("tombstones", 0) == 0


def test_a_parked_task(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    worker.run("a", "park", b"unknown")
    assert remove(engine, "a")
    assert_gone(engine, "a")
    assert engine.counts() == {}


@pytest.mark.parametrize("outcome", ["success", "fatal", "cancelled"])
def test_an_ended_task(engine: Engine, worker: Worker, outcome: str) -> None:
    engine.put("a")
    worker.run("a", outcome, ERROR)
    assert remove(engine, "a")
    assert_gone(engine, "a")
    assert engine.counts() == {}


def test_a_task_that_waits_for_its_retry(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=1)
    worker.run("a", "error", ERROR, delay_ms=1000)
    assert remove(engine, "a")
    assert_gone(engine, "a")


@pytest.mark.parametrize("outcome", ["success", "error", "stall", "release", "park", "cancelled"])
def test_the_run_of_a_removed_task_changes_nothing(
    engine: Engine, worker: Worker, outcome: str
) -> None:
    engine.put("a", error_retry_limit=1)
    (lease,) = worker.claim()
    assert remove(engine, "a")
    assert_gone(engine, "a")
    mailbox = engine.keys.marker(b"work".hex())
    assert engine.call("ZRANGE", mailbox, 0, -1) == [lease.token + b"a"]
    progress = commands.progress(engine.keys, "a", lease.token, "p", b"\x01")
    assert engine.run(progress) is False
    assert worker.renew(lease) == [0]
    assert worker.end(lease, outcome, ERROR) == 0
    assert_gone(engine, "a")
    engine.advance(60)
    engine.maintain()
    assert engine.broken() == {}
    assert engine.counts() == {}


def test_a_removed_run_is_stale_for_a_new_task_of_the_same_id(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    (old,) = worker.claim()
    remove(engine, "a")
    engine.put("a", args=(2,))
    (new,) = worker.claim()
    assert worker.renew(old, new) == [0, 1]
    assert worker.end(old, "success", b"\x01") == 0
    assert worker.end(new, "success", b"\x02") == 1
    assert engine.task("a").result == 2


def test_an_id_that_was_removed_can_be_queued_again(engine: Engine, worker: Worker) -> None:
    engine.put("first", "a")
    for number in range(3):
        assert remove(engine, "a")
        engine.put("a", args=(number,))
        assert engine.places("a") == ["r:5"]
        assert engine.counts() == {"queued": 2}
    assert ids(worker.claim(10)) == ["first", "a"]
    assert worker.claim(10) == []
    assert engine.memory()["tombstones"] == 0


def test_what_is_not_there_is_not_removed(engine: Engine) -> None:
    assert not remove(engine, "a")
    engine.put("a")
    assert [remove(engine, "a"), remove(engine, "a")] == [True, False]
    assert engine.memory()["tombstones"] == 1


def test_a_repeated_enqueue_does_not_bring_it_back(engine: Engine) -> None:
    new = engine.new("a", 1)
    engine.enqueue(new)
    remove(engine, "a")
    assert engine.enqueue(new) == [None]
    assert engine.counts() == {}


def test_those_who_wait_are_told_to_look(engine: Engine) -> None:
    engine.put("a")
    engine.run(commands.wait(engine.keys, "me", ["a"]))
    channel = engine.keys.outcomes("me")
    with engine.app.client.broker.server.client().pubsub() as heard:  # type: ignore[union-attr]
        heard.ssubscribe(channel)
        assert heard.get_message(timeout=10) is not None
        remove(engine, "a")
        message = heard.get_sharded_message(timeout=10)
    assert message["data"] in (b"\x91\xa1a", "\x91\xa1a")  # the id alone, packed
    assert engine.run(commands.wait(engine.keys, "me", ["a"])) == [False]


@pytest.mark.parametrize("value", [b"", b"short", b"\x07" + bytes(120)])
def test_a_record_that_cannot_be_read(engine: Engine, worker: Worker, value: bytes) -> None:
    engine.put("a", due="+1000")
    engine.call("SET", engine.key("t:a"), value)
    assert remove(engine, "a")
    assert_gone(engine, "a")
    engine.put("a", args=(2,))
    assert ids(worker.claim(10)) == ["a"]


def test_what_was_set_aside(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    engine.call("SET", engine.key("t:a"), b"short")
    assert ids(worker.claim(10)) == ["b"]
    assert "a" in engine.broken()
    assert remove(engine, "a")
    assert_gone(engine, "a")
    assert engine.broken() == {}
