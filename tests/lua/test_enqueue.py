"""enqueue.lua: a task is added once, whatever is sent again, and is queued or scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import ERROR, Engine, Worker, ids, settlement

from conveyor import IdConflict, TaskStatus
from conveyor.moments import from_ms
from conveyor.records import Flag, payload_of

if TYPE_CHECKING:
    from conveyor import Conveyor


def test_a_new_task_is_queued(engine: Engine) -> None:
    engine.put("a", priority=7)
    task = engine.task("a")
    assert task.status is TaskStatus.QUEUED
    assert task.created_at == task.queued_at == engine.now
    assert task.enqueue_after is task.expires_at is task.processing_started_at is None
    assert engine.ready("r:7") == ["a"]
    assert engine.places("a") == ["r:7"]


def test_sent_again_it_is_added_once(engine: Engine, worker: Worker) -> None:
    new = engine.new("a", 1)
    assert engine.enqueue(new) == [None]
    assert engine.enqueue(new, new) == [None, None]
    assert engine.ready() == ["a"]
    worker.run("a", "success")
    assert engine.enqueue(new) == [None]
    assert engine.places("a") == ["ok"]


def test_another_call_under_the_id_gets_the_record_that_is_there(engine: Engine) -> None:
    engine.put("a", args=(1,))
    existing, created = engine.enqueue(engine.new("a", 2), engine.new("b", 2))
    assert existing is not None
    assert created is None
    assert payload_of(existing).call == payload_of(engine.new("a", 1).record).call
    assert engine.ready() == ["a", "b"]


def test_what_exists_is_told_of_without_its_result(engine: Engine, worker: Worker) -> None:
    engine.put("a", args=(1,))
    worker.run("a", "success", b"result")
    (existing,) = engine.enqueue(engine.new("a", 2))
    assert existing is not None
    assert existing.endswith(payload_of(engine.new("a", 1).record).call)


@pytest.mark.parametrize("on_existing", ["return", "error", "replace_ended"])
def test_a_task_that_has_not_ended_is_never_replaced(
    engine: Engine, worker: Worker, on_existing: str
) -> None:
    engine.put("a", args=(1,))
    worker.claim()
    (existing,) = engine.enqueue(engine.new("a", 2), on_existing=on_existing)
    assert existing is not None
    assert engine.task("a").args == (1,)
    assert engine.places("a") == ["l"]


@pytest.mark.parametrize("end", ["success", "fatal", "cancelled"])
def test_an_ended_task_is_replaced_where_that_is_asked_for(
    engine: Engine, worker: Worker, end: str
) -> None:
    engine.put("a", args=(1,))
    worker.run("a", end, ERROR)
    (existing,) = engine.enqueue(engine.new("a", 2))
    assert existing is not None
    assert engine.enqueue(engine.new("a", 2), on_existing="replace_ended") == [None]
    task = engine.task("a")
    assert (task.args, task.status) == ((2,), TaskStatus.QUEUED)
    assert task.error is None
    assert task.attempts == ()
    assert engine.places("a") == ["r:5"]


def test_a_replacement_sent_again_after_its_end_does_not_run_again(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", options=b"\x01")
    worker.run("a", "success")
    new = engine.new("a", options=b"\x02")
    assert engine.enqueue(new, on_existing="replace_ended") == [None]
    worker.run("a", "success")
    assert engine.enqueue(new, on_existing="replace_ended") == [None]
    assert engine.places("a") == ["ok"]


def test_a_replacement_of_what_was_cancelled_in_the_queue_runs_once(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b")
    engine.cancel("a")
    assert engine.enqueue(engine.new("a", 2), on_existing="replace_ended") == [None]
    assert engine.counts() == {"queued": 2}
    assert sorted(ids(worker.claim(10))) == ["a", "b"]
    assert engine.counts() == {"processing": 2}
    assert engine.memory()["tombstones"] == 0
    assert engine.broken() == {}


def test_sent_again_after_it_ended_without_a_record_it_does_not_run_again(
    engine: Engine, worker: Worker
) -> None:
    new = engine.new("a", 1, flags=Flag.REMOVE_ON_SUCCESS)
    assert engine.enqueue(new) == [None]
    worker.run("a", "success")
    engine.advance(5.9)
    assert engine.enqueue(new) == [None]
    assert engine.counts() == {}


@pytest.mark.parametrize("end", ["success", "fatal", "cancelled"])
def test_sent_again_after_its_record_was_trimmed_it_does_not_run_again(
    engine: Engine, worker: Worker, end: str
) -> None:
    new = engine.new("a", 1, retain_success_ms=1000, retain_failed_ms=1000)
    engine.enqueue(new)
    worker.run("a", end, ERROR)
    engine.advance(1)
    assert engine.maintain().moved == 1
    assert engine.enqueue(new) == [None]
    assert engine.counts() == {}


def test_nor_after_newer_successes_took_its_place(engine: Engine, worker: Worker) -> None:
    new = engine.new("a", 1)
    engine.enqueue(new, engine.new("b"))
    for lease in worker.claim(2):
        worker.send(settlement(lease, "success"), keep_success=1)
        engine.advance(1)
    assert engine.exists("a") == 0
    assert engine.enqueue(new) == [None]
    assert engine.counts() == {"success": 1}


def test_nor_after_another_call_replaced_it(engine: Engine, worker: Worker) -> None:
    first, second = (engine.new("a", options=nonce) for nonce in (b"\x01", b"\x02"))
    for new in (first, second):
        assert engine.enqueue(new, on_existing="replace_ended") == [None]
        worker.run("a", "success")
    assert engine.enqueue(first, on_existing="replace_ended") == [None]
    assert engine.counts() == {"success": 1}


def test_another_call_under_the_id_of_one_that_left_no_record_runs(
    engine: Engine, worker: Worker
) -> None:
    for options in (b"\x01", b"\x02"):  # where the user chose the id, each call has a nonce here
        engine.put("a", options=options, flags=Flag.REMOVE_ON_SUCCESS)
        worker.run("a", "success")


def test_of_what_ended_without_a_record_little_is_remembered(
    engine: Engine, worker: Worker
) -> None:
    engine.put("old", flags=Flag.REMOVE_ON_SUCCESS)
    engine.advance(10)
    worker.run("old", "success")
    assert not engine.call("EXISTS", engine.key("gone"))
    for number in range(30):
        engine.put(f"t{number}", flags=Flag.REMOVE_ON_SUCCESS)
        worker.run(f"t{number}", "success")
        engine.advance(1)
    assert engine.call("ZCARD", engine.key("gone")) < 14
    assert engine.call("PTTL", engine.key("gone")) > 0


@pytest.mark.parametrize("due", ["+30000", "moment"])
def test_a_task_due_later_is_scheduled(engine: Engine, due: str) -> None:
    engine.put("a", due=str(engine.now_ms + 30_000) if due == "moment" else due)
    task = engine.task("a")
    assert task.status is TaskStatus.SCHEDULED
    assert task.enqueue_after == engine.in_(30)
    assert task.queued_at is None
    assert engine.places("a") == ["s"]


def test_a_task_that_was_due_before_is_queued(engine: Engine) -> None:
    engine.put("a", due=str(engine.now_ms))
    engine.put("b", due="0")
    engine.put("c", due="1")
    assert engine.ready() == ["a", "b", "c"]
    assert engine.task("c").enqueue_after == from_ms(1)


def test_a_scheduled_task_sent_again_stays_where_it_is(engine: Engine) -> None:
    new = engine.new("a", due="+1000")
    assert engine.enqueue(new) == [None]
    due = engine.score("s", "a")
    engine.advance(0.5)
    assert engine.enqueue(new) == [None]
    assert engine.score("s", "a") == due


def test_a_queued_task_wakes_a_worker_of_its_lane(engine: Engine) -> None:
    engine.put("a")
    assert engine.markers() == {"r", "o"}
    engine.take_markers()
    engine.put("b", flags=16)
    assert engine.markers() == {"a"}
    assert engine.ready("a:5") == ["b"]


def test_an_earlier_moment_wakes_the_orchestrators_and_a_later_one_does_not(engine: Engine) -> None:
    engine.put("a", due="+2000")
    assert engine.markers() == {"o"}
    engine.take_markers()
    engine.put("b", due="+2000")
    engine.put("c", due="+3000")
    assert engine.markers() == set()
    engine.put("d", due="+1000")
    assert engine.markers() == {"o"}
    assert engine.memory()["due"] == engine.score("s", "d")


@pytest.mark.parametrize("spoil", [("SET", "no record"), ("LPUSH", "a list")])
def test_an_id_whose_record_cannot_be_read_is_refused_by_name(
    engine: Engine, spoil: tuple[str, str]
) -> None:
    command, value = spoil
    engine.call(command, engine.key("t:a"), value)
    with pytest.raises(IdConflict, match="'a'"):
        engine.enqueue(engine.new("b"), engine.new("a"))
    assert engine.enqueue(engine.new("b")) == [None]
    assert engine.ready() == ["b"]


def test_ids_of_any_text_are_told_apart(engine: Engine, worker: Worker) -> None:
    names = ["ä", "a:b", "{x}", "a,b", "0", "x" * 256]
    engine.put(*names)
    assert ids(worker.claim(10)) == names


class TestThroughAnApp:
    """What callers see of it."""

    def test_the_same_call_returns_a_handle(self, app: Conveyor) -> None:
        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        first = add.options(id="a").delay(1, 2)
        second = add.options(id="a").delay(1, 2)
        assert (first.created, second.created) == (True, False)
        assert second == first

    def test_another_call_is_a_conflict(self, app: Conveyor) -> None:
        @app.task(name="add")
        def add(x: int) -> int:
            return x

        @app.task(name="other")
        def other(x: int) -> int:
            return x

        add.options(id="a").delay(1)
        with pytest.raises(IdConflict, match="other arguments"):
            add.options(id="a").delay(2)
        with pytest.raises(IdConflict, match="belongs to a add"):
            other.options(id="a").delay(1)
        with pytest.raises(IdConflict, match="exists already"):
            add.options(id="a", on_existing="error").delay(1)

    def test_many_calls_keep_their_order(self, app: Conveyor) -> None:
        @app.task
        def double(x: int) -> int:
            return x

        sent = double.map([(number,) for number in range(250)])
        engine = Engine(app)
        assert engine.ready() == [result.id for result in sent]
