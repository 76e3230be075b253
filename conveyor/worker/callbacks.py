"""What a worker's parent tells: its callbacks, and the plugins that follow workers.

All of it is called on a thread of its own (see `side`), in order, so the loop only posts. Of a task
it is told once the server has accepted the outcome, so what is told has happened and is told once
by whichever worker it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conveyor.broker.commands import Verdict
from conveyor.moments import from_ms
from conveyor.packing import read_error
from conveyor.records import TaskStatus
from conveyor.worker.aftermath import ERRORS, after_run
from conveyor.worker.side import SideThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.broker.commands import Settlement
    from conveyor.client import Client
    from conveyor.records import TaskRecord
    from conveyor.worker.job import Job
    from conveyor.worker.worker import Worker

#: Outcomes that may be the last of a task beside errors.
_MAY_FAIL: Final = ("stall", "interrupted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What a worker in code calls; see `Worker` for each."""

    on_ready: Callable[[], Any] | None = None
    on_idle: Callable[[], Any] | None = None
    idle_timeout: float = 0.25
    on_task_success: Callable[[TaskRecord], Any] | None = None
    on_task_error: Callable[[TaskRecord, str], Any] | None = None
    on_task_failed: Callable[[TaskRecord, str], Any] | None = None
    on_handler_error: Callable[[Exception], Any] | None = None


class Teller:
    """Tells one worker's callbacks and plugins.

    Args:
        client: The app's.
        worker: Whom plugins are given.
        callbacks: Its own.

    Attributes:
        tasks: Whether what became of tasks is told to anybody.
        idle: Whether idleness is.
    """

    def __init__(self, client: Client, worker: Worker, callbacks: Callbacks) -> None:
        self._client = client
        self._worker = worker
        self._callbacks = callbacks
        self.idle = callbacks.on_idle is not None
        self._side = SideThread(callbacks.on_handler_error)
        self._unanswered = set(worker.plan.queues)
        self._idle_at: float | None = None
        self._idle_told = False
        self._outcomes = self._wanted()
        self.tasks = bool(self._outcomes)

    def started(self) -> None:
        """The first children are there."""
        for hook in self._client.plugins.hooks("on_worker_start"):
            self._side.post(hook, self._worker)

    def answered(self, queue: str, _answer: object = None) -> None:
        """The server answers for a queue; once it has for all, the worker is ready."""
        if queue in self._unanswered:
            self._unanswered.remove(queue)
            if not self._unanswered and self._callbacks.on_ready is not None:
                self._side.post(self._callbacks.on_ready)

    def settled(
        self,
        queue: str,
        batch: Sequence[tuple[Job, Settlement]],
        verdicts: Sequence[int],
        now_ms: int,
    ) -> None:
        """The server has taken these outcomes, or refused them as stale."""
        told = [
            (job, settlement)
            for (job, settlement), verdict in zip(batch, verdicts, strict=True)
            if verdict != Verdict.STALE and settlement.outcome in self._outcomes
        ]
        if told:
            self._side.post(self._tell, queue, told, now_ms)

    def look(self, held: int, expecting: bool, now: float) -> None:
        """Tells once in each idle period, after `idle_timeout` without work.

        Only a task ends such a period; that there might be one puts off its beginning.
        """
        if held:
            self._idle_told = False
        if held or expecting:
            self._idle_at = None
        elif self._idle_at is None:
            self._idle_at = now + self._callbacks.idle_timeout
        elif now >= self._idle_at and not self._idle_told:
            self._idle_told = True
            if self._callbacks.on_idle is not None:
                self._side.post(self._callbacks.on_idle)

    def deadline(self) -> float | None:
        """When `look` has something to tell, monotonic."""
        return None if self._idle_told else self._idle_at

    def is_current(self) -> bool:
        """Whether the caller is being told."""
        return self._side.is_current()

    def close(self, timeout: float) -> None:
        """The last child is gone; waits for all that is to be told, so many seconds at most."""
        for hook in self._client.plugins.hooks("on_worker_shutdown"):
            self._side.post(hook, self._worker)
        self._side.close(timeout)

    def _wanted(self) -> frozenset[str]:
        wanted: set[str] = set()
        if self._callbacks.on_task_success is not None:
            wanted.add("success")
        if self._callbacks.on_task_error is not None:
            wanted.update(ERRORS)
        if self._callbacks.on_task_failed is not None:
            wanted.update(ERRORS, _MAY_FAIL)
        return frozenset(wanted)

    def _tell(self, queue: str, told: list[tuple[Job, Settlement]], now_ms: int) -> None:
        for job, settlement in told:
            self._side.call(self._tell_of, queue, job, settlement, now_ms)

    def _tell_of(self, queue: str, job: Job, settlement: Settlement, now_ms: int) -> None:
        task = self._task(queue, job, settlement, now_ms)
        callbacks = self._callbacks
        if settlement.outcome == "success":
            self._call(callbacks.on_task_success, task)
        if settlement.outcome in ERRORS:
            self._call(callbacks.on_task_error, task, task.error)
        if task.status is TaskStatus.FAILED:
            self._call(callbacks.on_task_failed, task, task.error)

    def _call(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is not None:
            self._side.call(callback, *args)

    def _task(self, queue: str, job: Job, settlement: Settlement, now_ms: int) -> TaskRecord:
        task_id = job.id.decode(errors="replace")
        claimed = self._client.decode_claimed(queue, task_id, job.record)
        succeeded = settlement.outcome == "success"
        return after_run(
            claimed,
            settlement.outcome,
            from_ms(now_ms),
            result=self._client.codec.decode(settlement.data) if succeeded else None,
            error=(None, None) if succeeded else read_error(settlement.data),
            delay_ms=settlement.delay_ms,
        )
