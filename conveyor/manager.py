"""Looks after one queue, for callers and for people: `app.manager("queue")`.

What it does is in `operations.py`, which its async twin runs too; here is only how it is asked
for. Every method reaches the server at once and needs no worker; each raises `BrokerUnavailable`
when the server cannot be reached, and may then be called again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conveyor.recurring import list_entries
from conveyor.result import wait_for_record
from conveyor.sending import send_all

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


class Manager:
    """One queue of an app; made by `app.manager(queue)`.

    Example:
        >>> manager = app.manager("reports")
        >>> result = manager.enqueue_task("reports.build", [2027], priority=9)
        >>> manager.on_task_complete(result.id, timeout=60).status
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

    def enqueue_task(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskResult[Any]:
        """Sends a task to this queue, to be run as soon as a worker is free.

        A name that no task of this app has needs none of its code: the app's defaults apply, the
        arguments are not checked, and a worker that knows the name runs it.

        Args:
            task: A task, or its name.
            args: Positional arguments.
            kwargs: The rest.
            **options: Of the call, as for `task.options()`.

        Raises:
            TypeError: The arguments do not fit the task.
            ConfigurationError: An option or the name is not valid.
            SerializationError: An argument cannot be encoded.
            QueueFull: The server is out of memory.
            IdConflict: The custom id belongs to another task.

        Example:
            >>> manager.enqueue_task("shop.charge", ["order-7"], {"amount": 5}, id="charge-7")
            TaskResult(id='charge-7', queue='default')
        """
        return self._queue.call(task, args, kwargs, options).delay()

    def schedule_task(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        at: Moment | None = None,
        after: Duration | None = None,
        **options: Any,
    ) -> TaskResult[Any]:
        """Sends a task to this queue, to be queued later; the rest is as for `enqueue_task`.

        Args:
            task: A task, or its name.
            args: Positional arguments.
            kwargs: The rest.
            at: An aware datetime or POSIX seconds; a moment that has passed means now.
            after: Seconds or a timedelta from now, by the server's clock.
            **options: Of the call, as for `task.options()`.
        """
        return self._queue.scheduled(task, args, kwargs, at, after, options).delay()

    def enqueue_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> list[TaskResult[Any]]:
        """Sends many in bounded batches, each atomic.

        Args:
            tasks: Mappings with the keys that `enqueue_task` has as arguments.

        Raises:
            TypeError: A key does not exist; nothing was sent.
            PartialEnqueue: Some were sent, then a batch failed or an id was another task's; its
                text says how to send the rest.

        Example:
            >>> manager.enqueue_tasks([{"task": add, "args": (1, n)} for n in range(1000)])
        """
        return send_all(self._client, [*map(self._queue.call_reader(later=False), tasks)])

    def schedule_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> list[TaskResult[Any]]:
        """Sends many to be queued later, as `enqueue_tasks` does; each with `at` or `after`."""
        return send_all(self._client, [*map(self._queue.call_reader(later=True), tasks)])

    # Single tasks.

    def on_task_complete(self, id: str, timeout: Duration | None = None) -> TaskRecord:
        """Waits until a task has ended, however it ended, and returns its record.

        It never polls, and returns at once when the task has ended already.

        Args:
            id: The task's id.
            timeout: Most seconds to wait, or a timedelta; None waits for ever.

        Raises:
            WaitTimeout: It has not ended in time.
            TaskNotFound: There is no such task (any more).
        """
        return wait_for_record(self._queue.result(id), timeout)

    def get_task_by_id(self, id: str) -> TaskRecord | None:
        """A snapshot of a task, or None when there is no such task (any more)."""
        return self._client.drive(self._queue.read([id]))[0]

    def get_tasks_by_id(self, ids: Iterable[str]) -> list[TaskRecord | None]:
        """Snapshots of tasks, in the order of the ids; None where there is none."""
        return self._client.drive(self._queue.read(ids))

    def get_tasks(
        self, status: TaskStatus | str, offset: int = 0, limit: int = 50
    ) -> list[TaskRecord]:
        """Snapshots of the tasks of one status.

        Scheduled tasks come as they are due; queued ones as they will be claimed, priority by
        priority, then those that are parked; running ones by their start; ended ones by the moment
        at which their record is removed, which is the order of their end where they are kept
        equally long. What moves between two calls may be seen twice, or not.

        Args:
            status: Which.
            offset: How many to pass over.
            limit: How many at most.
        """
        return self._client.drive(self._queue.listing(status, offset, limit))

    def cancel_task_by_id(self, id: str) -> bool:
        """Cancels a task; see `TaskResult.cancel`.

        Raises:
            TaskNotFound: There is no such task (any more).
        """
        return self._queue.result(id).cancel()

    def retry_task_by_id(self, id: str) -> bool:
        """Queues an ended task once more, whether it failed, succeeded or was cancelled.

        Its retry counters, error, result, progress and expiry are cleared; its attempts and data
        are kept.

        Returns:
            False when it has not ended.

        Raises:
            TaskNotFound: There is no such task (any more).
            QueueFull: The server is out of memory.
        """
        return self._client.drive(self._queue.retry(id))

    def remove_task_by_id(self, id: str) -> bool:
        """Removes a task with all that is known of it, whatever its status.

        The run of one that is processing is stopped as by a timeout, and what it says is refused.
        Who waits for it is told that it is not there.

        Returns:
            False when there is no such task.
        """
        return self._client.drive(self._queue.remove(id))

    # The queue as a whole.

    def get_task_counts(self) -> TaskCounts:
        """How many tasks there are of each status; parked ones count as queued."""
        return self._client.drive(self._queue.counts())

    def get_workers(self) -> list[WorkerRecord]:
        """The live workers of this queue, at most 1,000; one that was killed is shown for 95 s."""
        return self._client.drive(self._queue.workers())

    def get_recurring(self) -> list[RecurringRecord]:
        """The recurring entries of this queue, by the moment at which each fires next."""
        return self._client.drive(list_entries(self._client, self._queue.queue))

    def pause_queue(self) -> bool:
        """Has no task of this queue begun from now on, by any worker; what runs goes on.

        Tasks can be sent meanwhile, and scheduled ones become queued.

        Returns:
            False when it was paused already.
        """
        return self._client.drive(self._queue.pause())

    def resume_queue(self) -> bool:
        """Ends `pause_queue`; workers are told at once.

        Returns:
            False when it was not paused.
        """
        return self._client.drive(self._queue.resume())

    def set_queue_rate_limit(self, points: int, duration: Duration) -> None:
        """Has at most `points` tasks of this queue started in any window of `duration`.

        It holds exactly, by the server's clock, however many workers there are. A task starts when
        a worker claims it; one that the worker then hands back has used up a start.

        Args:
            points: From 1 to 1,000,000.
            duration: Seconds, or a timedelta.

        Raises:
            ConfigurationError: A value is not allowed.

        Example:
            >>> manager.set_queue_rate_limit(100, 60)
        """
        return self._client.drive(self._queue.limit_rate(points, duration))

    def get_queue_rate_limit(self) -> RateLimit | None:
        """The rate limit, or None."""
        return self._client.drive(self._queue.rate_limit())

    def clear_queue_rate_limit(self) -> None:
        """Lets tasks start at any rate; workers are told at once."""
        return self._client.drive(self._queue.unlimit_rate())

    def purge_queue(self) -> int:
        """Removes every task that waits: scheduled, queued and parked ones.

        What runs goes on, and what has ended stays.

        Returns:
            How many were removed.
        """
        return self._client.drive(self._queue.purge())

    def destroy_queue(self) -> None:
        """Removes everything of this queue, and the queue from the known ones.

        Runs are stopped, and what they say is refused. A worker that still listens stays: the
        queue is there again, empty, as soon as it calls. End the workers first to leave nothing.
        """
        return self._client.drive(self._queue.destroy())

    # The connection.

    def ping(self) -> bool:
        """True when the server that has the queue answers.

        Raises:
            BrokerUnavailable: It does not.
        """
        return self._client.drive(self._queue.ping())

    def quit(self) -> None:
        """Closes the app's connections in this process; the app opens new ones when used again."""
        self._client.close()
