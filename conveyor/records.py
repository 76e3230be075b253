"""What the server keeps of a task: the packed record, and the snapshot users read.

A record is one string: a header of fixed offsets that the scripts read and change, the task's name,
a payload that no script ever decodes, and in the end the result. `broker/scripts/lib/record.lua`
holds the same table for Lua. The payload is `options` (msgpack, only what differs from the
defaults) and `call` (the codec's bytes), each opaque to everyone but the caller and the child that
runs it. What only some tasks have (progress, data, errors, attempts) lies in a hash beside the
record.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from conveyor.backoff import DEFAULT_BACKOFF, Backoff
from conveyor.errors import PayloadTooLarge, SerializationError
from conveyor.moments import from_ms
from conveyor.packed_options import Options
from conveyor.packing import pack, read_error, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from conveyor.codec import Codec

#: Version of the record's layout; a record of another version is set aside, never guessed at.
VERSION = 1
#: version, priority, state, flags, queued, starts, nonce, started, ended, due, created, expires,
#: error/stall retries, interruptions, common/error/stall limit, stall and acknowledgement ms,
#: retain success and failed ms, length of name, length of payload.
HEADER = struct.Struct("<BBBB6sI8s6s6s6s6s6s8I6s6sHI")
#: What a worker's parent needs of a claimed record: token, start, stalls, stall ms, acknowledgement
#: ms, length of name.
LEASE = struct.Struct("<10x12s6s28xI16xII12xH")
#: The start counter within a token.
FENCE = struct.Struct("<I8x")
#: In a limit: no limit.
UNLIMITED = 0xFFFFFFFF
#: In a retention: kept until removed (also the most that fits).
FOREVER = 0xFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Redacted:
    """Stands for a value that is not shown."""

    def __repr__(self) -> str:
        """Says no more than that."""
        return "<redacted>"


#: In place of values that are not shown, cannot be read, or were too large to travel with an event.
REDACTED: Final = Redacted()

_NEVER = bytes(6)
_OPTIONS_LENGTH = struct.Struct("<H")
#: The most bytes of options, of which only headers can be long.
MOST_OPTIONS = 0xFFFF


class TaskStatus(StrEnum):
    """Where a task is in its life; a parked one counts as queued."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a task of this status can no longer change by itself."""
        return self in _ENDED


_ENDED = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)
_STATES: list[TaskStatus] = [*list(TaskStatus), TaskStatus.QUEUED]


class Flag:
    """Bits of a record's flags, as in lib/record.lua."""

    REMOVE_ON_SUCCESS = 1
    REMOVE_ON_FAILED = 2
    WAITED = 4
    CANCEL_ASKED = 8
    ASYNC = 16
    HURRIED = 32


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task.

    Attributes:
        started_at: When the run was claimed, server time.
        ended_at: When its outcome was recorded, server time.
        worker: Id of the worker that ran it.
        outcome: "success", "error", "timeout", "stall", "interrupted" or "cancelled".
        error: The error's type and message, or None.
        traceback: The traceback as text, or None.
    """

    started_at: datetime
    ended_at: datetime
    worker: str
    outcome: str
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """An immutable snapshot of a task, as the server had it when it was read.

    Moments are aware datetimes in UTC by the server's clock, durations are seconds, and a limit of
    ``math.inf`` means unlimited. Where a value cannot be read here, all arguments and the result
    are `REDACTED`.
    """

    id: str
    name: str
    queue: str
    status: TaskStatus
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, str]
    priority: int
    created_at: datetime
    queued_at: datetime | None
    enqueue_after: datetime | None
    expires_at: datetime | None
    processing_started_at: datetime | None
    processing_ended_at: datetime | None
    retries: int
    error_retries: int
    stall_retries: int
    interruptions: int
    retry_limit: float | None
    error_retry_limit: float
    stall_retry_limit: float
    backoff: Backoff
    execution_timeout: float | None
    stall_timeout: float
    acknowledgement_interval: float
    progress: Any
    data: Any
    result: Any
    error: str | None
    traceback: str | None
    attempts: tuple[Attempt, ...]
    worker: str | None


_HIDDEN_CALL: tuple[Any, Any] = (REDACTED, REDACTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The part of a task's options that the scripts read, in the record's own units."""

    priority: int
    flags: int
    retry_limit: int
    error_retry_limit: int
    stall_retry_limit: int
    stall_ms: int
    acknowledgement_ms: int
    retain_success_ms: int
    retain_failed_ms: int


