"""Messages between parent and child arrive whole, in order, whatever their size."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from conveyor.moments import LONGEST_MS
from conveyor.packing import unpack_error
from conveyor.worker.frames import (
    INLINE,
    JobFrame,
    Outcome,
    OutcomeFrame,
    StopFrame,
    make_pair,
    receive_job,
    receive_large_outcome,
    receive_outcome,
    send_job,
    send_outcome,
    send_stop,
    take_back,
)


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 1_048_576])
def test_a_job_arrives_as_it_was_sent(size: int) -> None:
    near, far = make_pair()
    job = JobFrame(2**40, 3, "id-ü".encode(), os.urandom(size), 12.25, 12.5)
    with near, far:
        send_job(near, job)
        assert receive_job(far) == job


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 1_048_576])
def test_an_outcome_arrives_as_it_was_sent(size: int) -> None:
    small, small_far = make_pair()
    large, large_far = make_pair()
    outcome = OutcomeFrame(9, Outcome.ERROR, 1500, 250, os.urandom(size))
    with small, small_far, large, large_far:
        send_outcome(small, large, outcome)
        if size <= INLINE:
            assert receive_outcome(small_far) == outcome
        else:
            assert receive_large_outcome(large_far) == outcome


def test_a_delay_of_a_thousand_years_arrives_as_it_was_sent() -> None:
    small, small_far = make_pair()
    outcome = OutcomeFrame(9, Outcome.ERROR, LONGEST_MS, 250, b"")
    with small, small_far:
        send_outcome(small, small, outcome)
        assert receive_outcome(small_far) == outcome


def test_a_large_job_whose_file_found_no_room_is_an_error_that_says_so() -> None:
    near, far = make_pair()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with near, far:
        send_job(near, JobFrame(1, 0, b"x", bytes(INLINE + 1), 0.0, 0.0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(OSError, match="came without its file: too many are open"):
                receive_job(far)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_was_not_read_is_taken_back_in_order_large_ones_too() -> None:
    near, far = make_pair()
    with near, far:
        for number, size in ((1, 10), (2, INLINE + 1), (3, 10)):
            send_job(near, JobFrame(number, 0, b"x", bytes(size), 0.0, 0.0))
        assert isinstance(receive_job(far), JobFrame)
        send_stop(near, StopFrame(1, 2))
        assert take_back(far) == ([2, 3], [StopFrame(1, 2)])
        with pytest.raises(BlockingIOError):
            receive_job(far, socket.MSG_DONTWAIT)


def test_taking_back_large_jobs_leaves_no_file_open() -> None:
    near, far = make_pair()
    with near, far:
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for number in range(5):
            send_job(near, JobFrame(number, 0, b"x", bytes(INLINE + 1), 0.0, 0.0))
            take_back(far)
        after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


@pytest.mark.parametrize(
    ("sent", "heard"), [(Outcome.SUCCESS, Outcome.FATAL), (Outcome.ERROR, Outcome.ERROR)]
)
def test_a_large_outcome_that_lost_its_file_comes_as_a_short_one(sent: int, heard: int) -> None:
    near, far = make_pair()
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with near, far:
        send_outcome(far, far, OutcomeFrame(3, sent, 40, 5, bytes(INLINE + 1)))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # nothing more can be opened
        try:
            frame = receive_large_outcome(near)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert frame is not None
    assert frame[:4] == (3, heard, 40, 5)
    kind, message, _ = unpack_error(frame.data)
    assert (kind, "came without its file" in message) == ("OSError", True)


def fill(sock: socket.socket) -> None:
    for number in range(10_000):
        send_job(sock, JobFrame(number, 0, b"x", b"", 0.0, 0.0))


def test_a_full_socket_says_so_and_the_end_of_the_parent_is_noticed() -> None:
    near, far = make_pair()
    with far:
        with near, pytest.raises(BlockingIOError):
            fill(near)
        take_back(far)
        assert receive_job(far) is None


def test_a_stop_is_no_job() -> None:
    near, far = make_pair()
    with near, far:
        send_stop(near, StopFrame(5, 2))
        assert receive_job(far) == StopFrame(5, 2)
