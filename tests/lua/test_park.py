"""A task whose name no worker knows is parked until one comes that does, or it is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import ERROR, Engine, Worker, ids

from conveyor import TaskStatus
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Iterable

DAY_MS = 86_400_000


def park(worker: Worker, *names: str, park_ms: int = DAY_MS) -> None:
    """Claims what is first in the queue, which must be these, and parks it."""
    for name in names:
        (lease,) = worker.claim()
        assert lease.id == name
        settlement = commands.Settlement(name.encode(), lease.token, "park", b"unknown", 0)
        assert worker.send(settlement, park_ms=park_ms).verdicts == [1]


def unpark(engine: Engine, names: Iterable[str]) -> list[int]:
    """Releases what is parked, page after page; where each page told to go on."""
    told = [0]
    while told[-1] >= 0:
        told.append(engine.run(commands.unpark(engine.keys, told[-1], list(names))).following)
    return told[1:]


def test_a_parked_task_counts_as_queued_and_is_shown_with_its_reason(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    reason = b"app.add is not known here"
    assert worker.end(lease, "park", reason) == 1
    assert engine.places("a") == ["parked"]
    assert engine.task("a").status is TaskStatus.QUEUED
    status = engine.run(commands.status(engine.keys))
    assert (status.queued, status.parked, status.processing) == (1, 1, 0)
    assert status.parked_reasons == {b"a": reason}
    assert worker.claim() == []


def test_what_a_worker_knows_is_released_to_the_tail(engine: Engine, worker: Worker) -> None:
    engine.put("a", name="app.known", priority=9, flags=16)
    engine.put("b", name="app.unknown", priority=9, flags=16)
    for lease in worker.claim(0, 2):
        worker.end(lease, "park", b"unknown")
    engine.put("c", priority=9, flags=16)
    engine.take_markers()
    assert unpark(engine, ["app.known", "app.other"]) == [-1]
    assert engine.ready("a:9") == ["c", "a"]
    assert engine.places("b") == ["parked"]
    assert "a" not in engine.markers()
    assert ids(worker.claim(0, 9)) == ["c", "a"]


def test_what_was_released_for_a_worker_that_died_is_told_of_in_time(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    park(worker, "a")
    engine.take_markers()
    unpark(engine, ["app.add"])
    engine.advance(10)
    engine.maintain()
    assert "r" in engine.markers()


def test_more_than_one_page_of_them_is_looked_through(engine: Engine, worker: Worker) -> None:
    names = [f"{number:03}" for number in range(350)]
    for position, name in enumerate(names):
        engine.put(name, name="app.known" if position % 7 == 0 else "app.unknown")
    park(worker, *names)
    told = unpark(engine, ["app.known"])
    assert len(told) == 4
    assert engine.ready() == names[::7]
    assert engine.counts()["parked"] == 300
    assert engine.counts()["queued"] == 350


def test_a_page_of_large_ones_is_shorter(engine: Engine, worker: Worker) -> None:
    for one in "abcde":
        engine.put(one, args=(b"x" * 600_000,), name=f"app.{one}")
    park(worker, *"abcde")
    assert unpark(engine, ["app.b", "app.d", "app.e"]) == [1, 2, -1]
    assert engine.ready() == ["b", "d", "e"]
    assert engine.counts()["parked"] == 2


def test_a_released_task_runs_as_if_it_had_never_been_parked(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    park(worker, "a")
    unpark(engine, ["app.add"])
    worker.run("a", "success", b"\x07")
    task = engine.task("a")
    assert (task.retries, task.interruptions) == (0, 0)
    assert [run.outcome for run in task.attempts] == ["success"]
    assert engine.exists("a") == 1


def test_a_task_that_nobody_comes_to_know_is_given_up(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+5000")
    park(worker, "a", park_ms=3000)
    assert engine.maintain().next_due_ms == engine.now_ms + 3000
    engine.advance(2.999)
    engine.maintain()
    assert engine.places("a") == ["parked"]
    engine.advance(0.001)
    assert engine.maintain().moved == 1
    task = engine.task("a")
    assert task.status is TaskStatus.FAILED
    assert task.error == "UnknownTask: no worker knows a task named app.add"
    assert engine.places("a") == ["failed"]
    assert engine.call("ZCARD", engine.key("e")) == 0


def test_a_parked_task_expires(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    park(worker, "a")
    engine.advance(1)
    engine.maintain()
    assert engine.task("a").error == "TaskExpired: Task has expired"
    assert engine.places("a") == ["failed"]


def test_the_orchestrators_are_woken_for_the_expiry_of_a_parked_task(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", expires="+20000", stall_ms=60_000)
    (lease,) = worker.claim()
    engine.advance(10)
    assert engine.maintain().next_due_ms == engine.now_ms + 50_000
    engine.take_markers()
    worker.end(lease, "park", b"unknown")
    assert engine.memory()["due"] == engine.now_ms + 10_000
    assert engine.markers() == {"o"}


def test_a_task_that_was_parked_after_it_had_begun_does_not_expire(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", expires="+1000", error_retry_limit=1)
    worker.run("a", "error", ERROR)
    park(worker, "a")
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["parked"]


def test_a_released_task_still_expires(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    park(worker, "a")
    unpark(engine, ["app.add"])
    engine.advance(1)
    engine.maintain()
    assert engine.places("a") == ["failed"]


def test_what_is_parked_and_should_not_be_is_set_aside(engine: Engine, worker: Worker) -> None:
    engine.put("running", "parked")
    worker.claim()
    park(worker, "parked")
    for one in ("running", "nothing"):
        engine.call("ZADD", engine.key("parked"), 0, one)
    assert unpark(engine, ["app.add"]) == [-1]
    assert engine.broken() == {
        "running": "listed as parked but is not",
        "nothing": "missing",
    }
    assert engine.places("running") == ["l"]
    assert engine.ready() == ["parked"]


def test_what_is_given_up_and_should_not_be_parked_is_set_aside(
    engine: Engine, worker: Worker
) -> None:
    engine.put("running", "parked")
    worker.claim()
    park(worker, "parked", park_ms=0)
    for one in ("running", "nothing"):
        engine.call("ZADD", engine.key("parked"), 0, one)
    engine.maintain()
    assert engine.broken() == {
        "running": "listed as parked but is not",
        "nothing": "missing",
    }
    assert engine.places("running") == ["l"]
    assert engine.places("parked") == ["failed"]


def test_other_workers_are_told_that_something_was_parked(engine: Engine, worker: Worker) -> None:
    for other in (worker.name.hex(), "0000000a", "0000000b"):
        engine.run(commands.hello(engine.keys, other, 60_000, b""))
    engine.put("a")
    park(worker, "a")
    mail = {
        other: engine.call("ZRANGE", engine.keys.marker(other), 0, -1)
        for other in (worker.name.hex(), "0000000a", "0000000b")
    }
    told = [commands.PARKED_MAIL]
    assert mail == {worker.name.hex(): [], "0000000a": told, "0000000b": told}
