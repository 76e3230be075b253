"""Log lines about runs. Arguments and results are in none of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from conveyor.broker.commands import Verdict
from conveyor.escaping import escaped
from conveyor.packing import unpack_error
from conveyor.worker.frames import Outcome, OutcomeFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor.worker.job import Job
    from conveyor.worker.process import Death


_RETRIED = (Outcome.ERROR, Outcome.TIMEOUT)
_RAISED = (*_RETRIED, Outcome.FATAL, Outcome.FATAL_TIMEOUT)


def report_outcome(log: logging.Logger, job: Job, queue: str, frame: OutcomeFrame) -> None:
    """Says how a run ended."""
    extra = {
        "task": job.name.decode(errors="replace"),
        "id": job.id.decode(errors="replace"),
        "queue": queue,
    }
    elapsed = _elapsed(frame.elapsed_us)
    if frame.outcome == Outcome.SUCCESS:
        log.debug("%s succeeded in %s", job, elapsed, extra=extra)
    elif frame.outcome in _RAISED:
        kind, message, traceback = unpack_error(frame.data)
        level = logging.WARNING if frame.outcome in _RETRIED else logging.ERROR
        said = escaped(message[:500])
        log.log(level, "%s raised %s: %s after %s", job, kind, said, elapsed, extra=extra)
        if traceback:
            log.debug("%s", "\n".join(map(escaped, traceback.splitlines())))
    else:
        log.info("%s: %s after %s", job, Outcome.NAMES[frame.outcome], elapsed, extra=extra)


def report_death(log: logging.Logger, death: Death) -> None:
    """Says that a child is gone, and what it was running."""
    names = ", ".join(str(job) for job in death.begun + death.guilty) or "nothing"
    log.error("child %d %s; running there: %s", death.pid, death.reason, names)


def report_refused(log: logging.Logger, jobs: Sequence[Job], verdicts: Sequence[int]) -> None:
    """Says whose outcome the server refused, since the lease had been lost."""
    for job, verdict in zip(jobs, verdicts, strict=True):
        if verdict == Verdict.STALE:
            log.warning("the outcome of %s came too late and was refused: its lease was lost", job)


def _elapsed(microseconds: int) -> str:
    return f"{microseconds / 1e6:.1f}s" if microseconds >= 1e6 else f"{microseconds / 1e3:.1f}ms"
