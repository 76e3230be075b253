"""What a manager does, without I/O: `Manager` and `AsyncManager` run the same steps.

Each step is one script call that may be sent again after a lost reply; what takes several (purging,
destroying, long lists) is a loop of bounded ones, and may be begun again when it was interrupted.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from conveyor.broker import commands
from conveyor.broker.commands import BATCH
from conveyor.broker.keys import check_given_id, check_text, known_queues
from conveyor.errors import ConfigurationError, SerializationError, TaskNotFound, UnknownTask
from conveyor.moments import to_ms
from conveyor.options import CALL_OPTIONS, Moment, due_text
from conveyor.queues import RateLimit, TaskCounts, WorkerRecord, read_worker
from conveyor.records import TaskRecord, TaskStatus
from conveyor.result import result_by_id
from conveyor.signature import Signature
from conveyor.spelling import nearest
from conveyor.task import BaseTask, Call, Definition, Task, check_task_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.broker.commands import Snapshot
    from conveyor.client import Client, Steps
    from conveyor.moments import Duration
    from conveyor.result import TaskResult

log = logging.getLogger("conveyor.manager")

#: Most starts of a rate limit: so many moments the server keeps.
MOST_POINTS = 1_000_000

_CALL_KEYS = CALL_OPTIONS | {"task", "args", "kwargs"}
_DUE_KEYS = frozenset({"at", "after"})


class Operations:
    """What can be done with one queue.

    Args:
        client: The app's.
        tasks: Those that the app knows, by name.
        queue: Which.
    """

    def __init__(self, client: Client, tasks: Mapping[str, BaseTask[..., Any]], queue: str) -> None:
        self.client = client
        self.queue = queue
        self._tasks = tasks
        self._keys = client.broker.keys(queue)

    def result(self, task_id: str) -> TaskResult[Any]:
        """A handle of one of the queue's tasks."""
        return result_by_id(self.client, self.queue, task_id)

    # Calls, by a task or by its name.

    def call(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        due: str = "",
        made: dict[Any, BaseTask[..., Any]] | None = None,
    ) -> Call[Any]:
        """A call that goes to the queue; `made` keeps what the calls of one task share.

        Raises:
            TypeError: Its parts are not what they should be, or do not fit the task.
            ConfigurationError: An option or the name is not valid.
        """
        if not isinstance(args, list | tuple):
            raise TypeError(f"args must be a list or a tuple, not {args!r}")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise TypeError(f"kwargs must be a mapping of names to values, not {kwargs!r}")
        found = self._task(task, {} if made is None else made)
        if options:
            found = found.options(**cast("Any", options))
        call = found.call(*args, **(kwargs or {}))
        return Call(found, call.args, call.kwargs, due=due)

    def scheduled(
        self,
        task: str | BaseTask[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        at: Moment | None,
        after: Duration | None,
        options: Mapping[str, Any],
        made: dict[Any, BaseTask[..., Any]] | None = None,
    ) -> Call[Any]:
        """The same, to be queued later."""
        name = task if isinstance(task, str) else task.name
        due = due_text(at, after, self.client.timezone, name)
        return self.call(task, args, kwargs, options, due, made)

    def call_reader(self, *, later: bool) -> Callable[[Mapping[str, Any]], Call[Any]]:
        """What makes a call of a mapping of what `enqueue_task` or `schedule_task` takes.

        It raises a TypeError for one that is no mapping, has no task, or a key that does not exist.
        """
        return partial(self._call_of, {}, later=later)

    def _call_of(
        self, made: dict[Any, BaseTask[..., Any]], item: Mapping[str, Any], *, later: bool
    ) -> Call[Any]:
        known = _CALL_KEYS | _DUE_KEYS if later else _CALL_KEYS
        what = "schedule_tasks()" if later else "enqueue_tasks()"
        if not isinstance(item, Mapping):
            raise TypeError(f"{what}: {item!r} is no mapping: use dict(task=..., args=...)")
        for key in item:
            if key in known:
                continue
            hint = f"did you mean {nearest(str(key), known)!r}?"
            if key in _DUE_KEYS:
                hint = "it belongs to schedule_tasks()"
            raise TypeError(f"{what}: a task has no {key!r}: {hint}")
        if "task" not in item:
            raise TypeError(f"{what}: 'task' is missing: give a task or its name")
        options = {key: value for key, value in item.items() if key in CALL_OPTIONS}
        parts = item["task"], item.get("args", ()), item.get("kwargs")
        if later:
            return self.scheduled(*parts, item.get("at"), item.get("after"), options, made)
        return self.call(*parts, options, made=made)

    def _task(
        self, task: str | BaseTask[..., Any], made: dict[Any, BaseTask[..., Any]]
    ) -> BaseTask[..., Any]:
        """The task as it goes to this queue."""
        if not isinstance(task, str | BaseTask):
            raise TypeError(f"task must be a task or its name, not {task!r}")
        if task not in made:
            made[task] = self._known(task).options(queue=self.queue)
        return made[task]

    def _known(self, task: str | BaseTask[..., Any]) -> BaseTask[..., Any]:
        if isinstance(task, str):
            return self._tasks.get(task) or _foreign(self.client, check_task_name(task), self.queue)
        if task.client is not self.client:
            raise ConfigurationError(f"{task.name} belongs to another app: send it there")
        return task

    # Single tasks.

    def read(self, ids: Iterable[str]) -> Steps[list[TaskRecord | None]]:
        """Tasks by their ids; None where there is none."""
        wanted = [check_given_id(task_id) for task_id in ids]
        records: list[TaskRecord | None] = []
        while len(records) < len(wanted):
            some = wanted[len(records) : len(records) + BATCH]
            found: list[Snapshot | None] = yield commands.read(self._keys, some)
            records += [
                None if one is None else self.client.decode(self.queue, task_id, one)
                for task_id, one in zip(some, found, strict=False)
            ]
        return records

    def listing(self, status: TaskStatus | str, offset: int, limit: int) -> Steps[list[TaskRecord]]:
        """Tasks of a status, oldest first; one whose record makes no sense is left out."""
        name = _status(status)
        _check_count("offset", offset)
        _check_count("limit", limit)
        records: list[TaskRecord] = []
        position, skip, left = 0, offset, limit
        met: list[bytes] = []
        while position >= 0 and left > 0:
            page: commands.Page = yield commands.list_tasks(
                self._keys, name, position, skip, min(left, BATCH), met
            )
            position, skip = page.position, page.skip
            met += page.met
            left -= len(page.tasks)
            records += [one for found in page.tasks if (one := self._readable(*found))]
        return records

    def remove(self, task_id: str) -> Steps[bool]:
        """Removes a task."""
        removed: bool = yield commands.remove(self._keys, check_text(task_id))
        return removed

    def retry(self, task_id: str) -> Steps[bool]:
        """Queues an ended task again."""
        given = check_given_id(task_id)
        answer: int = yield commands.retry(self._keys, given, os.urandom(8))
        if answer < 0:
            raise TaskNotFound(
                f"there is no task {task_id!r} on queue {self.queue!r}:"
                " it never existed, was removed, or its retention has passed"
            )
        return answer == 1

    def _readable(self, task_id: str, found: Snapshot) -> TaskRecord | None:
        try:
            return self.client.decode(self.queue, task_id, found)
        except SerializationError as error:
            log.warning("task %r on queue %r is not listed: %s", task_id, self.queue, error)
            return None

    # The queue as a whole.

    def counts(self) -> Steps[TaskCounts]:
        """Counts its tasks."""
        status: commands.QueueStatus = yield commands.status(self._keys)
        return TaskCounts(*status[1:7])

    def workers(self) -> Steps[list[WorkerRecord]]:
        """Lists its live workers, by host and pid."""
        status: commands.QueueStatus = yield commands.status(self._keys)
        workers = [read_worker(*one) for one in status.workers.items()]
        return sorted(workers, key=lambda one: (one.host, one.pid, one.id))

    def pause(self) -> Steps[bool]:
        """Has nothing claimed any more."""
        changed: bool = yield commands.pause(self._keys)
        return changed

    def resume(self) -> Steps[bool]:
        """Has tasks claimed again."""
        changed: bool = yield commands.resume(self._keys)
        return changed

    def limit_rate(self, points: int, duration: Duration) -> Steps[None]:
        """Limits how many tasks start in a window of time."""
        if isinstance(points, bool) or not isinstance(points, int):
            raise TypeError(f"points must be a whole number, not {points!r}")
        if not 1 <= points <= MOST_POINTS:
            raise ConfigurationError(
                f"points cannot be {points}: use 1 to {MOST_POINTS:,}; pause_queue() starts nothing"
            )
        ms = to_ms(duration, "duration")
        if not ms:
            raise ConfigurationError(f"duration cannot be {duration!r}: use seconds above 0")
        yield commands.limit_rate(self._keys, points, ms)

    def unlimit_rate(self) -> Steps[None]:
        """Lets any number of tasks start."""
        yield commands.limit_rate(self._keys, 0, 0)

    def rate_limit(self) -> Steps[RateLimit | None]:
        """The rate limit, if there is one."""
        limit: bytes | None = yield "HGET", self._keys.memory, "limit"
        if limit is None:
            return None
        points, _, ms = limit.partition(b":")
        return RateLimit(int(points), int(ms) / 1000)

    def purge(self) -> Steps[int]:
        """Removes what waits."""
        total, more = 0, True
        while more:
            removed, more = yield commands.purge(self._keys)
            total += removed
        return total

    def destroy(self) -> Steps[None]:
        """Removes everything, and the queue from the known ones."""
        more = True
        while more:
            more = yield commands.destroy(self._keys)
        yield "SREM", known_queues(self.client.namespace), self.queue
        self.client.broker.unannounce(self.queue)
        self.client.abroker.unannounce(self.queue)

    def ping(self) -> Steps[bool]:
        """Asks the server that has the queue for a word."""
        yield "EXISTS", self._keys.memory
        return True


def _foreign(client: Client, name: str, queue: str) -> BaseTask[..., Any]:
    """A task whose code is elsewhere: any arguments fit, and only a worker can run it."""

    def function(*_args: Any, **_kwargs: Any) -> Any:
        raise UnknownTask(f"{name} is not declared here: only a worker that knows it can run it")

    definition = Definition(
        name=name,
        function=function,
        signature=Signature(function, name, bind=False),
        bind=False,
        is_async=False,
        options={},
        queue=queue,
    )
    return Task(client, definition)


def _status(status: TaskStatus | str) -> str:
    try:
        return TaskStatus(status).value
    except ValueError:
        known = ", ".join(TaskStatus)
        raise ConfigurationError(f"there is no status {status!r}: use one of {known}") from None


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} cannot be {value!r}: use a whole number from 0")
