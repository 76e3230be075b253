"""What a task is after a run, as its worker knows it: what plugins and callbacks are told.

The scripts decide what becomes of a task, and these are their rules again, in Python. They are
applied to the task as it was claimed, so progress and data are those of the runs before.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from conveyor.records import Attempt, TaskStatus

if TYPE_CHECKING:
    from datetime import datetime

    from conveyor.records import TaskRecord

#: How a run ended in error, as `attempts` names it.
ERRORS: Final = {
    "error": "error",
    "fatal": "error",
    "timeout": "timeout",
    "fatal_timeout": "timeout",
}
_ENDED: Final = {
    "success": TaskStatus.SUCCESS,
    "cancelled": TaskStatus.CANCELLED,
    "fatal": TaskStatus.FAILED,
    "fatal_timeout": TaskStatus.FAILED,
}


def after_run(
    task: TaskRecord,
    outcome: str,
    ended_at: datetime,
    *,
    result: Any = None,
    error: tuple[str | None, str | None] = (None, None),
    delay_ms: int = 0,
) -> TaskRecord:
    """A task after a run.

    Args:
        task: As it was claimed.
        outcome: See `frames.Outcome`.
        ended_at: When the run ended.
        result: What it returned, if it succeeded.
        error: Otherwise type and message in one text, and the traceback.
        delay_ms: How long a retry waits.
    """
    run = Attempt(
        task.processing_started_at or ended_at,
        ended_at,
        task.worker or "",
        ERRORS.get(outcome, outcome),
        *error,
    )
    after = replace(
        task,
        processing_ended_at=ended_at,
        result=result,
        error=error[0],
        traceback=error[1],
        attempts=(*task.attempts, run)[-10:],
    )
    status = _ENDED.get(outcome)
    if status is None and not _runs_again(task, outcome):
        status = TaskStatus.FAILED
    return _again(after, outcome, delay_ms) if status is None else replace(after, status=status)


def _runs_again(task: TaskRecord, outcome: str) -> bool:
    """See lib/rerun.lua."""
    common = math.inf if task.retry_limit is None else task.retry_limit
    if outcome == "interrupted":
        return common > 0 and (task.error_retry_limit > 0 or task.stall_retry_limit > 0)
    if task.retries >= common:
        return False
    if outcome == "stall":
        return task.stall_retries < task.stall_retry_limit
    return task.error_retries < task.error_retry_limit


def _again(task: TaskRecord, outcome: str, delay_ms: int) -> TaskRecord:
    ended_at = task.processing_ended_at
    assert ended_at is not None
    errors, stalls = int(outcome in ERRORS), int(outcome == "stall")
    due = ended_at + timedelta(milliseconds=delay_ms) if delay_ms else task.enqueue_after
    return replace(
        task,
        status=TaskStatus.SCHEDULED if delay_ms else TaskStatus.QUEUED,
        queued_at=task.queued_at if delay_ms else ended_at,
        enqueue_after=due,
        retries=task.retries + errors + stalls,
        error_retries=task.error_retries + errors,
        stall_retries=task.stall_retries + stalls,
        interruptions=task.interruptions + (outcome == "interrupted"),
        processing_ended_at=None,
    )