class Template:
    """Packs new records of one task quickly: all but the call is packed once.

    Example:
        >>> record = Template("app.add", limits, options.pack()).record(call)
    """

    __slots__ = ("_head", "_middle", "_payload")

    def __init__(self, name: str, limits: Limits, options: bytes) -> None:
        encoded = name.encode()
        header = HEADER.pack(
            VERSION, limits.priority, 0, limits.flags, _NEVER, 0, bytes(8), *[_NEVER] * 5,
            0, 0, 0, limits.retry_limit, limits.error_retry_limit, limits.stall_retry_limit,
            limits.stall_ms, limits.acknowledgement_ms,
            limits.retain_success_ms.to_bytes(6, "little"),
            limits.retain_failed_ms.to_bytes(6, "little"),
            len(encoded), 0,
        )  # fmt: skip
        self._head = header[:-4]
        self._middle = encoded + _measured(options, name)
        self._payload = _OPTIONS_LENGTH.size + len(options)

    def record(self, call: bytes) -> bytes:
        """A record for this call, its times zero: the server fills them in."""
        length = self._payload + len(call)
        return b"".join((self._head, length.to_bytes(4, "little"), self._middle, call))


@dataclass(frozen=True, slots=True)
class Payload:
    """What a record says must be run."""

    name: str
    options: bytes
    call: bytes


def payload_of(record: bytes) -> Payload:
    """Splits a record's name, options and call, without decoding them.

    Raises:
        SerializationError: The lengths in the record do not fit it.
    """
    *_, name_length, payload_length = HEADER.unpack_from(record)
    start = HEADER.size + name_length
    end = start + payload_length
    if payload_length < _OPTIONS_LENGTH.size or end > len(record):
        raise SerializationError("the record is truncated")
    (options_length,) = _OPTIONS_LENGTH.unpack_from(record, start)
    call = start + _OPTIONS_LENGTH.size + options_length
    if call > end:
        raise SerializationError("the record's options are truncated")
    name = record[HEADER.size : start].decode(errors="replace")
    return Payload(name, record[start + _OPTIONS_LENGTH.size : call], record[call:end])


def with_headers(record: bytes, headers: Mapping[str, str]) -> bytes:
    """A new record with other headers; all else of it stays.

    Raises:
        PayloadTooLarge: The headers are.
        SerializationError: The lengths in the record do not fit it.
    """
    payload = payload_of(record)
    fields: dict[str, Any] = (
        unpack(payload.options, "the options of a task") if payload.options else {}
    )
    options = pack({**fields, "h": dict(headers)})
    body = _measured(options, payload.name) + payload.call
    *_, name_length, _ = HEADER.unpack_from(record)
    name = record[HEADER.size : HEADER.size + name_length]
    return record[: HEADER.size - 4] + len(body).to_bytes(4, "little") + name + body


def _measured(options: bytes, name: str) -> bytes:
    if len(options) > MOST_OPTIONS:
        raise PayloadTooLarge(
            f"{name}(): the headers are {len(options):,} bytes, over {MOST_OPTIONS:,}:"
            " pass large data as an argument"
        )
    return _OPTIONS_LENGTH.pack(len(options)) + options


def outline_of(record: bytes) -> Payload:
    """The same without the call; options that were cut off or cannot be read are left out."""
    *_, name_length, _ = HEADER.unpack_from(record)
    start = HEADER.size + name_length
    name = record[HEADER.size : start].decode(errors="replace")
    length = int.from_bytes(record[start : start + _OPTIONS_LENGTH.size], "little")
    options = record[start + _OPTIONS_LENGTH.size :][:length]
    try:
        Options.unpack(options)
    except SerializationError:
        options = b""
    return Payload(name, options, b"")


def left_beside(record: bytes) -> Mapping[bytes, bytes]:
    """What lay beside a record when it was claimed, which follows it if the task ran before.

    Raises:
        SerializationError: It cannot be read.
    """
    *_, name_length, payload_length = HEADER.unpack_from(record)
    left = record[HEADER.size + name_length + payload_length :]
    if not left:
        return {}
    flat = unpack(left, "what earlier runs left", raw=True)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def result_of(record: bytes) -> bytes | None:
    """The encoded result of a task that succeeded, or None: it has not."""
    _, _, state, *_, name_length, payload_length = HEADER.unpack_from(record)
    if _status(state) is not TaskStatus.SUCCESS:
        return None
    return record[HEADER.size + name_length + payload_length :]


