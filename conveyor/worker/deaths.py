"""What becomes of the tasks that a dead child had begun."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from conveyor.backoff import DEFAULT_BACKOFF
from conveyor.errors import SerializationError, TaskTimeout
from conveyor.packed_options import Options
from conveyor.packing import pack_error
from conveyor.records import HEADER, payload_of
from conveyor.worker.runner import CANCELLED, may_retry, timeout_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conveyor.task import Definition
    from conveyor.worker.job import Job
    from conveyor.worker.process import Death

_Settled = tuple["Job", str, bytes, int]


def settle_death(
    death: Death, definitions: Mapping[bytes, Definition], *, shutting_down: bool
) -> Iterator[_Settled]:
    """Outcomes for what a dead child had begun: job, outcome, data, ms until a retry.

    The runs it was killed for pay for themselves and the others nothing; when it died by itself
    each run that it had begun pays one stall, since any of them may have been the cause.
    """
    for job in death.guilty:
        if job.stop == CANCELLED:
            yield job, "cancelled", b"", 0
        else:
            yield _timed_out(job, definitions[job.name])
    interrupted = shutting_down or death.killed
    for job in death.begun:
        if interrupted:
            text = (
                "a shutdown ended its run"
                if shutting_down
                else "its child had to be ended for another run"
            )
            yield job, "interrupted", pack_error("TaskInterrupted", text), 0
        else:
            yield job, "stall", pack_error("TaskStalled", f"child {death.pid} {death.reason}"), 0


def _timed_out(job: Job, definition: Definition) -> _Settled:
    try:
        options = Options.unpack(payload_of(job.record).options)
    except SerializationError:
        options = Options()
    error: TaskTimeout = timeout_error(options)
    data = pack_error("TaskTimeout", f"{error}, and did not stop when asked to")
    if not may_retry(definition.options, error):
        return job, "fatal_timeout", data, 0
    retry = HEADER.unpack_from(job.record)[12] + 1
    delay = (options.backoff or DEFAULT_BACKOFF).delay(retry, random.Random())
    return job, "timeout", data, round(delay * 1000)
