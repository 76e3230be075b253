"""Claiming, the second half of settle.lua: in order, bounded, and repeatable."""

from __future__ import annotations

import struct

import pytest
from engine import NOTICE, Engine, Worker, ids, leases

from conveyor import TaskStatus
from conveyor.broker import commands

ASYNC = 16


def test_a_claimed_task_is_leased_for_its_stall_timeout(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=7000)
    (lease,) = worker.claim()
    assert engine.places("a") == ["l"]
    assert engine.score("l", "a") == engine.now_ms + 7000
    task = engine.task("a")
    assert task.status is TaskStatus.PROCESSING
    assert task.processing_started_at == engine.now
    assert task.worker == b"work".hex()
    assert lease.record == engine.call("GET", engine.key("t:a"))


def test_a_token_is_the_start_the_worker_and_the_call(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    first = worker.run("a", "release")
    (second,) = worker.claim()
    assert first.token == struct.pack("<I4sI", 1, b"work", 1)
    assert second.token == struct.pack("<I4sI", 2, b"work", 3)


def test_tasks_are_claimed_in_the_order_they_were_queued(engine: Engine, worker: Worker) -> None:
    names = [str(number) for number in range(30)]
    engine.put(*names)
    assert ids(worker.claim(10) + worker.claim(10) + worker.claim(20)) == names
    assert worker.claim() == []


def test_higher_priorities_go_first(engine: Engine, worker: Worker) -> None:
    for priority in (0, 5, 9, 4):
        engine.put(f"{priority}a", f"{priority}b", priority=priority)
    assert ids(worker.claim(3) + worker.claim(9)) == [
        "9a",
        "9b",
        "5a",
        "5b",
        "4a",
        "4b",
        "0a",
        "0b",
    ]


def test_each_lane_is_claimed_for_itself(engine: Engine, worker: Worker) -> None:
    engine.put("s1", "s2", "s3")
    engine.put("a1", "a2", "a3", flags=ASYNC)
    assert ids(worker.claim(0, 2)) == ["a1", "a2"]
    assert ids(worker.claim(2, 0)) == ["s1", "s2"]
    assert ids(worker.claim(9, 9)) == ["s3", "a3"]


@pytest.mark.parametrize(
    ("sync", "asynchronous", "left"), [(1, 0, b"r"), (0, 1, b"a"), (1, 1, b"ra"), (2, 2, b"")]
)
def test_whoever_leaves_work_says_so_and_wakes_the_next(
    engine: Engine, worker: Worker, sync: int, asynchronous: int, left: bytes
) -> None:
    engine.put("s1", priority=9)
    engine.put("s2", priority=0)
    engine.put("a1", "a2", flags=ASYNC)
    engine.take_markers()
    assert worker.send(sync=sync, asynchronous=asynchronous).left == left
    assert engine.markers() - {"o"} == set(left.decode())


def test_two_workers_get_different_tasks(engine: Engine) -> None:
    engine.put(*"abcd")
    one, two = Worker(engine, b"one "), Worker(engine, b"two ")
    assert [ids(one.claim(2)), ids(two.claim(2))] == [["a", "b"], ["c", "d"]]


def test_a_claim_carries_a_bounded_number_of_bytes(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c", args=(b"x" * 400_000,))
    engine.put("d")
    settled = worker.send(sync=10)
    assert ids(leases(settled)) == ["a", "b"]
    assert settled.left == b"r"
    assert ids(worker.claim(10)) == ["c", "d"]


def test_the_bound_holds_across_priorities_and_lanes(engine: Engine, worker: Worker) -> None:
    engine.put("a", args=(b"x" * 700_000,), priority=9)
    engine.put("b", args=(b"x" * 700_000,))
    engine.put("c", args=(b"x" * 700_000,), flags=ASYNC)
    settled = worker.send(sync=10, asynchronous=10)
    assert ids(leases(settled)) == ["a"]
    assert settled.left == b"ra"
    assert [ids(worker.claim(10, 10)) for _ in range(3)] == [["b"], ["c"], []]


def test_a_task_larger_than_the_bound_is_claimed_alone(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    engine.put("b", args=(b"x" * 2_000_000,))
    engine.put("c")
    assert [ids(worker.claim(10)) for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_a_claim_whose_reply_was_lost_is_answered_again(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcd")
    claimed = worker.claim(2)
    assert worker.claim(2, again=True) == claimed
    assert worker.claim(2, again=True) == claimed
    assert ids(worker.claim(2)) == ["c", "d"]
    assert engine.counts() == {"processing": 4}


def test_what_moved_on_since_is_left_out_of_the_answer(engine: Engine, worker: Worker) -> None:
    engine.put(*"abc", stall_ms=1000)
    claimed = worker.claim(3)
    engine.run_out(1)
    other = Worker(engine, b"else")
    assert ids(other.claim(1)) == ["c"]
    assert worker.renew(*claimed) == [0, 0, 0]
    assert worker.claim(3, again=True) == []


def test_a_lost_answer_without_tasks_is_repeated_too(engine: Engine, worker: Worker) -> None:
    """The first call may be what arrives late, on a connection that was given up."""
    assert worker.claim() == []
    engine.put("a")
    assert worker.claim(again=True) == []
    assert ids(worker.claim()) == ["a"]


def test_so_is_one_of_a_queue_that_was_paused(engine: Engine, worker: Worker) -> None:
    engine.run(commands.pause(engine.keys))
    assert worker.claim() == []
    engine.run(commands.resume(engine.keys))
    engine.put("a")
    assert worker.claim(again=True) == []
    assert ids(worker.claim()) == ["a"]


def test_who_comes_back_after_a_long_silence_is_answered_again(
    engine: Engine, worker: Worker
) -> None:
    name = worker.name.hex()
    hello = commands.hello(engine.keys, name, 95_000, b"")
    engine.run(hello)
    engine.put("a", "b", stall_ms=600_000)
    assert ids(worker.claim()) == ["a"]
    engine.call("DEL", engine.keys.worker(name))
    engine.run(hello)
    assert ids(worker.claim(again=True)) == ["a"]


@pytest.mark.parametrize("later", [1, 0])
def test_a_claim_that_arrives_after_a_later_one_takes_nothing(
    engine: Engine, worker: Worker, later: int
) -> None:
    """Its connection was given up, so nobody reads what it would be given."""
    late, worker.calls = Worker(engine, worker.name), 1
    engine.put(*"ab"[:later])
    assert ids(worker.claim()) == list("ab"[:later])
    engine.put("c")
    assert late.claim(9) == []
    assert engine.counts() == ({"processing": 1, "queued": 1} if later else {"queued": 1})


def test_a_worker_repeats_only_its_own_claim(engine: Engine) -> None:
    engine.put("a", "b")
    one, two = Worker(engine, b"one "), Worker(engine, b"two ")
    assert ids(one.claim()) == ["a"]
    assert ids(two.claim()) == ["b"]
    assert ids(one.claim(again=True)) == ["a"]


def test_a_call_that_claims_nothing_asks_for_nothing(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    settled = worker.send()
    assert (settled.claimed, settled.left) == ([], b"")
    assert engine.places("a") == ["r:5"]


def test_tombstones_are_passed_over_and_counted_off(engine: Engine, worker: Worker) -> None:
    names = [f"{number:03}" for number in range(150)]
    engine.put(*names)
    for name in names[:-1]:
        engine.cancel(name)
    assert engine.memory()["tombstones"] == 149
    assert ids(worker.claim(100)) == ["149"]
    assert engine.memory()["tombstones"] == 0
    assert engine.call("EXISTS", engine.key("tombstones")) == 0


def test_more_tombstones_than_one_call_looks_at_are_passed_over_in_several(
    engine: Engine, worker: Worker
) -> None:
    names = [f"{number:03}" for number in range(500)]
    engine.put(*names)
    for name in names[:-1]:
        engine.cancel(name)
    answers = [worker.send(sync=10) for _ in range(4)]
    assert [answer.left for answer in answers] == [b"r", b"r", b"", b""]
    assert [ids(leases(answer)) for answer in answers] == [[], [], ["499"], []]


def test_a_claim_needs_no_orchestrator(engine: Engine, worker: Worker) -> None:
    engine.put("due", due="+1000")
    engine.put("stalled", stall_ms=1000)
    engine.put("expired", expires="+1000")
    Worker(engine, b"dead").claim()
    engine.advance(1)
    assert ids(worker.claim(10)) == ["due"]
    engine.advance(NOTICE)
    assert ids(worker.claim(10)) == ["stalled"]
    assert engine.counts() == {"processing": 2, "failed": 1}


def test_a_worker_that_says_farewell_leaves_no_key(engine: Engine, worker: Worker) -> None:
    from conveyor.broker import commands

    engine.put("a")
    engine.run(commands.hello(engine.keys, worker.name.hex(), 60_000, b"about"))
    worker.run("a", "success")
    engine.run(commands.hello(engine.keys, worker.name.hex(), 0, b""))
    left = engine.call("KEYS", engine.key("*"))
    assert sorted(left) == sorted(
        engine.key(name).encode() for name in ("m", "t:a", "ok", "k:r", "k:o", "pace")
    )
