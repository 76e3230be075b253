"""How long an ended task is kept: by its retention, by the queue's cap, or not at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
from engine import ERROR, Engine, Worker, settlement

from conveyor.records import FOREVER, Flag


@pytest.mark.parametrize(
    ("outcome", "container", "seconds"),
    [("success", "ok", 3600), ("fatal", "failed", 604_800), ("cancelled", "cancelled", 604_800)],
)
def test_an_ended_task_is_removed_when_its_retention_has_passed(
    engine: Engine, worker: Worker, outcome: str, container: str, seconds: int
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    engine.call("HSET", engine.key("x:a"), "p", b"\x01")
    worker.end(lease, outcome, ERROR)
    assert engine.score(container, "a") == engine.now_ms + seconds * 1000
    engine.advance(seconds - 0.001)
    engine.maintain()
    assert engine.exists("a") == 2
    engine.advance(0.001)
    assert engine.maintain().moved == 1
    assert engine.exists("a") == 0
    assert engine.places("a") == []
    assert engine.maintain().next_due_ms is None


def test_an_orchestrator_is_woken_for_an_earlier_removal(engine: Engine, worker: Worker) -> None:
    engine.put("a", retain_success_ms=1000)
    (lease,) = worker.claim()
    engine.maintain()
    engine.take_markers()
    worker.end(lease, "success")
    assert engine.markers() == {"o"}
    assert engine.memory()["kept"] == engine.now_ms + 1000


@pytest.mark.parametrize(
    ("outcome", "limits"),
    [
        ("success", {"flags": Flag.REMOVE_ON_SUCCESS}),
        ("success", {"retain_success_ms": 0}),
        ("fatal", {"flags": Flag.REMOVE_ON_FAILED}),
        ("fatal", {"retain_failed_ms": 0}),
        ("cancelled", {"retain_failed_ms": 0}),
    ],
)
def test_a_task_that_is_not_kept_is_gone_as_soon_as_it_ends(
    engine: Engine, worker: Worker, outcome: str, limits: dict[str, Any]
) -> None:
    engine.put("a", error_retry_limit=1, **limits)
    worker.run("a", "error", ERROR)
    assert engine.exists("a") == 2
    lease = worker.run("a", outcome, ERROR)
    assert engine.exists("a") == 0
    assert engine.places("a") == []
    assert engine.counts() == {}
    assert worker.end(lease, outcome, ERROR) == 0


@pytest.mark.parametrize(
    ("outcome", "flags", "container"),
    [
        ("success", Flag.REMOVE_ON_FAILED, "ok"),
        ("fatal", Flag.REMOVE_ON_SUCCESS, "failed"),
        ("cancelled", Flag.REMOVE_ON_SUCCESS | Flag.REMOVE_ON_FAILED, "cancelled"),
    ],
)
def test_only_the_end_that_is_named_removes_it(
    engine: Engine, worker: Worker, outcome: str, flags: int, container: str
) -> None:
    engine.put("a", flags=flags)
    worker.run("a", outcome, ERROR)
    assert engine.places("a") == [container]


def test_a_task_that_is_kept_for_ever_is_never_due(engine: Engine, worker: Worker) -> None:
    engine.put("a", retain_success_ms=FOREVER)
    worker.run("a", "success")
    engine.advance(1_000_000_000)
    engine.maintain()
    assert engine.call("ZSCORE", engine.key("ok"), "a") == math.inf
    assert engine.exists("a") == 1
    assert engine.maintain().next_due_ms is None


def test_only_so_many_successes_are_kept_and_the_oldest_go_first(
    engine: Engine, worker: Worker
) -> None:
    names = [f"{number:02}" for number in range(12)]
    engine.put(*names, error_retry_limit=1)
    for name in names:
        worker.run(name, "error", ERROR)  # so that each has both of its keys
    for number, name in enumerate(names):
        (lease,) = worker.claim()
        engine.advance(1)
        assert lease.id == name
        worker.send(settlement(lease, "success"), keep_success=5)
        assert engine.counts()["success"] == min(number + 1, 5)
    assert [name for name in names if engine.exists(name) == 2] == names[-5:]
    assert not any(engine.exists(name) for name in names[:-5])
    assert engine.memory()["ok"] == 12


def test_a_lowered_cap_is_reached_in_steps(engine: Engine, worker: Worker) -> None:
    engine.put(*(f"{number:03}" for number in range(250)))
    for _ in range(3):
        for lease in worker.claim(100):
            worker.end(lease, "success")
    engine.put("failed", "last")
    worker.run("failed", "fatal", ERROR)
    (lease,) = worker.claim()
    worker.send(settlement(lease, "success"), keep_success=0)
    assert engine.counts() == {"success": 151, "failed": 1}
    for number in (51, 0, 0):
        worker.send(settlement(lease, "success"), keep_success=0)
        assert engine.counts().get("success", 0) == number
    assert engine.call("KEYS", engine.key("t:*")) == [engine.key("t:failed").encode()]


def test_trimming_is_bounded_and_goes_on(engine: Engine, worker: Worker) -> None:
    engine.put(*(f"{number:03}" for number in range(250)))
    for _ in range(3):
        for lease in worker.claim(100):
            worker.end(lease, "success")
    engine.advance(3600)
    told = [engine.maintain() for _ in range(4)]
    assert [one.moved for one in told] == [100, 100, 50, 0]
    assert [one.more for one in told] == [True, True, False, False]
    assert engine.call("KEYS", engine.key("[tx]:*")) == []