def decode_task(
    task_id: str,
    queue: str,
    record: bytes,
    extras: Mapping[bytes, bytes],
    codec: Codec,
    *,
    reveal: bool = True,
) -> TaskRecord:
    """Turns the server's bytes into the snapshot users read.

    Args:
        task_id: Its id.
        queue: Its queue.
        record: The record; one that is not revealed may have been cut after its options.
        extras: The hash beside it.
        codec: For what users passed in.
        reveal: Whether arguments and result are decoded; otherwise they are `REDACTED`, as is other
            data that cannot be.

    Raises:
        SerializationError: The record or something in it cannot be decoded.
    """
    (
        _, priority, state, _, queued, _, nonce, started, ended, due, created, expires,
        error_retries, stall_retries, interruptions, retry_limit, error_limit, stall_limit,
        stall_ms, acknowledgement_ms, _, _, _, _,
    ) = HEADER.unpack_from(record)  # fmt: skip
    payload = payload_of(record) if reveal else outline_of(record)
    options = Options.unpack(payload.options)
    args, kwargs = codec.decode_call(payload.call) if reveal else _HIDDEN_CALL
    status = _status(state)
    attempts, error, progress, data = _read_beside(extras, codec, reveal)
    result = None
    encoded = result_of(record)
    if encoded is not None:
        result = codec.decode(encoded) if reveal else REDACTED
        run = Attempt(_moment(started), _moment(ended), nonce[:4].hex(), "success", None, None)
        attempts, error = (*attempts, run)[-10:], (None, None)
    return TaskRecord(
        id=task_id,
        name=payload.name,
        queue=queue,
        status=status,
        args=args,
        kwargs=kwargs,
        headers=dict(options.headers or {}),
        priority=priority,
        created_at=_moment(created),
        queued_at=_moment_or_none(queued),
        enqueue_after=_moment_or_none(due),
        expires_at=_moment_or_none(expires),
        processing_started_at=_moment_or_none(started),
        processing_ended_at=_moment_or_none(ended),
        retries=error_retries + stall_retries,
        error_retries=error_retries,
        stall_retries=stall_retries,
        interruptions=interruptions,
        retry_limit=None if retry_limit == UNLIMITED else retry_limit,
        error_retry_limit=_limit(error_limit),
        stall_retry_limit=_limit(stall_limit),
        backoff=options.backoff or DEFAULT_BACKOFF,
        execution_timeout=options.execution_timeout,
        stall_timeout=_limit(stall_ms) / 1000,
        acknowledgement_interval=acknowledgement_ms / 1000,
        progress=progress,
        data=data,
        result=result,
        error=error[0],
        traceback=error[1],
        attempts=attempts,
        worker=nonce[:4].hex() if any(nonce) else None,
    )


def _read_beside(
    extras: Mapping[bytes, bytes], codec: Codec, reveal: bool
) -> tuple[tuple[Attempt, ...], tuple[str | None, str | None], Any, Any]:
    """The attempts, the last error, the progress and the data."""
    try:
        return (
            _attempts(extras),
            read_error(extras.get(b"e")),
            _optional(codec, extras.get(b"p"), reveal),
            _optional(codec, extras.get(b"d"), reveal),
        )
    except (TypeError, ValueError, struct.error) as error:
        raise SerializationError(f"what lies beside the record cannot be read: {error}") from error


def _optional(codec: Codec, data: bytes | None, reveal: bool) -> Any:
    """Nothing, what was too large to travel, or a value."""
    if not data:
        return None if data is None else REDACTED
    try:
        return codec.decode(data)
    except SerializationError:
        if reveal:
            raise
        return REDACTED


def _limit(value: int) -> float:
    return math.inf if value == UNLIMITED else value


def _status(state: int) -> TaskStatus:
    if state >= len(_STATES):
        raise SerializationError(f"the record's state {state} is none that we know")
    return _STATES[state]


def _moment(data: bytes) -> datetime:
    try:
        return from_ms(int.from_bytes(data, "little"))
    except OverflowError as error:
        raise SerializationError(f"a moment of the record cannot be read: {error}") from error


def _moment_or_none(data: bytes) -> datetime | None:
    return _moment(data) if any(data) else None


_ATTEMPT = struct.Struct("<6s6s4sB")


def _attempts(extras: Mapping[bytes, bytes]) -> tuple[Attempt, ...]:
    count = int(extras.get(b"n", 0))
    runs: list[Attempt] = []
    for number in range(max(0, count - 10), count):
        data = extras.get(b"a%d" % (number % 10))
        if not data:
            continue
        started, ended, worker, length = _ATTEMPT.unpack_from(data)
        outcome = data[_ATTEMPT.size : _ATTEMPT.size + length].decode()
        error, traceback = read_error(data[_ATTEMPT.size + length :])
        runs.append(
            Attempt(_moment(started), _moment(ended), worker.hex(), outcome, error, traceback)
        )
    return tuple(runs)
