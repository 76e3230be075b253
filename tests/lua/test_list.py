"""list.lua: every task of a status once, in a stable order, however many and however large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import ERROR

from conveyor import REDACTED
from conveyor.broker import commands
from conveyor.records import Flag

if TYPE_CHECKING:
    from engine import Engine, Worker


def listed(engine: Engine, status: str, offset: int = 0, limit: int = 1000) -> list[str]:
    manager = engine.app.manager(engine.queue)
    return [task.id for task in manager.get_tasks(status, offset, limit)]


def pages(engine: Engine, status: str, size: int) -> list[str]:
    found: list[str] = []
    while page := listed(engine, status, len(found), size):
        assert len(page) <= size
        found += page
    return found


def test_queued_tasks_come_as_they_are_claimed(engine: Engine, worker: Worker) -> None:
    engine.put("low", priority=0)
    engine.put("a", "b")
    engine.put("high", priority=9)
    engine.put("async", flags=Flag.ASYNC, priority=9)
    engine.put("async low", flags=Flag.ASYNC)
    engine.put("parked", priority=9)
    expected = ["high", "async", "a", "b", "async low", "low", "parked"]
    engine.put("first", priority=9, flags=0)
    engine.cancel("first")
    held = worker.claim(2)
    assert [one.id for one in held] == ["high", "parked"]
    worker.end(held[1], "park", b"unknown")
    worker.end(held[0], "release")
    assert listed(engine, "queued") == expected
    assert pages(engine, "queued", 2) == expected
    assert pages(engine, "queued", 1) == expected


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_many_are_listed_page_by_page(engine: Engine, size: int) -> None:
    names = [f"{number:03}" for number in range(250)]
    for start in range(0, 250, 50):
        engine.put(*names[start : start + 50])
    assert pages(engine, "queued", size) == names
    for name in names[::3]:
        engine.cancel(name)
    assert pages(engine, "queued", size) == [n for i, n in enumerate(names) if i % 3]
    assert pages(engine, "cancelled", size) == names[::3]


def test_an_id_that_was_cancelled_and_queued_again_is_listed_once(engine: Engine) -> None:
    engine.put("a", "b", "c")
    for number in range(3):
        engine.cancel("a")
        new = engine.new("a", number)
        assert engine.enqueue(new, on_existing="replace_ended") == [None]
    assert engine.ready() == [*"abcaaa"]
    assert listed(engine, "queued") == ["a", "b", "c"]
    assert pages(engine, "queued", 1) == ["a", "b", "c"]
    met = [b"a"]
    page = engine.run(commands.list_tasks(engine.keys, "queued", 1, 0, 100, met))
    assert [task_id for task_id, _ in page.tasks] == ["b", "c"]


def test_scheduled_tasks_come_as_they_are_due(engine: Engine) -> None:
    for name, due in (("c", 3), ("a", 1), ("b", 2)):
        engine.put(name, due=f"+{due}000")
    assert listed(engine, "scheduled") == ["a", "b", "c"]
    assert listed(engine, "scheduled", 1, 1) == ["b"]


def test_running_tasks_come_by_their_start_also_when_they_are_renewed(
    engine: Engine, worker: Worker
) -> None:
    engine.put("b")
    worker.claim()
    engine.advance(1)
    engine.put("c", stall_ms=1000)
    held = worker.claim()
    engine.advance(0.5)
    engine.put("a", "d")
    held += worker.claim(2)
    worker.renew(*reversed(held))
    assert listed(engine, "processing") == ["b", "c", "a", "d"]
    assert pages(engine, "processing", 3) == ["b", "c", "a", "d"]


def test_ended_tasks_come_as_they_ended(engine: Engine, worker: Worker) -> None:
    engine.put(*"abcdef")
    for number, one in enumerate("abcdef"):
        worker.run(one, "success" if number % 2 else "fatal", b"\x07" if number % 2 else ERROR)
        engine.advance(1)
    assert listed(engine, "failed") == ["a", "c", "e"]
    assert pages(engine, "success", 1) == ["b", "d", "f"]
    assert listed(engine, "success", 10) == []


def test_large_tasks_are_read_in_several_calls(engine: Engine) -> None:
    for number in range(9):
        engine.put(f"{number}", args=("x" * 500_000,))
    page = engine.run(commands.list_tasks(engine.keys, "queued", 0, 0, 100))
    assert 2 <= len(page.tasks) <= 3
    assert listed(engine, "queued") == [*"012345678"]


def test_what_cannot_be_read_is_left_out_or_shown_in_part(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.put("a", "b", "c", "d")
    engine.call("SET", engine.key("t:b"), b"short")
    record = engine.call("GET", engine.key("t:c"))
    engine.call("SET", engine.key("t:c"), record[:-1] + b"\xc1")
    assert listed(engine, "queued") == ["a", "c", "d"]
    assert engine.task("c").kwargs == REDACTED
    assert "'c' on queue 'default' is shown in part" in caplog.text


def test_an_empty_queue_lists_nothing(engine: Engine) -> None:
    for status in ("scheduled", "queued", "processing", "success", "failed", "cancelled"):
        assert listed(engine, status) == []
