"""retry.lua: an ended task once more, as if it had never run, but for its history."""

from __future__ import annotations

import pytest
from engine import Engine, Worker, ids

from conveyor import TaskStatus
from conveyor.broker import commands
from conveyor.packing import pack_error

ERROR = pack_error("ValueError", "no", "Traceback")


def retry(engine: Engine, task_id: str, nonce: bytes = b"") -> int:
    retry.calls += 1  # type: ignore[attr-defined]
    own = nonce or b"%d" % retry.calls  # type: ignore[attr-defined]
    return engine.run(commands.retry(engine.keys, task_id, own))


retry.calls = 0  # type: ignore[attr-defined]


def test_a_failed_task_is_queued_as_new(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=1, expires="+5000")
    worker.run("a", "error", ERROR)
    worker.run("a", "error", ERROR)
    engine.advance(60)
    assert retry(engine, "a") == 1
    assert engine.places("a") == ["r:5"]
    assert "r" in engine.markers()
    task = engine.task("a")
    assert task.status is TaskStatus.QUEUED
    assert (task.error_retries, task.stall_retries, task.interruptions) == (0, 0, 0)
    assert (task.error, task.traceback, task.expires_at) == (None, None, None)
    assert (task.processing_started_at, task.processing_ended_at) == (None, None)
    assert task.queued_at == engine.now
    assert [run.outcome for run in task.attempts] == ["error", "error"]
    # It may be retried as often as before.
    worker.run("a", "error", ERROR)
    worker.run("a", "success", b"\x07")
    task = engine.task("a")
    assert (task.result, task.error_retries, len(task.attempts)) == (7, 1, 4)


def test_a_task_that_succeeded(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "success", b"\x07")
    ended = engine.now
    engine.advance(5)
    assert retry(engine, "a") == 1
    task = engine.task("a")
    assert (task.status, task.result) == (TaskStatus.QUEUED, None)
    assert [(run.outcome, run.ended_at) for run in task.attempts] == [("success", ended)]
    worker.run("a", "success", b"\x08")
    task = engine.task("a")
    assert [run.outcome for run in task.attempts] == ["success", "success"]
    assert task.result == 8


def test_a_cancelled_task_runs(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    (lease,) = worker.claim()
    for one in "ab":
        engine.cancel(one)
    worker.end(lease, "cancelled")
    assert [retry(engine, one) for one in "ab"] == [1, 1]
    assert ids(held := worker.claim(10)) == ["b", "a"]  # b is claimed where it stood first
    assert worker.renew(*held) == [1, 1]
    assert [worker.end(one, "success") for one in held] == [1, 1]


def test_it_says_what_it_said_of_its_progress_no_more_but_keeps_its_data(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    for field in "pd":
        engine.run(commands.progress(engine.keys, "a", lease.token, field, b"\x05"))
    worker.end(lease, "fatal", ERROR)
    retry(engine, "a")
    task = engine.task("a")
    assert (task.progress, task.data) == (None, 5)


@pytest.mark.parametrize("state", ["scheduled", "queued", "processing", "parked"])
def test_a_task_that_has_not_ended_is_left_alone(
    engine: Engine, worker: Worker, state: str
) -> None:
    engine.put("a", due="+1000" if state == "scheduled" else "")
    if state == "processing":
        worker.claim()
    if state == "parked":
        worker.run("a", "park", b"unknown")
    places = engine.places("a")
    assert retry(engine, "a") == 0
    assert engine.places("a") == places


def test_a_task_that_is_not_there(engine: Engine) -> None:
    assert retry(engine, "a") == -1


def test_repeated_after_a_lost_reply_it_queues_once(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "fatal", ERROR)
    assert [retry(engine, "a", b"one"), retry(engine, "a", b"one")] == [1, 1]
    assert engine.ready() == ["a"]
    worker.run("a", "success", b"\x07")
    assert retry(engine, "a", b"one") == 1  # it had ended again by the time the repetition came
    assert engine.task("a").status is TaskStatus.SUCCESS
    assert retry(engine, "a", b"two") == 1
    assert engine.ready() == ["a"]


def test_the_outcome_of_an_old_run_changes_nothing(engine: Engine, worker: Worker) -> None:
    engine.put("a", stall_retry_limit=0)
    (old,) = worker.claim()
    engine.run_out(15)
    assert engine.task("a").status is TaskStatus.FAILED
    retry(engine, "a")
    assert worker.end(old, "success", b"\x01") != 1
    (new,) = worker.claim()
    assert worker.end(old, "success", b"\x01") == 0
    assert worker.end(new, "success", b"\x02") == 1
    assert engine.task("a").result == 2


def test_it_is_not_trimmed_when_its_first_retention_ends(engine: Engine, worker: Worker) -> None:
    engine.put("a", retain_failed_ms=1000)
    worker.run("a", "fatal", ERROR)
    retry(engine, "a")
    engine.advance(2)
    assert engine.maintain().moved == 0
    assert ids(worker.claim()) == ["a"]


def test_who_waits_again_is_told_of_the_new_end(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    engine.run(commands.wait(engine.keys, "me", ["a"]))
    worker.run("a", "fatal", ERROR)
    retry(engine, "a")
    assert engine.call("HEXISTS", engine.key("x:a"), "w") == 0
    assert engine.run(commands.wait(engine.keys, "me", ["a"])) == [True]
