"""status.lua counts what is there, and hello.lua says who works."""

from __future__ import annotations

from engine import ERROR, Engine, Worker

from conveyor.broker import commands


def test_each_task_is_counted_where_it_is(engine: Engine, worker: Worker) -> None:
    assert engine.counts() == {}
    engine.put("ok", "failed", "cancelled", "running", "parked", priority=9)
    engine.put("first", priority=0)
    engine.put("second", priority=9, flags=16)
    engine.put("buried", priority=3)
    engine.put("later", due="+1000")
    ok, failed, cancelled, _, parked = worker.claim(5)
    worker.end(ok, "success", b"\x07")
    worker.end(failed, "fatal", ERROR)
    worker.end(cancelled, "cancelled")
    worker.end(parked, "park", b"unknown")
    engine.cancel("buried")
    assert engine.counts() == {
        "scheduled": 1,
        "queued": 3,
        "processing": 1,
        "success": 1,
        "failed": 1,
        "cancelled": 2,
        "parked": 1,
    }


def test_the_first_of_the_parked_are_listed(engine: Engine, worker: Worker) -> None:
    names = [f"{number:02}" for number in range(30)]
    engine.put(*names)
    for lease in worker.claim(30):
        worker.end(lease, "park", lease.id.encode() * 2)
    status = engine.run(commands.status(engine.keys))
    assert status.parked == 30
    assert status.parked_reasons == {one.encode(): one.encode() * 2 for one in names[:20]}


def test_workers_are_listed_while_they_say_so(engine: Engine) -> None:
    def workers() -> dict[bytes, bytes]:
        return dict(engine.run(commands.status(engine.keys)).workers)

    for worker in ("aaaaaaaa", "bbbbbbbb"):
        told = engine.run(commands.hello(engine.keys, worker, 60_000, b"about " + worker.encode()))
        assert told == engine.now_ms
    engine.run(commands.hello(engine.keys, "", 0, b""))
    assert workers() == {b"aaaaaaaa": b"about aaaaaaaa", b"bbbbbbbb": b"about bbbbbbbb"}
    engine.run(commands.hello(engine.keys, "aaaaaaaa", 0, b""))
    assert set(workers()) == {b"bbbbbbbb"}
    engine.call("DEL", engine.keys.worker("bbbbbbbb"))
    assert workers() == {}
    engine.run(commands.hello(engine.keys, "cccccccc", 60_000, b""))
    assert engine.call("SMEMBERS", engine.key("w")) == {b"cccccccc"}
    assert 0 < engine.call("PTTL", engine.keys.worker("cccccccc")) <= 60_000


def test_two_queues_of_an_app_never_meet(engine: Engine, worker: Worker) -> None:
    other = Engine(engine.app, "other")
    engine.put("a")
    assert Worker(other).claim(10) == []
    other.put("a", args=(1,))
    worker.run("a", "success", b"\x07")
    assert (engine.counts(), other.counts()) == ({"success": 1}, {"queued": 1})


def test_the_rate_is_that_of_runs_that_ended_in_the_last_minute(
    engine: Engine, worker: Worker
) -> None:
    engine.advance(10 - engine.now_ms % 10_000 / 1000)  # the beginning of a slice
    engine.put(*(f"t{number}" for number in range(12)))
    for number in range(10):
        worker.run(f"t{number}", "success")
    (handed_back,) = worker.claim()
    worker.end(handed_back, "release")
    assert rate(engine) == 10 / 50
    engine.advance(5)
    worker.run(handed_back.id, "success")
    assert rate(engine) == 11 / 55
    engine.advance(50)
    worker.run("t11", "success")
    assert rate(engine) == 12 / 55
    engine.advance(5)
    assert rate(engine) == 1 / 50
    assert engine.call("HLEN", engine.key("pace")) == 2
    engine.advance(10)
    engine.put("last")
    worker.run("last", "success")
    assert engine.call("HLEN", engine.key("pace")) == 2
    assert engine.call("PTTL", engine.key("pace")) > 0


def rate(engine: Engine) -> float:
    return engine.run(commands.status(engine.keys)).rate
