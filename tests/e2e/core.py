"""What callers can do on any kind of server; a test class inherits it and gives it an app."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from far import DEADLINE, call

from conveyor import TaskCancelled, TaskNotFound, TaskStatus, WaitTimeout

if TYPE_CHECKING:
    from conveyor import Conveyor


class CoreCalls:
    """Each test has an app on those servers, and a worker of it serves its queue "default"."""

    def test_a_result_comes_back(self, app: Conveyor) -> None:
        assert call(app, "add", 1, 2).delay().wait(DEADLINE) == 3
        assert call(app, "aadd", 1, 2).delay().wait(DEADLINE) == 3

    def test_a_result_is_awaited(self, app: Conveyor) -> None:
        async def main() -> list[int]:
            results = await app.amap([call(app, "add", number, 1) for number in range(150)])
            first = await (await call(app, "aadd", 1, 2).adelay())
            assert await results[0].astatus() in TaskStatus
            numbers = [await result for result in results]
            await app.aclose()
            return [first, *numbers]

        async def limited() -> list[int]:
            return await asyncio.wait_for(main(), DEADLINE)

        assert asyncio.run(limited()) == [3, *range(1, 151)]

    def test_many_are_sent_at_once(self, app: Conveyor) -> None:
        results = app.map([call(app, "add", number, 1) for number in range(250)])
        assert [result.wait(DEADLINE) for result in results] == list(range(1, 251))

    def test_a_schedule_is_kept(self, app: Conveyor) -> None:
        began = time.time()
        result = call(app, "add", 1, 2).schedule(after=0.3)
        assert result.status is TaskStatus.SCHEDULED
        assert result.wait(DEADLINE) == 3
        record = result.task()
        assert record is not None
        assert record.processing_started_at is not None
        assert record.processing_started_at.timestamp() >= began + 0.3

    def test_an_error_is_retried(self, app: Conveyor) -> None:
        result = call(app, "third_time").delay()
        assert result.wait(DEADLINE) == 3
        record = result.task()
        assert record is not None
        assert record.error_retries == 2

    def test_a_task_is_cancelled(self, app: Conveyor) -> None:
        scheduled, running = (
            call(app, "add", 1, 2).schedule(after=600),
            call(app, "nap", 60).delay(),
        )
        assert scheduled.cancel()
        while running.status is not TaskStatus.PROCESSING:
            time.sleep(0.01)
        assert running.cancel()
        for result in (scheduled, running):
            with pytest.raises(TaskCancelled):
                result.wait(DEADLINE)
            assert not result.cancel()

    def test_options_of_one_call(self, app: Conveyor) -> None:
        own = uuid.uuid4().hex
        task = app.tasks["add"].options(id=own, priority=9, headers={"tenant": "a"})
        first, second = task.delay(1, 2), task.delay(1, 2)
        assert (first.created, second.created) == (True, False)
        assert second.wait(DEADLINE) == 3
        record = second.task()
        assert record is not None
        assert (record.priority, record.headers) == (9, {"tenant": "a"})

    def test_a_wait_ends_in_time(self, app: Conveyor) -> None:
        unserved = app.tasks["add"].options(queue="unserved").delay(1, 2)
        with pytest.raises(WaitTimeout, match="no worker listens to 'unserved'"):
            unserved.wait(0.2)
        with pytest.raises(TaskNotFound):
            app.result("nobody").wait(DEADLINE)
        assert app.queues() == ["default", "unserved"]

    def test_a_queue_is_managed(self, app: Conveyor) -> None:
        manager = app.manager("managed")
        manager.enqueue_tasks([{"task": "elsewhere.work", "args": (n,)} for n in range(150)])
        kept = manager.schedule_task("elsewhere.work", after=600)
        manager.pause_queue()
        manager.set_queue_rate_limit(3, 60)
        assert manager.get_queue_rate_limit() == (3, 60)
        assert manager.get_task_counts().queued == 150
        assert len(manager.get_tasks("queued", 100)) == 50
        assert manager.cancel_task_by_id(kept.id)
        assert manager.retry_task_by_id(kept.id)
        assert manager.remove_task_by_id(kept.id)
        assert manager.purge_queue() == 150
        assert manager.ping()
        assert "managed" in app.queues()
        manager.destroy_queue()
        assert "managed" not in app.queues()
        ours = app.manager()
        assert [worker.queues for worker in ours.get_workers()] == [("default",)]
        result = ours.enqueue_task("add", (1, 2))
        assert ours.on_task_complete(result.id, DEADLINE).result == 3
