"""cancel.lua: at once when it is not running, else the worker is asked, and told until it stops."""

from __future__ import annotations

import pytest
from engine import ERROR, Engine, Worker, ids

from conveyor import TaskNotFound, TaskStatus
from conveyor.broker.commands import Verdict


def test_a_queued_task_is_cancelled_at_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c")
    assert engine.cancel("b") == 1
    task = engine.task("b")
    assert task.status is TaskStatus.CANCELLED
    assert task.processing_ended_at == engine.now
    assert engine.places("b") == ["cancelled"]
    assert engine.counts() == {"queued": 2, "cancelled": 1}
    assert ids(worker.claim(10)) == ["a", "c"]
    assert engine.counts() == {"processing": 2, "cancelled": 1}


def test_a_scheduled_task_is_cancelled_at_once(engine: Engine) -> None:
    engine.put("a", due="+1000")
    assert engine.cancel("a") == 1
    assert engine.places("a") == ["cancelled"]
    engine.advance(1)
    assert engine.maintain().moved == 0
    assert engine.places("a") == ["cancelled"]


def test_a_task_that_waits_for_its_retry_is_cancelled_at_once(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", error_retry_limit=1)
    worker.run("a", "error", ERROR, delay_ms=1000)
    assert engine.cancel("a") == 1
    assert engine.places("a") == ["cancelled"]


def test_a_parked_task_is_cancelled_at_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    worker.run("a", "park", b"unknown")
    assert engine.cancel("a") == 1
    assert engine.places("a") == ["cancelled"]
    assert engine.call("ZCARD", engine.key("e")) == 0


def test_the_worker_of_a_running_task_is_asked_to_stop_it(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    a, b = worker.claim(2)
    assert engine.cancel("a") == 1
    assert engine.places("a") == ["l"]
    assert engine.task("a").status is TaskStatus.PROCESSING
    mailbox = engine.keys.marker(b"work".hex())
    assert engine.call("ZRANGE", mailbox, 0, -1) == [a.token + b"a"]
    assert engine.call("PTTL", mailbox) > 0
    assert worker.renew(a, b) == [Verdict.CANCEL_ASKED, Verdict.ACCEPTED]
    assert worker.end(a, "cancelled") == Verdict.ACCEPTED
    assert engine.places("a") == ["cancelled"]


@pytest.mark.parametrize(
    "outcome", ["error", "timeout", "fatal", "stall", "interrupted", "release", "park"]
)
def test_a_task_whose_cancellation_was_asked_for_does_not_run_again(
    engine: Engine, worker: Worker, outcome: str
) -> None:
    engine.put("a", error_retry_limit=9, expires="+1000")
    (lease,) = worker.claim()
    engine.cancel("a")
    assert worker.end(lease, outcome, ERROR) == Verdict.ACCEPTED
    assert engine.places("a") == ["cancelled"]
    assert engine.task("a").status is TaskStatus.CANCELLED
    assert engine.call("ZCARD", engine.key("e")) == 0
    assert worker.claim() == []


def test_a_task_that_succeeded_before_it_was_stopped_has_succeeded(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    engine.cancel("a")
    assert worker.end(lease, "success", b"\x07") == Verdict.ACCEPTED
    assert engine.task("a").result == 7


def test_a_task_whose_worker_died_before_it_could_be_stopped_is_cancelled(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    worker.claim()
    engine.cancel("a")
    engine.run_out(15)
    assert engine.places("a") == ["cancelled"]


@pytest.mark.parametrize("outcome", ["success", "fatal", "cancelled"])
def test_an_ended_task_stays_as_it_is(engine: Engine, worker: Worker, outcome: str) -> None:
    engine.put("a")
    worker.run("a", outcome, ERROR)
    places = engine.places("a")
    assert engine.cancel("a") == 0
    assert engine.places("a") == places


def test_a_task_that_is_not_there_is_not_cancelled(engine: Engine) -> None:
    assert engine.cancel("a") == -1
    with pytest.raises(TaskNotFound, match="'a'"):
        engine.app.result("a").cancel()


def test_cancelled_again_it_is_cancelled_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    assert [engine.cancel("a") for _ in range(2)] == [1, 0]
    assert engine.memory()["tombstones"] == 1
    (lease,) = worker.claim()
    assert [engine.cancel("b") for _ in range(2)] == [1, 1]
    worker.end(lease, "cancelled")
    assert engine.memory()["cancelled"] == 2


def test_a_cancelled_place_in_the_queue_is_never_counted(engine: Engine, worker: Worker) -> None:
    """The same id enters and leaves the queue again and again."""
    engine.put("first")
    for number in range(5):
        new = engine.new("a", number)
        assert engine.enqueue(new, on_existing="replace_ended") == [None]
        assert engine.counts()["queued"] == 2
        assert engine.places("a") == ["r:5"]
        engine.cancel("a")
        assert engine.counts()["queued"] == 1
        assert engine.places("a") == ["cancelled"]
    assert engine.ready() == ["first", *"aaaaa"]
    assert ids(worker.claim(10)) == ["first"]
    assert engine.ready() == []
    assert engine.memory()["tombstones"] == 0
    assert engine.broken() == {}


def test_a_cancelled_task_is_kept_as_long_as_a_failed_one(engine: Engine) -> None:
    engine.put("a", retain_failed_ms=5000)
    engine.cancel("a")
    assert engine.score("cancelled", "a") == engine.now_ms + 5000


def test_a_cancelled_task_that_is_not_kept_leaves_only_its_place(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b", retain_failed_ms=0)
    engine.cancel("a")
    assert engine.exists("a") == 0
    assert engine.counts() == {"queued": 1}
    assert ids(worker.claim(10)) == ["b"]
    assert engine.broken() == {}
