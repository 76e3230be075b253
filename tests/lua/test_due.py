"""What comes due is moved, by orchestrators (maintain.lua) or by claims: promotion and expiry."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from engine import ERROR, Engine, Worker, ids

from conveyor import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable


def by_orchestrator(engine: Engine) -> None:
    engine.maintain()


def by_claim(engine: Engine) -> None:
    Worker(engine, os.urandom(4)).claim(0, 1)


each_mover = pytest.mark.parametrize("move", [by_orchestrator, by_claim])


@each_mover
def test_a_scheduled_task_is_queued_when_it_is_due_and_not_before(
    engine: Engine, move: Callable[[Engine], None]
) -> None:
    engine.put("a", due="+1000")
    engine.advance(0.999)
    move(engine)
    assert engine.places("a") == ["s"]
    engine.advance(0.001)
    move(engine)
    assert engine.places("a") == ["r:5"]
    task = engine.task("a")
    assert task.status is TaskStatus.QUEUED
    assert task.queued_at == task.enqueue_after == engine.now


def test_tasks_are_promoted_in_the_order_they_are_due(engine: Engine, worker: Worker) -> None:
    engine.put("late", due="+3000")
    engine.put("early", due="+1000")
    engine.put("urgent", due="+2000", priority=9)
    engine.advance(3)
    engine.maintain()
    assert ids(worker.claim(10)) == ["urgent", "early", "late"]


def test_promotion_wakes_a_worker(engine: Engine) -> None:
    engine.put("a", due="+1000", flags=16)
    engine.take_markers()
    engine.advance(1)
    engine.maintain()
    assert engine.markers() == {"a"}


def test_an_orchestrator_reminds_workers_of_what_is_ready(engine: Engine, worker: Worker) -> None:
    """Whoever took the marker may have died before it claimed."""
    engine.put("a", flags=16, priority=0)
    for _ in range(2):
        engine.take_markers()
        assert engine.maintain().next_due_ms == engine.now_ms + 10_000
        engine.advance(10)
        engine.maintain()
        assert engine.markers() == {"a"}
    (lease,) = worker.claim(0, 1)
    worker.end(lease, "success")
    engine.take_markers()
    engine.advance(10)
    engine.maintain()
    assert engine.markers() == set()


def test_an_orchestrator_is_told_when_to_come_back(engine: Engine) -> None:
    assert engine.maintain().next_due_ms is None
    engine.put("a", due="+1000")
    engine.put("b", expires="+500")
    told = engine.maintain()
    assert (told.moved, told.next_due_ms, told.more) == (0, engine.now_ms + 500, False)
    engine.advance(0.5)
    told = engine.maintain()
    assert (told.moved, told.next_due_ms) == (1, engine.now_ms + 500)


def test_an_orchestrator_moves_a_bounded_number_and_says_that_there_is_more(engine: Engine) -> None:
    engine.put(*"abcde", due="+1000")
    engine.advance(1)
    told = [engine.maintain(limit=2) for _ in range(4)]
    assert [one.moved for one in told] == [2, 2, 1, 0]
    assert [one.more for one in told] == [True, True, False, False]
    assert engine.ready() == list("abcde")


@pytest.mark.parametrize("kind", ["scheduled", "leased", "expiring"])
def test_an_orchestrator_moves_a_bounded_number_of_bytes(engine: Engine, kind: str) -> None:
    about: dict[str, dict[str, Any]] = {
        "scheduled": {"due": "+1000"},
        "leased": {"stall_ms": 1000},
        "expiring": {"expires": "+1000"},
    }
    for one in "abcde":
        engine.put(one, args=(b"x" * 600_000,), **about[kind])
    if kind == "leased":
        worker = Worker(engine)
        while worker.claim(10):
            pass
    engine.advance(1)
    told = [engine.maintain() for _ in range(4)]
    assert [one.moved for one in told] == [2, 2, 1, 0]
    assert [one.more for one in told] == [True, True, False, False]


def test_a_claim_moves_a_bounded_number_and_leaves_the_rest_to_the_orchestrator(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*(f"{number:02}" for number in range(50)), due="+1000")
    assert engine.maintain().next_due_ms == engine.now_ms + 1000
    engine.advance(1)
    assert len(worker.claim(50)) == 20
    assert engine.maintain().moved == 30


def test_a_claim_that_finds_what_no_orchestrator_was_told_of_wakes_one(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b", due="+1000")
    engine.call("HDEL", engine.keys.memory, "due")
    engine.take_markers()
    engine.advance(1)
    worker.claim()
    assert "o" in engine.markers()


@each_mover
def test_a_queued_task_expires(engine: Engine, move: Callable[[Engine], None]) -> None:
    engine.put("a", expires="+1000")
    assert engine.task("a").expires_at == engine.in_(1)
    engine.advance(0.999)
    move(engine)
    assert engine.places("a") == ["r:5"]
    engine.advance(0.001)
    move(engine)
    task = engine.task("a")
    assert task.status is TaskStatus.FAILED
    assert task.error == "TaskExpired: Task has expired"
    assert task.processing_ended_at == engine.now
    assert engine.places("a") == ["failed"]
    assert engine.counts() == {"failed": 1}


def test_the_place_of_an_expired_task_in_its_queue_is_passed_over(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", expires="+1000")
    engine.put("b")
    engine.advance(1)
    engine.maintain()
    assert engine.ready() == ["a", "b"]
    assert ids(worker.claim(10)) == ["b"]
    assert engine.ready() == []
    assert engine.memory()["tombstones"] == 0
    assert engine.broken() == {}


def test_an_expired_task_is_never_claimed_however_many_there_are(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*(f"{number:02}" for number in range(50)), expires="+1000")
    engine.put("last")
    engine.advance(1)
    claimed: list[str] = []
    while engine.ready():
        claimed += ids(worker.claim(10))
    assert claimed == ["last"]
    assert engine.counts() == {"failed": 50, "processing": 1}


def test_expiry_is_counted_from_when_the_task_is_due(engine: Engine) -> None:
    engine.put("a", due="+5000", expires="+1000")
    engine.put("b", due="0", expires="+1000")
    assert engine.task("a").expires_at == engine.in_(6)
    assert engine.task("b").expires_at == engine.in_(1)


def test_a_scheduled_task_expires_at_its_moment(engine: Engine) -> None:
    engine.put("a", due="+5000", expires=str(engine.now_ms + 1000))
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["failed"]
    engine.advance(5)
    engine.maintain()
    assert engine.places("a") == ["failed"]


def test_a_task_that_has_begun_does_not_expire(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000", error_retry_limit=9)
    (lease,) = worker.claim()
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["l"]
    worker.end(lease, "error", ERROR)
    engine.maintain()
    assert worker.run("a", "success").id == "a"


def test_a_task_handed_back_unbegun_still_expires(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    worker.run("a", "release")
    engine.advance(1)
    engine.maintain()
    assert engine.task("a").error == "TaskExpired: Task has expired"


def test_a_task_handed_back_after_a_retry_does_not_expire(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000", error_retry_limit=9)
    worker.run("a", "error", ERROR)
    worker.run("a", "release")
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["r:5"]
    assert ids(worker.claim()) == ["a"]


def test_a_task_that_ends_is_forgotten_by_the_clock(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", expires="+1000")
    worker.run("a", "success")
    engine.cancel("b")
    assert engine.call("ZCARD", engine.key("e")) == 0
    engine.advance(1)
    assert engine.maintain().moved == 0


def test_time_never_runs_backwards(engine: Engine, worker: Worker) -> None:
    """The server's clock is a day behind what the queue has seen, as after a step of NTP."""
    engine.put("a", due="+1000")
    seen = engine.now_ms
    assert engine.maintain().now_ms == seen
    assert worker.send().now_ms == seen
    assert engine.task("a").created_at == engine.now


def test_any_number_of_orchestrators_move_a_task_once(engine: Engine) -> None:
    engine.put("a", "b", due="+1000")
    engine.advance(1)
    assert [engine.maintain(1).moved for _ in range(3)] == [1, 1, 0]
    assert engine.ready() == ["a", "b"]
