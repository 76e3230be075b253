"""Managers of a queue as a whole: its counts, workers, pause, rate limit and end."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine, Worker
from playing import ERROR, claim, end

from conveyor import ConfigurationError, Conveyor, TaskCounts, WorkerRecord
from conveyor.broker import commands
from conveyor.worker.announcement import pack_announcement
from conveyor.worker.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def engine(app: Conveyor) -> Engine:
    return Engine(app, stopped=False)


def test_tasks_are_counted(app: Conveyor, engine: Engine, manager: Any) -> None:
    manager.enqueue_tasks([{"task": "some.work"}] * 5)
    manager.schedule_task("some.work", after=60)
    end(app, "success", 1)
    end(app, "fatal", ERROR)
    end(app, "park", b"unknown")
    manager.cancel_task_by_id(manager.get_tasks("queued")[0].id)
    claim(app)
    assert manager.get_task_counts() == TaskCounts(
        scheduled=1, queued=1, processing=1, success=1, failed=1, cancelled=1
    )


def test_workers_are_listed(app: Conveyor, engine: Engine, manager: Any) -> None:
    assert manager.get_workers() == []
    plan = make_plan(app.settings, {"concurrency": 3}, queues=["default", "side"], burst=False)
    for worker, about in (("0a", pack_announcement(plan)), ("0b", b"\xc1"), ("0c", b"\x80")):
        engine.run(commands.hello(engine.keys, worker, 60_000, about))
    foreign, other, ours = manager.get_workers()
    assert (foreign, other) == (WorkerRecord(id="0b"), WorkerRecord(id="0c"))
    assert (ours.id, ours.queues, ours.concurrency, ours.beat) == (
        "0a",
        ("default", "side"),
        3,
        True,
    )
    assert ours.host
    assert ours.pid


def test_a_queue_is_paused_and_resumed(app: Conveyor, engine: Engine, manager: Any) -> None:
    worker = Worker(engine)
    assert [manager.pause_queue(), manager.pause_queue()] == [True, False]
    manager.enqueue_task("some.work")
    assert worker.claim() == []
    assert [manager.resume_queue(), manager.resume_queue()] == [True, False]
    assert len(worker.claim()) == 1


def test_a_rate_limit_is_set_and_cleared(manager: Any) -> None:
    assert manager.get_queue_rate_limit() is None
    assert manager.set_queue_rate_limit(100, 60) is None
    limit = manager.get_queue_rate_limit()
    assert (limit.points, limit.duration) == limit == (100, 60)
    manager.set_queue_rate_limit(1, timedelta(milliseconds=1500))
    assert manager.get_queue_rate_limit() == (1, 1.5)
    assert manager.clear_queue_rate_limit() is None
    assert manager.get_queue_rate_limit() is None


@pytest.mark.parametrize(
    ("points", "duration", "kind", "text"),
    [
        (0, 1, ConfigurationError, r"points cannot be 0: .*pause_queue\(\)"),
        (1_000_001, 1, ConfigurationError, "1 to 1,000,000"),
        (1.5, 1, TypeError, "whole number"),
        (True, 1, TypeError, "whole number"),
        (1, 0, ConfigurationError, "seconds above 0"),
        (1, -1, ConfigurationError, "duration cannot be -1"),
        (1, math.inf, ConfigurationError, "seconds above 0"),
        (1, "1", TypeError, "duration must be seconds"),
    ],
)
def test_a_rate_limit_that_cannot_be(
    manager: Any, points: Any, duration: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        manager.set_queue_rate_limit(points, duration)
    assert manager.get_queue_rate_limit() is None


def test_a_queue_is_purged(app: Conveyor, manager: Any) -> None:
    manager.enqueue_tasks([{"task": "some.work"}] * 250)
    manager.schedule_task("some.work", after=60)
    end(app, "success", 1)
    claim(app)
    assert manager.purge_queue() == 249
    assert manager.get_task_counts() == TaskCounts(0, 0, 1, 1, 0, 0)
    assert manager.purge_queue() == 0


def test_a_queue_is_destroyed(app: Conveyor, manage: Callable[..., Any]) -> None:
    manager, side = manage(), manage("side")
    for one in (manager, side):
        one.enqueue_tasks([{"task": "some.work"}] * 150)
    end(app, "success", 1)
    assert manager.destroy_queue() is None
    engine = Engine(app, stopped=False)
    assert engine.call("KEYS", engine.keys.prefix + "*") == []
    assert app.queues() == ["side"]
    assert asyncio.run(queues(app)) == ["side"]
    assert side.get_task_counts().queued == 150
    manager.enqueue_task("some.work")
    assert app.queues() == ["default", "side"]


async def queues(app: Conveyor) -> list[str]:
    found = await app.aqueues()
    await app.client.abroker.aclose()
    return found
