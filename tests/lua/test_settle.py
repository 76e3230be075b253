"""settle.lua: each outcome ends a lease once, and only the current lease."""

from __future__ import annotations

import pytest
from engine import Engine, Lease, Worker, ids, leases, settlement

from conveyor import TaskStatus
from conveyor.broker.commands import Verdict
from conveyor.packing import pack_error

ERROR = pack_error("ValueError", "no", "line 1\nline 2")
OUTCOMES = [
    "success", "error", "fatal", "stall", "interrupted", "cancelled", "release", "park",
]  # fmt: skip


def test_a_success_keeps_the_result(engine: Engine, worker: Worker) -> None:
    engine.put("a", args=("x", [1]))
    result = engine.app.client.codec.encode({"sum": 3}, "result")
    (lease,) = worker.claim()
    engine.advance(2)
    assert worker.end(lease, "success", result) == Verdict.ACCEPTED
    task = engine.task("a")
    assert task.status is TaskStatus.SUCCESS
    assert task.result == {"sum": 3}
    assert task.args == ("x", [1])
    assert (task.error, task.traceback) == (None, None)
    assert task.processing_started_at == engine.in_(-2)
    assert task.processing_ended_at == engine.now
    (run,) = task.attempts
    assert (run.outcome, run.worker, run.error) == ("success", b"work".hex(), None)
    assert engine.places("a") == ["ok"]


def test_a_large_result_comes_back_whole(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    value = b"\x00\xff" * 1_000_000
    worker.run("a", "success", engine.app.client.codec.encode(value, "result"))
    assert engine.task("a").result == value


@pytest.mark.parametrize("outcome", ["error", "fatal"])
def test_an_error_without_a_retry_left_fails_the_task(
    engine: Engine, worker: Worker, outcome: str
) -> None:
    engine.put("a")
    worker.run("a", outcome, ERROR, delay_ms=1000)
    task = engine.task("a")
    assert task.status is TaskStatus.FAILED
    assert (task.error, task.traceback) == ("ValueError: no", "line 1\nline 2")
    assert task.processing_ended_at == engine.now
    (run,) = task.attempts
    assert (run.outcome, run.error, run.traceback) == ("error", task.error, task.traceback)
    assert engine.places("a") == ["failed"]


def test_a_fatal_error_is_not_retried(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=9)
    worker.run("a", "fatal", ERROR)
    assert engine.places("a") == ["failed"]
    assert engine.task("a").retries == 0


def test_a_cancelled_run_ends_the_task(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=9)
    worker.run("a", "cancelled")
    task = engine.task("a")
    assert task.status is TaskStatus.CANCELLED
    assert [run.outcome for run in task.attempts] == ["cancelled"]
    assert engine.places("a") == ["cancelled"]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_lease_that_was_lost_changes_nothing(
    engine: Engine, worker: Worker, outcome: str
) -> None:
    engine.put("a", stall_ms=1000)
    (lost,) = worker.claim()
    engine.run_out(1)
    other = Worker(engine, b"else")
    (current,) = other.claim()
    before = engine.call("GET", engine.key("t:a"))
    assert worker.end(lost, outcome, ERROR) == Verdict.STALE
    assert engine.call("GET", engine.key("t:a")) == before
    assert engine.places("a") == ["l"]
    assert other.end(current, "success") == Verdict.ACCEPTED
    assert worker.end(lost, outcome, ERROR) == Verdict.STALE
    assert engine.places("a") == ["ok"]


@pytest.mark.parametrize("again", OUTCOMES)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_was_settled_is_not_settled_again(
    engine: Engine, worker: Worker, outcome: str, again: str
) -> None:
    engine.put("a", error_retry_limit=9)
    lease = worker.run("a", outcome, ERROR)
    places, memory = engine.places("a"), engine.memory()
    assert worker.end(lease, again, ERROR) == Verdict.ALREADY
    assert engine.places("a") == places
    assert engine.memory() == memory


def test_a_start_counter_alone_is_no_token(engine: Engine, worker: Worker) -> None:
    """A server that was put back to an older state counts its starts again."""
    engine.put("a")
    (lease,) = worker.claim()
    forged = Lease("a", lease.token[:4] + b"x" * 8, lease.record)
    assert worker.end(forged, "success") == Verdict.STALE
    assert worker.renew(forged) == [0]
    assert engine.places("a") == ["l"]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_task_that_is_gone_is_nothing_to_settle(
    engine: Engine, worker: Worker, outcome: str
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    engine.call("DEL", engine.key("t:a"))
    assert worker.end(lease, outcome, ERROR) == Verdict.STALE


def test_each_lease_of_a_call_has_its_own_verdict(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcd", error_retry_limit=1)
    a, b, c, d = worker.claim(4)
    worker.end(b, "success")
    engine.call("DEL", engine.key("t:c"))
    settled = worker.send(
        settlement(a, "success"), settlement(b, "success"), settlement(c, "success"),
        settlement(d, "error", ERROR),
    )  # fmt: skip
    assert settled.verdicts == [1, 2, 0, 1]
    assert [engine.places(one) for one in "abd"] == [["ok"], ["ok"], ["r:5"]]


def test_one_call_settles_and_then_claims(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c")
    held = worker.claim(2)
    settled = worker.send(settlement(held[0], "success"), settlement(held[1], "release"), sync=9)
    assert ids(leases(settled)) == ["b", "c"]
    assert engine.counts() == {"processing": 2, "success": 1}


def test_a_call_whose_reply_was_lost_changes_nothing_twice(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c")
    (held,) = worker.claim()
    first = worker.send(settlement(held, "success"), sync=1)
    again = worker.send(settlement(held, "success"), sync=1, again=True)
    assert (first.verdicts, again.verdicts) == ([1], [2])
    assert again.claimed == first.claimed
    assert engine.memory()["ok"] == 1
    assert engine.counts() == {"queued": 1, "processing": 1, "success": 1}


def test_outcomes_are_counted_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c", "d", "e", error_retry_limit=1)
    for outcome in ("success", "fatal", "cancelled"):
        (lease,) = worker.claim()
        assert [worker.end(lease, outcome, ERROR) for _ in range(2)] == [1, 2]
    worker.run("d", "error", ERROR)
    counters = {name: engine.memory()[name] for name in ("ok", "failed", "cancelled")}
    assert counters == {"ok": 1, "failed": 1, "cancelled": 1}


def test_what_is_handed_back_last_first_keeps_its_order_at_the_head(
    engine: Engine, worker: Worker
) -> None:
    engine.put(*"abcde")
    claimed = worker.claim(3)
    worker.send(*(settlement(lease, "release") for lease in reversed(claimed)))
    assert engine.ready() == list("abcde")
    task = engine.task("a")
    assert task.status is TaskStatus.QUEUED
    assert (task.retries, task.interruptions, task.attempts) == (0, 0, ())


def test_what_is_handed_back_wakes_a_worker(engine: Engine, worker: Worker) -> None:
    engine.put("a", flags=16)
    (lease,) = worker.claim(0, 1)
    engine.take_markers()
    worker.end(lease, "release")
    assert engine.markers() == {"a"}
    assert engine.ready("a:5") == ["a"]
