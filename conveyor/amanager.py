"""The async twin of `manager.py`: the same methods, awaited; they never block the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conveyor.recurring import list_entries
from conveyor.result import await_record
from conveyor.sending import asend_all, in_turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.moments import Duration
    from conveyor.operations import Operations
    from conveyor.options import Moment
    from conveyor.queues import RateLimit, TaskCounts, WorkerRecord
    from conveyor.records import TaskRecord, TaskStatus
    from conveyor.recurrence import RecurringRecord
    from conveyor.result import TaskResult
    from conveyor.task import BaseTask


class AsyncManager:
    """One queue of an app, for async code; made by `app.amanager(queue)`.

    `Manager` says more of each method: arguments, answers and errors are the same.

    Example:
        >>> manager = app.amanager("reports")
        >>> result = await manager.enqueue_task("reports.build", [2027], priority=9)
        >>> (await manager.on_task_complete(result.id, timeout=60)).status
        <TaskStatus.SUCCESS: 'success'>
    """

    def __init__(self, operations: Operations) -> None:
        self._queue = operations
        self._client = operations.client

    def __repr__(self) -> str:
        """The queue."""
        return f"<{type(self).__name__} {self.queue}>"

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._queue.queue

    # Sending tasks.

    async def enqueue_task(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskResult[Any]:
        """Sends a task to this queue, to be run as soon as a worker is free."""
        return await self._queue.call(task, args, kwargs, options).adelay()

    async def schedule_task(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        at: Moment | None = None,
        after: Duration | None = None,
        **options: Any,
    ) -> TaskResult[Any]:
        """Sends a task to this queue, to be queued later; the rest is as for `enqueue_task`."""
        return await self._queue.scheduled(task, args, kwargs, at, after, options).adelay()

    async def enqueue_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> list[TaskResult[Any]]:
        """Sends many in bounded batches, each atomic."""
        calls = await in_turns(self._queue.call_reader(later=False), tasks)
        return await asend_all(self._client, calls)

    async def schedule_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> list[TaskResult[Any]]:
        """Sends many to be queued later, as `enqueue_tasks` does; each with `at` or `after`."""
        calls = await in_turns(self._queue.call_reader(later=True), tasks)
        return await asend_all(self._client, calls)

    # Single tasks.

    async def on_task_complete(
        self,
        id: str,
        timeout: Duration | None = None,  # noqa: ASYNC109
    ) -> TaskRecord:
        """Waits until a task has ended, however it ended, and returns its record."""
        return await await_record(self._queue.result(id), timeout)

    async def get_task_by_id(self, id: str) -> TaskRecord | None:
        """A snapshot of a task, or None when there is no such task (any more)."""
        return (await self._client.adrive(self._queue.read([id])))[0]

    async def get_tasks_by_id(self, ids: Iterable[str]) -> list[TaskRecord | None]:
        """Snapshots of tasks, in the order of the ids; None where there is none."""
        return await self._client.adrive(self._queue.read(ids))

    async def get_tasks(
        self, status: TaskStatus | str, offset: int = 0, limit: int = 50
    ) -> list[TaskRecord]:
        """Snapshots of the tasks of one status."""
        return await self._client.adrive(self._queue.listing(status, offset, limit))

    async def cancel_task_by_id(self, id: str) -> bool:
        """Cancels a task; see `TaskResult.cancel`."""
        return await self._queue.result(id).acancel()

    async def retry_task_by_id(self, id: str) -> bool:
        """Queues an ended task once more, whether it failed, succeeded or was cancelled."""
        return await self._client.adrive(self._queue.retry(id))

    async def remove_task_by_id(self, id: str) -> bool:
        """Removes a task with all that is known of it, whatever its status."""
        return await self._client.adrive(self._queue.remove(id))

    # The queue as a whole.

    async def get_task_counts(self) -> TaskCounts:
        """How many tasks there are of each status; parked ones count as queued."""
        return await self._client.adrive(self._queue.counts())

    async def get_workers(self) -> list[WorkerRecord]:
        """The live workers of this queue, at most 1,000; one that was killed is shown for 95 s."""
        return await self._client.adrive(self._queue.workers())

    async def get_recurring(self) -> list[RecurringRecord]:
        """The recurring entries of this queue, by the moment at which each fires next."""
        return await self._client.adrive(list_entries(self._client, self._queue.queue))

    async def pause_queue(self) -> bool:
        """Has no task of this queue begun from now on, by any worker; what runs goes on."""
        return await self._client.adrive(self._queue.pause())

    async def resume_queue(self) -> bool:
        """Ends `pause_queue`; workers are told at once."""
        return await self._client.adrive(self._queue.resume())

    async def set_queue_rate_limit(self, points: int, duration: Duration) -> None:
        """Has at most `points` tasks of this queue started in any window of `duration`."""
        return await self._client.adrive(self._queue.limit_rate(points, duration))

    async def get_queue_rate_limit(self) -> RateLimit | None:
        """The rate limit, or None."""
        return await self._client.adrive(self._queue.rate_limit())

    async def clear_queue_rate_limit(self) -> None:
        """Lets tasks start at any rate; workers are told at once."""
        return await self._client.adrive(self._queue.unlimit_rate())

    async def purge_queue(self) -> int:
        """Removes every task that waits: scheduled, queued and parked ones."""
        return await self._client.adrive(self._queue.purge())

    async def destroy_queue(self) -> None:
        """Removes everything of this queue, and the queue from the known ones."""
        return await self._client.adrive(self._queue.destroy())

    # The connection.

    async def ping(self) -> bool:
        """True when the server that has the queue answers."""
        return await self._client.adrive(self._queue.ping())

    async def quit(self) -> None:
        """Closes the app's connections in this loop and process; see `Manager.quit`."""
        await self._client.aclose()
