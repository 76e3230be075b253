"""What parent and child send each other: one datagram a message, large ones by memory file.

Both directions use `SOCK_SEQPACKET` pairs (datagrams where that is missing), so a message arrives
whole or not at all. A body over `INLINE` bytes lies in an anonymous file whose descriptor travels
instead.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import tempfile
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from conveyor.packing import pack_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Granted in place of a run, which no such number is of: what runs wait for is to go to the head of
#: its queue, or no more.
CALM, HURRY = 0, 2**64 - 1
#: In place of a reason to stop.
SHOWN: Final = 0
#: The largest body that is sent in the datagram itself.
INLINE: Final = 32_768
#: Room for any datagram. Small on purpose: a large receive buffer costs more than a small task.
BUFFER: Final = INLINE + 1024
#: Most runs in a message about pauses or grants.
MOST_RUNS: Final = INLINE // 8

_KIND: Final = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)
_ANCILLARY: Final = socket.CMSG_SPACE(4)
_JOB: Final = struct.Struct("<QBHHdd")
_OUTCOME: Final = struct.Struct("<QBQI")
_RUN, _RUN_FILE, _STOP = 0, 1, 2


class Outcome:
    """How a run ended, as its number in a frame."""

    NAMES: Final = (
        "success",
        "error",
        "fatal",
        "cancelled",
        "release",
        "interrupted",
        "stall",
        "park",
        "timeout",
        "fatal_timeout",
    )
    SUCCESS, ERROR, FATAL, CANCELLED, RELEASE, INTERRUPTED, STALL, PARK = range(8)
    TIMEOUT, FATAL_TIMEOUT = 8, 9


class Pause:
    """What a run says of its slot: it waits and lends it, asks for it back, or took it back."""

    WAITS, ASKS, TOOK = range(3)


class JobFrame(NamedTuple):
    """A task for a child: its number in this worker, its queue's, its id and its record; since when
    its lease holds at least, and when the claim was answered, both monotonic."""

    sequence: int
    queue: int
    id: bytes
    record: bytes
    claimed_at: float
    taken_at: float


class StopFrame(NamedTuple):
    """The wish that a run of the async lane be stopped, or `SHOWN`: its stack printed."""

    sequence: int
    reason: int


class OutcomeFrame(NamedTuple):
    """How a run ended: `delay_ms` is the wait before an error retry, `elapsed_us` what it took but
    for its own waits for other tasks."""

    sequence: int
    outcome: int
    delay_ms: int
    elapsed_us: int
    data: bytes


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, _KIND)


def send_job(sock: socket.socket, job: JobFrame) -> None:
    """Hands a task to a child.

    Raises:
        BlockingIOError: The socket is full.
    """
    kind = _RUN if len(job.record) <= INLINE else _RUN_FILE
    times = job.claimed_at, job.taken_at
    head = _JOB.pack(job.sequence, kind, job.queue, len(job.id), *times) + job.id
    if kind == _RUN:
        sock.send(head + job.record, socket.MSG_DONTWAIT)
    else:
        _send_with_file(sock, head, job.record, socket.MSG_DONTWAIT)


def send_stop(sock: socket.socket, stop: StopFrame) -> None:
    """Asks the async lane to stop a run.

    Raises:
        BlockingIOError: The socket is full.
    """
    sock.send(_JOB.pack(stop.sequence, _STOP, stop.reason, 0, 0.0, 0.0), socket.MSG_DONTWAIT)


def receive_job(sock: socket.socket, flags: int = 0) -> JobFrame | StopFrame | None:
    """The next message from the parent, or None when it is gone.

    Raises:
        BlockingIOError: There is none now (with MSG_DONTWAIT).
    """
    data, ancillary, _, _ = sock.recvmsg(BUFFER, _ANCILLARY, flags)
    if not data:
        return None
    sequence, kind, number, id_length, *times = _JOB.unpack_from(data)
    if kind == _STOP:
        return StopFrame(sequence, number)
    start = _JOB.size + id_length
    task_id = data[_JOB.size : start]
    record = _read_file(ancillary) if kind == _RUN_FILE else data[start:]
    return JobFrame(sequence, number, task_id, record, *times)


def take_back(sock: socket.socket) -> tuple[list[int], list[StopFrame]]:
    """Reads what a child has not read yet from the child's own end, in order.

    Returns:
        The sequence numbers of tasks, and the wishes to stop, which are to be sent again.
    """
    numbers: list[int] = []
    stops: list[StopFrame] = []
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(BUFFER, socket.MSG_DONTWAIT):
            sequence, kind, reason, *_ = _JOB.unpack_from(data)
            if kind == _STOP:
                stops.append(StopFrame(sequence, reason))
            else:
                numbers.append(sequence)
    return numbers, stops


def send_outcome(sock: socket.socket, large: socket.socket, outcome: OutcomeFrame) -> None:
    """Answers the parent; large results go by the second socket, which may carry files."""
    head = _OUTCOME.pack(outcome.sequence, outcome.outcome, outcome.delay_ms, outcome.elapsed_us)
    if len(outcome.data) <= INLINE:
        sock.send(head + outcome.data)
    else:
        _send_with_file(large, head, outcome.data, 0)


def send_pauses(sock: socket.socket, pauses: Sequence[tuple[int, int]]) -> None:
    """Tells the parent of runs that wait or went on (run, `Pause`), in order.

    They travel among the outcomes, as one of the run 0, which there is not.
    """
    for start in range(0, len(pauses), MOST_RUNS):
        words = [run << 2 | kind for run, kind in pauses[start : start + MOST_RUNS]]
        sock.send(_OUTCOME.pack(0, 0, 0, 0) + array.array("Q", words).tobytes())


def read_pauses(frame: OutcomeFrame) -> list[tuple[int, int]]:
    """What `send_pauses` sent."""
    return [(word >> 2, word & 3) for word in array.array("Q", frame.data)]


def send_grants(sock: socket.socket, runs: Iterable[int]) -> None:
    """Lets at most `MOST_RUNS` go on, by the parent's end of the socket it reads outcomes from.

    Raises:
        BlockingIOError: The socket is full.
    """
    sock.send(array.array("Q", runs).tobytes(), socket.MSG_DONTWAIT)


def receive_grants(sock: socket.socket) -> list[int]:
    """Waits for the runs that the parent lets go on next; none when it is gone."""
    try:
        return array.array("Q", sock.recv(BUFFER)).tolist()
    except ConnectionResetError:  # gone, with something unread
        return []


def receive_outcome(sock: socket.socket) -> OutcomeFrame | None:
    """The next small outcome, or None when the child is gone.

    Raises:
        BlockingIOError: There is none now.
    """
    try:
        data = sock.recv(BUFFER, socket.MSG_DONTWAIT)
    except ConnectionResetError:  # it died with a grant unread; said once, before what it had sent
        data = sock.recv(BUFFER, socket.MSG_DONTWAIT)
    return _outcome(data, data[_OUTCOME.size :]) if data else None


def receive_large_outcome(sock: socket.socket) -> OutcomeFrame | None:
    """The next large outcome, or None when the child is gone; a short one, if it lost its file.

    Raises:
        BlockingIOError: There is none now.
    """
    data, ancillary, _, _ = sock.recvmsg(BUFFER, _ANCILLARY, socket.MSG_DONTWAIT)
    if not data:
        return None
    try:
        return _outcome(data, _read_file(ancillary))
    except OSError as error:
        frame = _outcome(data, pack_error("OSError", str(error)))
        success = frame.outcome == Outcome.SUCCESS
        return frame._replace(outcome=Outcome.FATAL) if success else frame


def _outcome(data: bytes, body: bytes) -> OutcomeFrame:
    sequence, outcome, delay_ms, elapsed_us = _OUTCOME.unpack_from(data)
    return OutcomeFrame(sequence, outcome, delay_ms, elapsed_us, body)


def _send_with_file(sock: socket.socket, head: bytes, body: bytes, flags: int) -> None:
    with _memory_file() as file:
        file.write(body)
        file.flush()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))
        sock.sendmsg([head], [rights], flags)


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("conveyor", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _read_file(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not fds:  # the kernel drops what finds no room
        raise OSError(errno.EMFILE, "a large message came without its file: too many are open")
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        return file.read()
