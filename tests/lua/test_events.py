"""What each script tells those who listen to a queue, in which order and with what in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from conveyor import REDACTED, EventType, TaskStatus
from conveyor.broker import commands
from conveyor.packing import pack_error
from conveyor.records import HEADER, Flag

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import Engine, Worker

    from .ear import Ear


ERROR = pack_error("ValueError", "no", "line 1")
#: The end of a task, told once.
SUCCESS = ["task_success", "task_complete"]
FAIL = ["task_fail", "task_complete"]
CANCELLED = ["task_cancelled", "task_complete"]


def run(outcome: str, data: bytes = b"", **about: Any) -> Callable[[Engine, Worker], None]:
    """One run of task "a" that ends so; what came before is not of interest."""
    delay_ms = about.pop("delay_ms", 0)

    def provoke(engine: Engine, worker: Worker) -> None:
        engine.put("a", **about)
        (lease,) = worker.claim()
        begin_here(engine)
        worker.end(lease, outcome, data, delay_ms=delay_ms)

    return provoke


def begin_here(engine: Engine) -> None:
    """Marks where a provocation begins."""
    engine.call("SPUBLISH", engine.keys.events, msgpack.packb(["-", 0, "", "", [], False, False]))


def enqueue(engine: Engine, _worker: Worker) -> None:
    begin_here(engine)
    engine.put("a")


def schedule(engine: Engine, _worker: Worker) -> None:
    begin_here(engine)
    engine.put("a", due="+1000")


def come_due(engine: Engine, _worker: Worker) -> None:
    engine.put("a", due="+1000")
    begin_here(engine)
    engine.advance(1)
    engine.maintain()


def claim(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    begin_here(engine)
    worker.claim()


def come_due_in_a_claim(engine: Engine, worker: Worker) -> None:
    engine.put("a", due="+1000")
    begin_here(engine)
    engine.advance(1)
    worker.claim()


def cancel_queued(engine: Engine, _worker: Worker) -> None:
    engine.put("a")
    begin_here(engine)
    engine.cancel("a")


def cancel_scheduled(engine: Engine, _worker: Worker) -> None:
    engine.put("a", due="+1000")
    begin_here(engine)
    engine.cancel("a")


def cancel_running(outcome: str) -> Callable[[Engine, Worker], None]:
    def provoke(engine: Engine, worker: Worker) -> None:
        engine.put("a", error_retry_limit=1)
        (lease,) = worker.claim()
        begin_here(engine)
        engine.cancel("a")
        worker.end(lease, outcome, ERROR)

    return provoke


def expire(engine: Engine, _worker: Worker) -> None:
    engine.put("a", expires="+1000")
    begin_here(engine)
    engine.advance(1)
    engine.maintain()


def expire_in_a_claim(engine: Engine, worker: Worker) -> None:
    engine.put("a", expires="+1000")
    engine.advance(1)
    begin_here(engine)
    worker.claim()


def stall(**about: Any) -> Callable[[Engine, Worker], None]:
    def provoke(engine: Engine, worker: Worker) -> None:
        engine.put("a", stall_ms=1000, **about)
        worker.claim()
        begin_here(engine)
        engine.run_out(1)

    return provoke


def stall_twice(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "stall", ERROR)
    (lease,) = worker.claim()
    begin_here(engine)
    worker.end(lease, "stall", ERROR)


def unpark(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "park", b"unknown")
    begin_here(engine)
    engine.run(commands.unpark(engine.keys, 0, ["app.add"]))


def give_up(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "park", b"unknown")
    begin_here(engine)
    engine.advance(86_400)
    engine.maintain()


def say(field: str) -> Callable[[Engine, Worker], None]:
    def provoke(engine: Engine, worker: Worker) -> None:
        engine.put("a")
        (lease,) = worker.claim()
        begin_here(engine)
        assert engine.run(commands.progress(engine.keys, "a", lease.token, field, b"\x07"))

    return provoke


@pytest.mark.parametrize(
    ("provoke", "told"),
    [
        (enqueue, ["task_queued"]),
        (schedule, ["task_scheduled"]),
        (come_due, ["task_queued"]),
        (claim, ["task_processing"]),
        (come_due_in_a_claim, ["task_queued", "task_processing"]),
        (run("success", b"\x07"), SUCCESS),
        (run("success", b"\x07", flags=Flag.REMOVE_ON_SUCCESS), SUCCESS),
        (run("error", ERROR), ["task_error", *FAIL]),
        (run("error", ERROR, flags=Flag.REMOVE_ON_FAILED), ["task_error", *FAIL]),
        (run("error", ERROR, error_retry_limit=1), ["task_error", "task_queued"]),
        (run("error", ERROR, error_retry_limit=1, delay_ms=9), ["task_error", "task_scheduled"]),
        (run("fatal", ERROR, error_retry_limit=1), ["task_error", *FAIL]),
        (run("stall", ERROR), ["task_stalled", "task_queued"]),
        (run("stall", ERROR, stall_retry_limit=0), ["task_stalled", *FAIL]),
        (stall_twice, ["task_stalled", "task_scheduled"]),
        (stall(), ["task_stalled", "task_queued"]),
        (stall(stall_retry_limit=0), ["task_stalled", *FAIL]),
        (run("interrupted", ERROR), ["task_queued"]),
        (run("interrupted", ERROR, stall_retry_limit=0), FAIL),
        (run("release"), ["task_queued"]),
        (run("cancelled"), CANCELLED),
        (cancel_queued, CANCELLED),
        (cancel_scheduled, CANCELLED),
        (cancel_running("error"), CANCELLED),
        (cancel_running("success"), SUCCESS),
        (expire, FAIL),
        (expire_in_a_claim, FAIL),
        (run("park", b"unknown"), ["task_updated"]),
        (unpark, ["task_updated"]),
        (give_up, FAIL),
        (say("p"), ["task_progress_updated"]),
        (say("d"), ["task_updated"]),
    ],
)
def test_what_is_told(
    engine: Engine, worker: Worker, ear: Ear, provoke: Any, told: list[str]
) -> None:
    provoke(engine, worker)
    heard = ear.heard()
    heard = heard[[one.type for one in heard].index("-") + 1 :]
    assert [one.type for one in heard] == told
    assert {one.id for one in heard} == {"a"}
    assert {one.now_ms for one in heard} == {engine.now_ms}
    assert set(told) <= set(EventType)


def test_the_task_is_told_as_it_was_at_that_moment(
    engine: Engine, worker: Worker, ear: Ear
) -> None:
    engine.put("a", error_retry_limit=1, flags=Flag.REMOVE_ON_SUCCESS)
    worker.run("a", "error", ERROR)
    worker.run("a", "success", b"\x07")
    queued, processing, error, again, _, success, complete = ear.events()
    assert [event.task and event.task.status for event in (queued, processing, error, again)] == [
        TaskStatus.QUEUED,
        TaskStatus.PROCESSING,
        TaskStatus.PROCESSING,
        TaskStatus.QUEUED,
    ]
    assert queued.worker is None
    assert processing.worker == error.worker == worker.name.hex()
    assert error.task is not None
    assert error.task.error == "ValueError: no"
    assert again.task is not None
    assert (again.task.error_retries, len(again.task.attempts)) == (1, 1)
    for ended in (success, complete):
        assert ended.task is not None
        assert ended.task.status is TaskStatus.SUCCESS
        assert ended.task.processing_ended_at == ended.created_at == engine.now
        assert ended.queue == "default"
    assert not engine.exists("a")


def test_progress_and_data_are_told_with_their_value(
    engine: Engine, worker: Worker, ear: Ear
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    engine.run(commands.progress(engine.keys, "a", lease.token, "p", b"\x07"))
    engine.run(commands.progress(engine.keys, "a", lease.token, "d", b"\x08"))
    *_, progress, data = ear.events()
    assert (progress.data, progress.task and progress.task.progress) == (7, 7)
    assert (data.data, data.task and data.task.data) == (8, 8)
    assert engine.run(commands.progress(engine.keys, "a", b"x" * 12, "p", b"\x09")) is False
    assert ear.types() == []


def test_workers_are_told_when_they_come_and_go(engine: Engine, ear: Ear) -> None:
    about = msgpack.packb({"host": "here"})
    for _ in range(2):  # a greeting is repeated on every new connection
        engine.run(commands.hello(engine.keys, "0000000a", 60_000, about))
    for event in (EventType.WORKER_PAUSED, EventType.WORKER_RESUMED):
        engine.run(commands.announce(engine.keys, event, "0000000a"))
    for _ in range(2):
        engine.run(commands.hello(engine.keys, "0000000a", 0, b""))
    engine.run(commands.hello(engine.keys, "", 0, b""))
    events = ear.events()
    assert [event.type for event in events] == [
        "worker_started",
        "worker_paused",
        "worker_resumed",
        "worker_shutdown",
    ]
    for event in events:
        assert (event.worker, event.data, event.task) == ("0000000a", {"host": "here"}, None)


def test_a_queue_is_told_when_it_changes(engine: Engine, ear: Ear) -> None:
    manager = engine.app.manager()
    for _ in range(2):  # what changes nothing is not told
        manager.pause_queue()
    for _ in range(2):
        manager.resume_queue()
    for _ in range(2):
        manager.set_queue_rate_limit(5, 0.5)
    for _ in range(2):
        manager.clear_queue_rate_limit()
    events = ear.events()
    assert [(event.type.value, event.data) for event in events] == [
        ("queue_paused", None),
        ("queue_resumed", None),
        ("queue_rate_limit_updated", {"points": 5, "duration": 0.5}),
        ("queue_rate_limit_updated", None),
    ]
    assert all(event.task is event.worker is None for event in events)


def test_what_a_manager_does_to_a_task_is_told(engine: Engine, worker: Worker, ear: Ear) -> None:
    manager = engine.app.manager()
    engine.put("a", "b")
    worker.run("a", "fatal", ERROR)
    ear.heard()
    assert manager.retry_task_by_id("a")
    (event,) = ear.events()
    assert event.type == "task_queued"
    assert event.task is not None
    assert (event.task.error, event.task.status) == (None, TaskStatus.QUEUED)
    manager.remove_task_by_id("a")
    manager.purge_queue()
    assert ear.types() == []
    manager.destroy_queue()
    engine.put("c")
    assert ear.types() == ["task_queued"]


def test_a_call_that_is_repeated_tells_nothing_again(
    engine: Engine, worker: Worker, ear: Ear
) -> None:
    new = engine.new("a")
    engine.enqueue(new)
    (lease,) = worker.claim()
    worker.end(lease, "success", b"\x07")
    ear.heard()
    engine.enqueue(new)
    worker.claim(again=True)
    assert worker.end(lease, "success", b"\x07") == commands.Verdict.ALREADY
    engine.cancel("a")
    assert ear.types() == []


def test_a_batch_is_told_in_order(engine: Engine, worker: Worker, ear: Ear) -> None:
    engine.put(*"abc")
    worker.claim(3)
    heard = [(one.type, one.id) for one in ear.heard()]
    assert heard == [("task_queued", one) for one in "abc"] + [
        ("task_processing", one) for one in "abc"
    ]


def test_options_that_cannot_be_read_are_left_out(engine: Engine, worker: Worker, ear: Ear) -> None:
    engine.put("a", args=(1,), options=b"\xc1")
    worker.run("a", "success", b"\x07")
    for event in ear.events(reveal=True):
        assert event.task is not None
        assert (event.task.name, event.task.args, event.task.headers) == ("app.add", REDACTED, {})


def test_a_malformed_record_is_told_without_what_cannot_be_read(
    engine: Engine, worker: Worker, ear: Ear
) -> None:
    engine.put("a")
    name = b"n" * 60_000
    record = bytearray(engine.call("GET", engine.key("t:a"))[: HEADER.size] + name)
    record[HEADER.size - 6 :] = len(name).to_bytes(2, "little") + bytes(4) + name
    engine.call("SET", engine.key("t:a"), bytes(record))
    worker.run("a", "fatal", ERROR)
    events = ear.events(reveal=True)
    assert [event.type for event in events] == [
        "task_queued",
        "task_processing",
        "task_error",
        *FAIL,
    ]
    assert events[-1].task is not None
    assert events[-1].task.error == "ValueError: no"
    assert events[-1].task.name == name.decode()
