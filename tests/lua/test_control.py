"""control.lua, and what claims make of it: pauses, and at most so many starts in a window."""

from __future__ import annotations

import random

import pytest
from engine import ERROR, Engine, Worker, ids
from faults.windows import most_in_a_window

from conveyor.broker import commands
from conveyor.broker.commands import Limited
from conveyor.records import Flag


def pause(engine: Engine) -> bool:
    return engine.run(commands.pause(engine.keys))


def resume(engine: Engine) -> bool:
    return engine.run(commands.resume(engine.keys))


def limit(engine: Engine, points: int, seconds: float) -> bool:
    return engine.run(commands.limit_rate(engine.keys, points, round(seconds * 1000)))


# Pausing.


def test_a_paused_queue_gives_nothing_out(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    assert pause(engine)
    answer = worker.send(sync=10, asynchronous=10)
    assert (answer.claimed, answer.left, answer.limited) == ([], b"", Limited.NO)
    assert engine.counts() == {"queued": 2}
    assert resume(engine)
    assert ids(worker.claim(10)) == ["a", "b"]


def test_pausing_and_resuming_say_whether_they_changed_anything(engine: Engine) -> None:
    assert [pause(engine), pause(engine)] == [True, False]
    assert engine.memory()["paused"] == engine.now_ms
    assert [resume(engine), resume(engine)] == [True, False]
    assert {"paused", "hold"}.isdisjoint(engine.memory())


def test_what_runs_ends_and_is_retried_while_paused(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", error_retry_limit=1)
    a, b = worker.claim(2)
    pause(engine)
    assert worker.renew(a, b) == [1, 1]
    assert worker.end(a, "success") == 1
    assert worker.end(b, "error", ERROR) == 1
    assert engine.counts() == {"queued": 1, "success": 1}
    assert worker.claim() == []


def test_a_lost_reply_of_a_claim_is_given_again_while_paused(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b")
    claimed = worker.claim()
    pause(engine)
    assert worker.claim(again=True) == claimed
    assert worker.claim() == []


def test_what_is_scheduled_becomes_queued_while_paused(engine: Engine, worker: Worker) -> None:
    engine.put("a", due="+1000")
    engine.put("b", due="+2000")
    pause(engine)
    engine.advance(1)
    assert engine.maintain().moved == 1
    engine.advance(1)
    assert worker.claim(10) == []  # a claim moves them too
    assert engine.ready() == ["a", "b"]


def test_no_worker_is_woken_while_paused_and_one_a_lane_when_that_ends(engine: Engine) -> None:
    pause(engine)
    engine.put("a")
    engine.put("b", flags=Flag.ASYNC)
    engine.put("c", due="+1")
    engine.take_markers()
    engine.advance(1)
    engine.maintain()
    assert engine.markers() & {"r", "a"} == set()
    resume(engine)
    assert engine.markers() >= {"r", "a"}


def test_a_worker_of_an_empty_queue_is_not_woken_when_it_is_resumed(engine: Engine) -> None:
    pause(engine)
    resume(engine)
    assert engine.markers() == set()


def test_a_paused_queue_costs_an_orchestrator_nothing(engine: Engine) -> None:
    engine.put("a")
    pause(engine)
    engine.advance(60)
    assert engine.maintain().next_due_ms is None


# The rate limit.


def test_no_more_start_than_allowed(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcde")
    assert limit(engine, 2, 1)
    answer = worker.send(sync=10)
    assert [one.decode() for one in answer.claimed[::2]] == ["a", "b"]
    assert (answer.left, answer.limited) == (b"", Limited.HOLDS_BACK)
    assert worker.claim(10) == []
    engine.advance(1)
    assert worker.claim(10) == []  # exactly a window later the first is still in it
    engine.advance(0.001)
    assert ids(worker.claim(10)) == ["c", "d"]
    assert engine.counts() == {"queued": 1, "processing": 4}


def test_it_slides(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcdef")
    limit(engine, 2, 1)
    assert ids(worker.claim(1)) == ["a"]
    engine.advance(0.6)
    assert ids(worker.claim(10)) == ["b"]
    engine.advance(0.401)
    assert ids(worker.claim(10)) == ["c"]
    engine.advance(0.599)
    assert worker.claim(10) == []
    engine.advance(0.001)
    assert ids(worker.claim(10)) == ["d"]


def test_the_orchestrator_is_woken_when_the_next_may_start(engine: Engine, worker: Worker) -> None:
    engine.put(*"abc")
    limit(engine, 2, 1)
    worker.claim(10)
    assert "o" in engine.markers()
    engine.take_markers()
    assert engine.maintain().next_due_ms == engine.now_ms + 1001
    assert engine.markers() == set()
    engine.advance(1.001)
    engine.maintain()
    assert engine.markers() == {"r"}
    assert ids(worker.claim(10)) == ["c"]


def test_so_it_is_for_what_comes_while_none_may_start(engine: Engine, worker: Worker) -> None:
    limit(engine, 1, 1)
    engine.put("a")
    answer = worker.send(sync=10)
    assert (answer.left, answer.limited) == (b"", Limited.YES)
    engine.take_markers()
    engine.put("b")
    assert engine.markers() == {"o"}
    assert engine.maintain().next_due_ms == engine.now_ms + 1001


def test_all_workers_and_both_lanes_share_it(engine: Engine) -> None:
    engine.put(*(f"s{n}" for n in range(9)))
    engine.put(*(f"a{n}" for n in range(9)), flags=Flag.ASYNC)
    limit(engine, 3, 1)
    first, second = Worker(engine, b"one "), Worker(engine, b"two ")
    assert len(first.claim(1, 1)) + len(second.claim(5, 5)) == 3
    engine.advance(1.001)
    assert len(second.claim(9, 9)) == 3


def test_neither_lane_waits_for_ever_behind_the_other(engine: Engine, worker: Worker) -> None:
    engine.put(*(f"s{n}" for n in range(9)))
    engine.put(*(f"a{n}" for n in range(9)), flags=Flag.ASYNC)
    limit(engine, 1, 1)
    claimed: list[str] = []
    for _ in range(4):
        claimed += ids(worker.claim(5, 5))
        engine.advance(1.001)
    assert {one[0] for one in claimed} == {"s", "a"}


def test_nor_where_each_start_takes_a_second_call_that_settles_it(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*(f"s{n}" for n in range(9)))
    engine.put(*(f"a{n}" for n in range(9)), flags=Flag.ASYNC)
    limit(engine, 1, 1)
    claimed: list[str] = []
    for _ in range(4):
        (lease,) = worker.claim(5, 5)
        claimed.append(lease.id)
        worker.end(lease, "success")
        engine.advance(1.001)
    assert {one[0] for one in claimed} == {"s", "a"}


def test_what_expired_waiting_uses_up_no_start(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", expires="+500")
    engine.put("c", "d", "e")
    limit(engine, 2, 10)
    engine.advance(0.5)
    assert ids(worker.claim(3) + worker.claim(10)) == ["c", "d"]


def test_a_start_is_used_up_when_the_task_is_handed_back(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    limit(engine, 1, 1)
    (lease,) = worker.claim()
    worker.end(lease, "release")
    assert worker.claim() == []
    engine.advance(1.001)
    assert ids(worker.claim()) == ["a"]


def test_a_lost_reply_of_a_claim_uses_up_no_more(engine: Engine, worker: Worker) -> None:
    engine.put(*"abc")
    limit(engine, 2, 1)
    claimed = worker.claim(1)
    assert worker.claim(1, again=True) == claimed
    assert ids(worker.claim(10)) == ["b"]


def test_setting_the_same_limit_again_allows_no_more(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcdef")
    assert limit(engine, 2, 1)
    assert not limit(engine, 2, 1)
    worker.claim(10)
    assert not limit(engine, 2, 1)
    assert worker.claim(10) == []
    # Nor does a lower one forget the starts before it; a higher one allows what it has room for.
    assert limit(engine, 1, 1)
    assert worker.claim(10) == []
    assert limit(engine, 3, 1)
    assert len(worker.claim(10)) == 1


def test_a_lower_limit_for_a_while_forgets_no_start(engine: Engine, worker: Worker) -> None:
    engine.put(*(f"{number:03}" for number in range(100)))
    limit(engine, 20, 60)
    assert len(worker.claim(50)) == 20
    limit(engine, 2, 60)
    assert worker.claim(50) == []
    limit(engine, 20, 60)
    assert worker.claim(50) == []
    engine.advance(60.001)
    limit(engine, 2, 60)
    assert len(worker.claim(50)) == 2
    limit(engine, 20, 60)
    assert len(worker.claim(50)) == 18


def test_workers_hear_at_once_that_it_was_cleared(engine: Engine, worker: Worker) -> None:
    engine.put(*"abc")
    limit(engine, 1, 3600)
    worker.claim(10)
    engine.take_markers()
    assert limit(engine, 0, 0)
    assert not limit(engine, 0, 0)
    assert "r" in engine.markers()
    answer = worker.send(sync=10)
    assert (len(answer.claimed), answer.limited) == (4, Limited.NO)
    assert engine.call("EXISTS", engine.key("starts")) == 0


def test_a_limit_that_is_changed_while_paused_leaves_it_paused(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*"abc")
    limit(engine, 1, 3600)
    worker.claim(10)
    pause(engine)
    limit(engine, 2, 3600)
    assert worker.claim(10) == []
    resume(engine)
    assert ids(worker.claim(10)) == ["b"]
    pause(engine)
    resume(engine)
    assert worker.claim(10) == []


def test_a_queue_without_a_limit_notes_no_start(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.claim()
    assert engine.call("EXISTS", engine.key("starts")) == 0


@pytest.mark.parametrize("seed", range(5))
def test_no_window_ever_has_more(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    points, ms = chance.choice([(1, 10), (3, 50), (10, 100), (150, 100)])
    limit(engine, points, ms / 1000)
    engine.put(*(f"{n:03}" for n in range(100)))
    engine.put(*(f"{n:03}" for n in range(100, 200)), flags=Flag.ASYNC)
    workers = [Worker(engine, b"one "), Worker(engine, b"two "), Worker(engine, b"tri ")]
    starts: list[int] = []
    while len(starts) < 200:
        if not chance.randrange(9):
            assert not limit(engine, points, ms / 1000)
        claimed = chance.choice(workers).claim(chance.randrange(1, 12), chance.randrange(12))
        starts += [engine.now_ms] * len(claimed)
        engine.advance(chance.choice([0, 0.001, 0.003, ms / 1000 / 2]))
    assert most_in_a_window(starts, ms / 1000) <= points
    assert engine.call("LLEN", engine.key("starts")) <= points


def test_its_list_of_starts_is_as_long_as_the_limit(engine: Engine, worker: Worker) -> None:
    limit(engine, 3, 0.001)
    engine.put(*map(str, range(30)))
    while engine.counts().get("queued"):
        worker.claim(10)
        engine.advance(0.002)
    assert engine.call("LLEN", engine.key("starts")) == 3
