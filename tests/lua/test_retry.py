"""After a run that did not succeed: limits, delays, and the history of attempts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from engine import ERROR, NOTICE, Engine, Worker, ids

from conveyor import TaskStatus
from conveyor.packing import pack_error
from conveyor.records import UNLIMITED

STALLED = pack_error("TaskStalled", "its child died")


def run_until_it_ends(
    engine: Engine, worker: Worker, outcomes: str, *, most: int = 20
) -> tuple[int, TaskStatus]:
    """Ends run after run with errors and stalls by turns; how many runs there were, and the end."""
    for run in range(most):
        outcome = {"e": "error", "s": "stall"}[outcomes[run % len(outcomes)]]
        worker.run("a", outcome, ERROR)
        engine.advance(3600)
        engine.maintain()
        if engine.task("a").status.ended:
            return run + 1, engine.task("a").status
    return most, engine.task("a").status


@pytest.mark.parametrize(
    ("outcomes", "common", "error", "stall", "runs"),
    [
        ("e", UNLIMITED, 0, 3, 1),
        ("e", UNLIMITED, 2, 0, 3),
        ("s", UNLIMITED, 0, 0, 1),
        ("s", UNLIMITED, 0, 2, 3),
        ("es", UNLIMITED, 2, 1, 4),
        ("es", UNLIMITED, 1, 9, 3),
        ("e", 2, 9, 9, 3),
        ("s", 2, 9, 9, 3),
        ("es", 3, 9, 9, 4),
        ("es", 0, 9, 9, 1),
        ("e", 9, 2, 9, 3),
    ],
)
def test_limits(
    engine: Engine,
    worker: Worker,
    outcomes: str,
    common: int,
    error: int,
    stall: int,
    runs: int,
) -> None:
    engine.put("a", retry_limit=common, error_retry_limit=error, stall_retry_limit=stall)
    assert run_until_it_ends(engine, worker, outcomes) == (runs, TaskStatus.FAILED)
    task = engine.task("a")
    assert task.retries == task.error_retries + task.stall_retries == runs - 1


def test_no_limit_is_no_limit(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=UNLIMITED, stall_retry_limit=UNLIMITED)
    assert run_until_it_ends(engine, worker, "es") == (20, TaskStatus.QUEUED)
    task = engine.task("a")
    assert (task.error_retries, task.stall_retries) == (10, 10)
    assert task.error == "ValueError: no"


def test_unlimited_is_infinity_to_callers(engine: Engine) -> None:
    @engine.app.task(name="app.add")
    def add() -> None: ...

    add.options(
        id="a", retry_limit=math.inf, error_retry_limit=math.inf, stall_retry_limit=7
    ).delay()
    task = engine.task("a")
    assert (task.retry_limit, task.error_retry_limit, task.stall_retry_limit) == (None, math.inf, 7)


def test_an_error_retry_waits_for_its_delay(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=1)
    worker.run("a", "error", ERROR, delay_ms=1500)
    task = engine.task("a")
    assert task.status is TaskStatus.SCHEDULED
    assert task.enqueue_after == engine.in_(1.5)
    assert task.error_retries == 1
    assert engine.places("a") == ["s"]
    engine.advance(1.499)
    assert engine.maintain().moved == 0
    engine.advance(0.001)
    assert engine.maintain().moved == 1
    assert engine.places("a") == ["r:5"]


def test_a_delayed_retry_wakes_the_orchestrators_for_its_moment(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", error_retry_limit=1)
    (lease,) = worker.claim()
    engine.take_markers()
    worker.end(lease, "error", ERROR, delay_ms=1500)
    assert engine.markers() == {"o"}
    assert engine.memory()["due"] == engine.now_ms + 1500


def test_a_retry_without_delay_goes_to_the_tail(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", error_retry_limit=1)
    (lease, _) = worker.claim(2)
    engine.put("c")
    engine.take_markers()
    worker.end(lease, "error", ERROR)
    assert engine.ready() == ["c", "a"]
    assert engine.markers() == {"r"}


def test_after_the_first_stall_a_task_is_next_in_line_and_after_later_ones_it_waits(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", stall_retry_limit=UNLIMITED)
    (lease,) = worker.claim()
    engine.put("b")
    worker.end(lease, "stall", STALLED)
    assert engine.ready() == ["a", "b"]
    (lease, good) = worker.claim(2)
    worker.end(good, "success")
    worker.end(lease, "stall", STALLED)
    assert engine.score("s", "a") == engine.now_ms + 1000
    engine.advance(60)
    delays: list[int] = []
    for _ in range(9):
        (lease,) = worker.claim()
        worker.end(lease, "stall", STALLED)
        delays.append((engine.score("s", "a") or 0) - engine.now_ms)
        engine.advance(60)
    assert delays == [2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000, 60000]


def test_a_silent_worker_stalls_its_tasks(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_ms=1000, stall_retry_limit=1)
    worker.claim()
    engine.advance(0.999)
    engine.maintain()
    assert engine.places("a") == ["l"]
    engine.advance(0.001)
    assert engine.maintain().moved == 1
    assert engine.places("a") == ["l"]  # under notice
    engine.advance(NOTICE)
    assert engine.maintain().moved == 1
    task = engine.task("a")
    assert (task.status, task.stall_retries) == (TaskStatus.QUEUED, 1)
    assert [run.outcome for run in task.attempts] == ["stall"]
    worker.claim()
    engine.run_out(1)
    task = engine.task("a")
    assert task.status is TaskStatus.FAILED
    assert task.error == "TaskStalled: its worker died or went silent"


def test_each_task_stalls_after_its_own_timeout(engine: Engine, worker: Worker) -> None:
    engine.put("short", stall_ms=1000)
    engine.put("long", stall_ms=60_000)
    engine.put("never", stall_ms=UNLIMITED)
    worker.claim(3)
    engine.run_out(1)
    assert [engine.places(one) for one in ("short", "long")] == [["r:5"], ["l"]]
    engine.run_out(59)
    assert [engine.places(one) for one in ("long", "never")] == [["r:5"], ["l"]]


def test_an_interrupted_task_goes_back_to_the_head_uncounted(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b", stall_retry_limit=1)
    for _ in range(5):
        worker.run("a", "interrupted", ERROR)
        assert engine.ready() == ["a", "b"]
    task = engine.task("a")
    assert (task.retries, task.interruptions) == (0, 5)
    assert {run.outcome for run in task.attempts} == {"interrupted"}


@pytest.mark.parametrize(
    "limits",
    [
        {"error_retry_limit": 0, "stall_retry_limit": 0},
        {"retry_limit": 0, "error_retry_limit": 0, "stall_retry_limit": 0},
        {"retry_limit": 0, "error_retry_limit": 0, "stall_retry_limit": 3},
        {"retry_limit": 0, "error_retry_limit": 5, "stall_retry_limit": 3},
    ],
)
def test_a_task_that_may_run_at_most_once_fails_when_it_is_interrupted(
    engine: Engine, worker: Worker, limits: dict[str, Any]
) -> None:
    engine.put("a", **limits)
    worker.run("a", "interrupted", pack_error("TaskInterrupted", "shutdown"))
    task = engine.task("a")
    assert task.status is TaskStatus.FAILED
    assert task.error == "TaskInterrupted: shutdown"


def test_a_task_that_may_run_at_most_once_may_be_handed_back_unbegun(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", error_retry_limit=0, stall_retry_limit=0)
    worker.run("a", "release")
    worker.run("a", "success")
    assert engine.places("a") == ["ok"]


def test_the_last_ten_attempts_are_kept(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=UNLIMITED)
    for number in range(13):
        (lease,) = worker.claim()
        engine.advance(1)
        worker.end(lease, "error", pack_error("ValueError", str(number), "trace"))
    task = engine.task("a")
    assert [run.error for run in task.attempts] == [f"ValueError: {one}" for one in range(3, 13)]
    assert all(run.traceback == "trace" for run in task.attempts)
    assert [run.ended_at for run in task.attempts] == [engine.in_(one - 12) for one in range(3, 13)]
    assert all((run.ended_at - run.started_at).total_seconds() == 1 for run in task.attempts)
    worker.run("a", "success", b"\x07")
    task = engine.task("a")
    assert [run.outcome for run in task.attempts] == ["error"] * 9 + ["success"]
    assert task.error is None


def test_a_timeout_is_an_error_that_the_history_tells_apart(engine: Engine, worker: Worker) -> None:
    timeout = pack_error("TaskTimeout", "too long")
    engine.put("a", error_retry_limit=2)
    worker.run("a", "timeout", timeout)
    worker.run("a", "error", ERROR)
    task = engine.task("a")
    assert (task.status, task.error_retries, task.stall_retries) == (TaskStatus.QUEUED, 2, 0)
    worker.run("a", "timeout", timeout, delay_ms=1000)
    task = engine.task("a")
    assert (task.status, task.error) == (TaskStatus.FAILED, "TaskTimeout: too long")
    assert [run.outcome for run in task.attempts] == ["timeout", "error", "timeout"]
    engine.put("b", error_retry_limit=2)
    worker.run("b", "fatal_timeout", timeout)
    task = engine.task("b")
    assert (task.status, task.error_retries) == (TaskStatus.FAILED, 0)
    assert [run.outcome for run in task.attempts] == ["timeout"]


def test_a_timeout_waits_for_its_delay(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=1)
    worker.run("a", "timeout", ERROR, delay_ms=1500)
    assert engine.task("a").enqueue_after == engine.in_(1.5)
    assert engine.places("a") == ["s"]


def test_attempts_of_every_kind_are_in_order(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=UNLIMITED, stall_retry_limit=UNLIMITED)
    outcomes = ["interrupted", "error", "stall", "timeout", "error", "interrupted", "success"]
    for number, outcome in enumerate(outcomes):
        (lease,) = worker.claim()
        engine.advance(number + 1)
        data = b"\x07" if outcome == "success" else pack_error(outcome.title(), str(number), "t")
        worker.end(lease, outcome, data)
    task = engine.task("a")
    assert [run.outcome for run in task.attempts] == outcomes
    assert [run.error for run in task.attempts] == [
        *(f"{outcome.title()}: {number}" for number, outcome in enumerate(outcomes[:-1])),
        None,
    ]
    assert [(run.ended_at - run.started_at).total_seconds() for run in task.attempts] == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip
    assert {run.worker for run in task.attempts} == {worker.name.hex()}
    assert [run.traceback for run in task.attempts] == ["t"] * 6 + [None]


def test_a_run_that_succeeds_at_first_writes_no_history(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "success", b"\x07")
    assert [run.outcome for run in engine.task("a").attempts] == ["success"]
    assert not engine.call("EXISTS", engine.key("x:a"))


def test_a_retry_keeps_lane_and_priority(engine: Engine, worker: Worker) -> None:
    engine.put("a", priority=2, flags=16, error_retry_limit=1)
    (lease,) = worker.claim(0, 1)
    worker.end(lease, "error", ERROR, delay_ms=10)
    engine.advance(1)
    engine.maintain()
    assert engine.ready("a:2") == ["a"]
    assert ids(worker.claim(0, 1)) == ["a"]


def test_the_call_survives_its_retries(engine: Engine, worker: Worker) -> None:
    engine.put("a", args=(b"x" * 100_000, {"y": [1.5]}), error_retry_limit=UNLIMITED)
    for outcome in ("error", "stall", "interrupted", "release", "error"):
        worker.run("a", outcome, ERROR)
    worker.run("a", "success", b"\x07")
    task = engine.task("a")
    assert task.args == (b"x" * 100_000, {"y": [1.5]})
    assert (task.result, task.name) == (7, "app.add")
