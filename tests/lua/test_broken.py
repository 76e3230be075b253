"""What is no record, or is in a wrong place, is set aside with its reason; the rest goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import ERROR, Engine, Worker, ids, settlement

from conveyor import REDACTED, SerializationError, TaskStatus
from conveyor.broker import commands
from conveyor.records import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable


def nothing(engine: Engine, key: str, record: bytes) -> None:
    """The record is gone; others may write at its place what they like."""


def wrong_type(engine: Engine, key: str, record: bytes) -> None:
    engine.call("HSET", key, "status", "queued")


def empty(engine: Engine, key: str, record: bytes) -> None:
    engine.call("SET", key, "")


def short(engine: Engine, key: str, record: bytes) -> None:
    engine.call("SET", key, record[: HEADER.size - 1])


def truncated(engine: Engine, key: str, record: bytes) -> None:
    engine.call("SET", key, record[:-1])


def newer(engine: Engine, key: str, record: bytes) -> None:
    engine.call("SET", key, b"\x02" + record[1:])


def foreign(engine: Engine, key: str, record: bytes) -> None:
    engine.call("SET", key, b'{"id": "a", "status": "queued", "args": "[' + b"1, " * 100 + b']"}')


#: What may be found in the place of a record, and what is said of it.
SPOILED = {
    nothing: "missing",
    wrong_type: "not a record",
    empty: "truncated",
    short: "truncated",
    truncated: "truncated",
    newer: "unknown version",
    foreign: "unknown version",
}
each_spoiled = pytest.mark.parametrize(
    ("spoil", "reason"), list(SPOILED.items()), ids=[spoil.__name__ for spoil in SPOILED]
)


def spoil_task(engine: Engine, task_id: str, spoil: Callable[[Engine, str, bytes], None]) -> None:
    key = engine.key(f"t:{task_id}")
    record = engine.call("GETDEL", key)
    spoil(engine, key, record)


@each_spoiled
def test_in_a_queue(
    engine: Engine,
    worker: Worker,
    spoil: Callable[[Engine, str, bytes], None],
    reason: str,
) -> None:
    engine.put("a", "bad", "b")
    spoil_task(engine, "bad", spoil)
    assert ids(worker.claim(10)) == ["a", "b"]
    assert engine.broken() == {"bad": reason}
    assert engine.memory()["broken"] == 1
    assert engine.counts() == {"processing": 2}


@each_spoiled
def test_among_the_scheduled(
    engine: Engine, spoil: Callable[[Engine, str, bytes], None], reason: str
) -> None:
    engine.put("a", "bad", "b", due="+1000")
    spoil_task(engine, "bad", spoil)
    engine.advance(1)
    engine.maintain()
    assert engine.ready() == ["a", "b"]
    assert engine.places("bad") == []
    assert engine.broken() == {"bad": reason}


@each_spoiled
def test_among_the_leased(
    engine: Engine,
    worker: Worker,
    spoil: Callable[[Engine, str, bytes], None],
    reason: str,
) -> None:
    engine.put("a", "bad", "b")
    a, bad, b = worker.claim(3)
    spoil_task(engine, "bad", spoil)
    assert worker.renew(a, bad, b) == [1, 0, 1]
    assert worker.end(bad, "success") == 0
    engine.run_out(15)
    assert sorted(engine.ready()) == ["a", "b"]
    assert engine.places("bad") == []
    assert engine.broken() == {"bad": reason}


@each_spoiled
def test_among_the_parked(
    engine: Engine,
    worker: Worker,
    spoil: Callable[[Engine, str, bytes], None],
    reason: str,
) -> None:
    engine.put("a", "bad")
    for lease in worker.claim(2):
        worker.end(lease, "park", b"unknown")
    spoil_task(engine, "bad", spoil)
    engine.run(commands.unpark(engine.keys, 0, ["app.add"]))
    assert engine.ready() == ["a"]
    assert engine.places("bad") == []
    assert engine.broken() == {"bad": reason}


@each_spoiled
def test_among_the_expiring_and_the_ended(
    engine: Engine,
    worker: Worker,
    spoil: Callable[[Engine, str, bytes], None],
    reason: str,
) -> None:
    """Neither decides where a task is: what is wrong with one is said elsewhere or not at all."""
    engine.put("ended", "fine")
    engine.put("bad", "a", expires="+1000")
    worker.run("ended", "success")
    worker.run("fine", "success")
    spoil_task(engine, "bad", spoil)
    spoil_task(engine, "ended", spoil)
    engine.advance(3600)
    engine.maintain()
    assert engine.places("a") == ["failed"]
    assert [engine.exists(one) for one in ("ended", "fine")] == [0, 0]
    assert worker.claim(10) == []
    assert engine.broken() == {"bad": reason}


@each_spoiled
def test_asked_for_it_is_not_there(
    engine: Engine, spoil: Callable[[Engine, str, bytes], None], reason: str
) -> None:
    engine.put("a", "bad")
    spoil_task(engine, "bad", spoil)
    assert engine.app.result("bad").task() is None
    assert engine.cancel("bad") == -1
    assert engine.run(commands.wait(engine.keys, "me", ["bad", "a"])) == [False, True]
    one, other = engine.run(commands.read(engine.keys, ["bad", "a"]))
    assert one is None
    assert other is not None


@pytest.mark.parametrize(
    "outcome",
    [
        "success",
        "error",
        "timeout",
        "fatal",
        "fatal_timeout",
        "stall",
        "interrupted",
        "cancelled",
        "release",
        "park",
    ],
)
def test_beside_a_record(engine: Engine, worker: Worker, outcome: str) -> None:
    """Progress, attempts and who waits are lost with it; the task is not."""
    engine.put("a", "b", error_retry_limit=1)
    a, b = worker.claim(2)
    engine.run(commands.wait(engine.keys, "me", ["a"]))
    engine.call("SET", engine.key("x:a"), "no hash")
    settlements = settlement(a, outcome, b"\x93\xa1E\xa1m\xa0"), settlement(b, "success", b"\x07")
    assert worker.send(*settlements).verdicts == [1, 1]
    assert len(engine.places("a")) == 1
    assert engine.places("b") == ["ok"]


@pytest.mark.parametrize("kind", ["no hash", "no count", "no slice"])
def test_where_the_pace_is_kept(engine: Engine, worker: Worker, kind: str) -> None:
    """It is only shown, so no task depends on it."""
    key = engine.key("pace")
    slice_now = str(engine.now_ms // 10_000)
    if kind == "no hash":
        engine.call("SET", key, "foreign")
    else:
        engine.call("HSET", key, slice_now if kind == "no count" else "foreign", "foreign")
    assert engine.run(commands.status(engine.keys)).rate == 0
    engine.put("a")
    worker.run("a", "success", b"\x07")
    assert engine.places("a") == ["ok"]
    assert engine.run(commands.status(engine.keys)).rate > 0


@pytest.mark.parametrize("end", ["expire", "stall", "cancel", "give up"])
def test_beside_a_record_that_no_worker_ends(engine: Engine, worker: Worker, end: str) -> None:
    engine.put("a", expires="+1000", stall_ms=1000, stall_retry_limit=0)
    if end in ("stall", "give up"):
        (lease,) = worker.claim()
    if end == "give up":
        worker.send(settlement(lease, "park", b"unknown"), park_ms=500)
    engine.call("SET", engine.key("x:a"), "no hash")
    if end == "cancel":
        engine.cancel("a")
    engine.run_out(1)
    assert engine.places("a") == ["cancelled" if end == "cancel" else "failed"]


@pytest.mark.parametrize("end", ["error", "stall", "retry"])
def test_where_runs_are_counted(engine: Engine, worker: Worker, end: str) -> None:
    engine.put("a", error_retry_limit=1)
    (lease,) = worker.claim()
    if end == "retry":
        worker.end(lease, "success", b"\x07")
    engine.call("HSET", engine.key("x:a"), "n", "no count")
    if end == "error":
        assert worker.end(lease, "error", ERROR) == 1
    elif end == "retry":
        assert engine.run(commands.retry(engine.keys, "a", b"nonce")) == 1
    engine.run_out(15)
    assert engine.places("a") == ["r:5"]
    assert len(engine.task("a").attempts) == 1
    assert engine.broken() == {"a": "its runs were counted by no number"}


def test_a_lease_that_is_missing_from_its_set_is_there_once_renewed(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    engine.call("ZREM", engine.key("l"), "a")
    assert worker.renew(lease) == [1]
    assert engine.score("l", "a") == engine.now_ms + 15_000


@pytest.mark.parametrize("end", ["success", "fatal", "cancelled"])
def test_what_is_sent_again_after_its_record_was_deleted_outlives_the_old_one(
    engine: Engine, worker: Worker, end: str
) -> None:
    engine.put("a", retain_success_ms=1000, retain_failed_ms=1000)
    worker.run("a", end, ERROR)
    engine.call("DEL", engine.key("t:a"))
    engine.put("a", due="+5000")
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["s"]
    engine.advance(4)
    assert ids(worker.claim()) == ["a"]


def test_what_is_sent_again_expires_by_its_own_record(engine: Engine, worker: Worker) -> None:
    engine.put("never", "later", expires="+1000")
    engine.call("DEL", engine.key("t:never"), engine.key("t:later"), engine.key("r:5"))
    engine.put("never")
    engine.put("later", expires="+2000")
    engine.call("ZADD", engine.key("e"), engine.now_ms + 1000, "later")
    engine.advance(1)
    engine.maintain()
    assert ids(worker.claim(9)) == ["never", "later"]


@pytest.mark.parametrize("offset", [2, 4, 40])
def test_a_header_with_impossible_values_is_an_error_of_this_task(
    engine: Engine, offset: int
) -> None:
    engine.put("a", "b")
    engine.call("SETRANGE", engine.key("t:a"), offset, b"\xff" * 6)
    with pytest.raises(SerializationError):
        engine.task("a")
    assert [task.id for task in engine.app.manager().get_tasks("queued")] == ["b"]


def test_beside_a_record_that_is_only_looked_at(engine: Engine, worker: Worker) -> None:
    engine.put("running", "parked", "ended")
    running, parked, ended = worker.claim(3)
    worker.end(parked, "park", b"unknown")
    worker.end(ended, "success", b"\x07")
    for one in ("running", "parked", "ended"):
        engine.call("DEL", engine.key(f"x:{one}"))
        engine.call("SET", engine.key(f"x:{one}"), "no hash")
    assert engine.task("ended").result == 7
    assert engine.app.result("ended").wait(1) == 7
    assert engine.run(commands.status(engine.keys)).parked_reasons == {b"parked": b""}
    assert engine.run(commands.unpark(engine.keys, 0, ["app.add"])).following == -1
    assert engine.run(commands.progress(engine.keys, "running", running.token, "p", b"\x07"))
    assert engine.task("running").progress == 7
    assert engine.broken() == dict.fromkeys(
        ("parked", "running"), "what lay beside the record was no hash"
    )


@pytest.mark.parametrize("options", [b"\x81\xa1h\x05", b"\x81\xa1h\x81\x01\x02", b"\x81\xa1t\xa1x"])
def test_options_of_the_wrong_kind_are_the_workers_to_fail(engine: Engine, options: bytes) -> None:
    engine.put("a", options=options)
    record = engine.call("GET", engine.key("t:a"))
    with pytest.raises(SerializationError, match="options of a task cannot be read"):
        engine.app.client.decode_claimed(engine.queue, "a", record)
    shown = engine.task("a")
    assert (shown.args, shown.headers) == (REDACTED, {})


def test_a_foreign_id_in_each_place(engine: Engine, worker: Worker) -> None:
    engine.put("running", "good")
    engine.put("waiting", due="+50000")
    (running, _) = worker.claim(2)
    engine.call("RPUSH", engine.key("r:5"), "running", "waiting", "nowhere")
    engine.call("ZADD", engine.key("s"), 0, "running", 0, "nowhere")
    engine.call("ZADD", engine.key("l"), 0, "waiting", 0, "lost")
    engine.call("HDEL", engine.keys.memory, "due")
    engine.put("last")
    assert ids(worker.claim(10)) == ["last"]
    assert engine.ready() == []
    assert engine.broken() == {
        "running": "listed as ready but is not",
        "waiting": "listed as ready but is not",
        "nowhere": "missing",
        "lost": "missing",
    }
    assert [engine.places(one) for one in ("running", "waiting")] == [["l"], ["s"]]
    assert worker.end(running, "success") == 1


def test_an_id_twice_in_a_queue_runs_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    engine.call("RPUSH", engine.key("r:5"), "a")
    engine.call("LPUSH", engine.key("a:0"), "b")
    assert ids(worker.claim(10, 10)) == ["a", "b"]
    assert set(engine.broken()) == {"a", "b"}


def test_so_many_that_only_the_first_are_named(engine: Engine, worker: Worker) -> None:
    names = [f"{number:04}" for number in range(1200)]
    for start in range(0, 1200, 100):
        engine.call("RPUSH", engine.key("r:5"), *names[start : start + 100])
    engine.put("good")
    claimed: list[str] = []
    while engine.ready():
        claimed += ids(worker.claim(100))
    assert claimed == ["good"]
    assert len(engine.broken()) == 1000
    assert engine.memory()["broken"] == 1200


def test_good_ones_go_on_at_their_rate(engine: Engine, worker: Worker) -> None:
    """Every second record is spoiled: each call still hands out all that was asked for."""
    engine.put(*(f"{number:03}" for number in range(200)))
    for number in range(0, 200, 2):
        spoil_task(engine, f"{number:03}", empty)
    assert [len(worker.claim(50)) for _ in range(3)] == [50, 50, 0]


@pytest.mark.parametrize("call", [b"", b"\xc1", b"\x92", b"\x93\x01\x02\x03"])
def test_a_payload_that_cannot_be_decoded_is_the_workers_to_fail(
    engine: Engine, worker: Worker, call: bytes
) -> None:
    """Scripts never look into it, so it is claimed and settled like any other."""
    new = engine.new("a")
    length = len(new.record) - HEADER.size - len("app.add") - 2
    head = new.record[: HEADER.size - 4] + (2 + len(call)).to_bytes(4, "little")
    record = head + new.record[HEADER.size : -length] + call
    engine.enqueue(new._replace(record=record))
    worker.run("a", "fatal", b"\x93\xa1E\xa1m\xa0")
    assert engine.places("a") == ["failed"]
    shown = engine.task("a")
    assert (shown.status, shown.error, shown.args) == (TaskStatus.FAILED, "E: m", REDACTED)
