"""Runs one task in a child: from the record to the outcome, the same for every lane.

Whatever a task does, it ends in an outcome: arguments that cannot be decoded, results that cannot
be encoded, an exception whose text cannot be had, a `SystemExit`. A run that was asked to stop has
that outcome even if it goes on to return something. The outcome is first found and then sent, so
that plugins can be told of it in between. One too large to be sent, as the process has no
descriptor left for its file, becomes a short one.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from conveyor.backoff import DEFAULT_BACKOFF
from conveyor.context import Context, detach
from conveyor.errors import PayloadTooLarge, Retry, TaskCancelled, TaskTimeout
from conveyor.moments import LONGEST_MS
from conveyor.packed_options import Options
from conveyor.packing import pack_error
from conveyor.records import LEASE, payload_of
from conveyor.worker.frames import INLINE, JobFrame, Outcome, OutcomeFrame, send_outcome

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from conveyor.client import Client
    from conveyor.records import TaskRecord
    from conveyor.task import Definition
    from conveyor.worker.loans import Loans
    from conveyor.worker.slots import Slots

#: Why a run is asked to stop.
TIMED_OUT: Final = 1
CANCELLED: Final = 2
#: Longest text kept of an error's message and of its traceback, in characters.
MESSAGE_LIMIT: Final = 8_192
TRACEBACK_LIMIT: Final = 32_768
#: The same where the error cannot travel as a whole.
SHORT_MESSAGE: Final = 1_024
#: Longest wait before a retry, in seconds.
LONGEST_DELAY: Final = LONGEST_MS / 1000

_ERROR_RETRIES_AT = 52


@dataclass(slots=True)
class Run:
    """A task on the verge of being run.

    Attributes:
        job: As the parent sent it.
        slot: Where it is noted.
        definition: What to run.
        args: Decoded; with the context first where the task binds it.
        kwargs: Decoded.
        context: The run's own.
        options: The child's part of the options.
        started: When it began, monotonic.
        task: What plugins are told of it; only where there are any.
    """

    job: JobFrame
    slot: int
    definition: Definition
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Context
    options: Options
    started: float
    task: TaskRecord | None = None


class Ending(NamedTuple):
    """What came of a run; `result` and `error` are what plugins are told of it."""

    outcome: int
    data: bytes
    delay: float = 0.0
    result: Any = None
    error: BaseException | None = None


class Runner:
    """Turns records into runs and what came of them into outcomes.

    Args:
        tasks: What this child can run, by name.
        client: For decoding, and for what tasks themselves send.
        queues: Names of the worker's queues, by their number in frames.
        slots: Where runs are noted.
        loans: What lends their slots while they wait.
        small: For outcomes.
        large: For outcomes that need a file.
    """

    def __init__(
        self,
        tasks: Mapping[bytes, Definition],
        client: Client,
        queues: Sequence[str],
        slots: Slots,
        loans: Loans,
        small: socket.socket,
        large: socket.socket,
    ) -> None:
        self._tasks = tasks
        self._client = client
        self._queues = queues
        self._slots = slots
        self._loans = loans
        self._small = small
        self._large = large
        self._hooked = client.plugins.run
        self._pid = os.getpid()
        self._rng = random.Random()

    def begin(self, job: JobFrame, slot: int) -> Run | None:
        """Notes a run and decodes it; None when it cannot be run, and its outcome was sent."""
        now = time.monotonic()
        if self._lease_passed(job, now):
            self._send(job, Outcome.RELEASE, b"", 0, 0)
            return None
        self._slots.begin(slot, job.sequence, 0.0)
        try:
            payload = payload_of(job.record)
            options = Options.unpack(payload.options)
            if options.execution_timeout and not self._hooked:
                self._slots.time(slot, now + options.execution_timeout)
            args, kwargs = self._client.codec.decode_call(payload.call)
        except BaseException as error:  # what arguments are made of may raise anything
            self._send(job, Outcome.FATAL, pack_error("SerializationError", _message(error)), 0, 0)
            self._slots.end(slot)
            return None
        definition = self._tasks[payload.name.encode()]
        context = Context(
            self._client,
            self._queues[job.queue],
            job.id.decode(errors="replace"),
            payload.name,
            job.record[10:22],
            job.record,
            job.sequence,
            self._loans,
        )
        if definition.bind:
            args = (context, *args)
        return Run(job, slot, definition, args, kwargs, context, options, now)

    def arm(self, run: Run) -> None:
        """Begins to time a run, once its plugins have been told.

        Raises:
            TaskCancelled: It was cancelled meanwhile.
        """
        if self._slots.stop_asked(run.slot):
            raise TaskCancelled
        if run.options.execution_timeout:
            self._slots.time(run.slot, time.monotonic() + run.options.execution_timeout)

    def disarm(self, run: Run) -> None:
        """Ends the timing of a run, before its plugins are told: what they take is not its own."""
        self._slots.time(run.slot, 0.0)

    def after_return(self, run: Run, value: Any) -> Ending:
        """What comes of what a task returned, unless it was asked to stop."""
        if os.getpid() != self._pid:
            os._exit(0)  # the task forked, and this is the copy: the original answers
        if self._slots.stop_asked(run.slot):
            return self._stopped(run, "")
        try:
            data = self._client.codec.encode(value, f"{run.definition.name}(): the result")
            self._check_size(run, data)
        except BaseException as error:  # what it is made of may raise anything
            data = pack_error(type(error).__name__, _message(error))
            return Ending(Outcome.FATAL, data, error=error)
        return Ending(Outcome.SUCCESS, data, 0.0, value)

    def after_raise(self, run: Run, error: BaseException) -> Ending:
        """What comes of what a task raised."""
        if os.getpid() != self._pid:
            os._exit(1)
        if self._slots.stop_asked(run.slot):
            return self._stopped(run, describe_traceback(error))
        delay = self._delay(run, error)
        outcome = Outcome.FATAL if delay is None else Outcome.ERROR
        return Ending(outcome, describe(error), delay or 0.0, error=error)

    def end(self, run: Run, ending: Ending) -> None:
        """Sends what came of a run."""
        elapsed = time.monotonic() - run.started
        if self._loans.runs:
            elapsed = max(0.0, elapsed - self._loans.end(run.job.sequence))
        delay_ms, elapsed_us = round(ending.delay * 1000), int(elapsed * 1e6)
        try:
            self._send(run.job, ending.outcome, ending.data, delay_ms, elapsed_us)
        except OSError as error:
            if len(ending.data) <= INLINE:
                raise
            short = self._shortened(run, ending, error)
            self._send(run.job, short.outcome, short.data, round(short.delay * 1000), elapsed_us)
        self._slots.end(run.slot)
        detach(run.context)

    def _lease_passed(self, job: JobFrame, now: float) -> bool:
        """Whether the parent was silent so long that the task may run elsewhere by now."""
        *_, stall_ms, acknowledge_ms, _ = LEASE.unpack_from(job.record)
        # A renewal of the queue covers what was due; the rest was renewed up to an interval
        # earlier.
        renewed = self._slots.renewal(job.queue) - acknowledge_ms / 1000
        return bool(now > max(job.claimed_at, renewed) + stall_ms / 1000)

    def _stopped(self, run: Run, trace: str) -> Ending:
        if self._slots.stop_asked(run.slot) == CANCELLED:
            return Ending(Outcome.CANCELLED, b"")
        error = timeout_error(run.options)
        delay = self._delay(run, error)
        outcome = Outcome.FATAL_TIMEOUT if delay is None else Outcome.TIMEOUT
        data = pack_error("TaskTimeout", str(error), trace)
        return Ending(outcome, data, delay or 0.0, error=error)

    def _send(
        self, job: JobFrame, outcome: int, data: bytes, delay_ms: int, elapsed_us: int
    ) -> None:
        frame = OutcomeFrame(job.sequence, outcome, delay_ms, min(elapsed_us, 0xFFFFFFFF), data)
        send_outcome(self._small, self._large, frame)

    def _shortened(self, run: Run, ending: Ending, failure: OSError) -> Ending:
        """What is sent in place of what needs a file, when none can be had."""
        error = ending.error
        if error is None:
            text = (
                f"{run.definition.name}(): the result, {len(ending.data):,} bytes, cannot leave "
                f"its process: {failure.strerror}"
            )
            return self.after_raise(run, OSError(failure.errno, text))
        message = _message(error)[:SHORT_MESSAGE]
        trace = f"(it cannot leave its process: {failure})"
        return ending._replace(data=pack_error(type(error).__qualname__, message, trace))

    def _check_size(self, run: Run, data: bytes) -> None:
        limit = self._client.settings.max_payload
        if len(data) > limit:
            raise PayloadTooLarge(
                f"{run.definition.name}(): the result is {len(data):,} bytes, over max_payload "
                f"({limit:,}): store it elsewhere and return a reference"
            )

    def _delay(self, run: Run, error: BaseException) -> float | None:
        """Seconds until the retry, or None when this error is not to be retried."""
        if isinstance(error, Retry):
            chosen = error.delay
            if chosen is None:
                return self._backoff(run, error)
            return self._choose(run, "delay", lambda: chosen)
        if not may_retry(run.definition.options, error):
            return None
        return self._backoff(run, error)

    def _backoff(self, run: Run, error: BaseException) -> float:
        chosen: Any = run.definition.options.get("backoff")
        if run.options.backoff is None and callable(chosen):
            return self._choose(run, "backoff", lambda: chosen(run.context.task, error))
        return (run.options.backoff or DEFAULT_BACKOFF).delay(_retry(run), self._rng)

    def _choose(self, run: Run, what: str, choose: Callable[[], Any]) -> float:
        """The delay that a task chooses, which may be anything, as long as it is one."""
        try:
            delay = choose()
            seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
            return min(max(0.0, seconds), LONGEST_DELAY)
        except BaseException:
            name = run.definition.name
            run.context.log.exception("the %s of %s failed: the default is used", what, name)
            return DEFAULT_BACKOFF.delay(_retry(run), self._rng)


def _retry(run: Run) -> int:
    """The number of the error retry that would follow a run, from 1."""
    counted = run.job.record[_ERROR_RETRIES_AT : _ERROR_RETRIES_AT + 4]
    return int.from_bytes(counted, "little") + 1


def may_retry(options: Mapping[str, Any], error: BaseException) -> bool:
    """Whether a task's `retry_on` and `no_retry_on` let this error be retried."""
    refused = options.get("no_retry_on")
    if refused is not None and isinstance(error, _classes(refused)):
        return False
    wanted = options.get("retry_on")
    return wanted is None or isinstance(error, _classes(wanted))


def timeout_error(options: Options) -> TaskTimeout:
    """What a run that took too long ends with."""
    return TaskTimeout(
        f"the run took longer than its execution_timeout of {options.execution_timeout} s"
    )


def describe(error: BaseException) -> bytes:
    """An error as it is stored: its type, its message, its traceback."""
    return pack_error(type(error).__qualname__, _message(error), describe_traceback(error))


def describe_traceback(error: BaseException) -> str:
    """The traceback from the task's own function on, bounded: the end says most."""
    own = error.__traceback__
    while own is not None and own.tb_frame.f_globals.get("__package__") == __package__:
        own = own.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, own))
    except Exception as failure:
        text = (
            "".join(traceback.format_tb(own))
            + f"(the error cannot be formatted: {type(failure).__name__})"
        )
    return text if len(text) <= TRACEBACK_LIMIT else "…" + text[-TRACEBACK_LIMIT:]


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as failure:  # it may say anything, even that the process is to exit
        return f"(its message cannot be had: {type(failure).__name__})"
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "…"


def _classes(
    given: type[BaseException] | Sequence[type[BaseException]],
) -> tuple[type[BaseException], ...]:
    return (given,) if isinstance(given, type) else tuple(given)
