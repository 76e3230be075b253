"""A child and its parent agree on who has a slot."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from servers import wait_until

from conveyor.errors import TaskTimeout
from conveyor.worker.frames import (
    Pause,
    make_pair,
    read_pauses,
    receive_outcome,
    send_grants,
    send_pauses,
)
from conveyor.worker.loans import Loans

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

WAITS, ASKS, TOOK = Pause.WAITS, Pause.ASKS, Pause.TOOK
SOON = 20.0


class Parent:
    """The parent's end of a child's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def heard(self) -> list[tuple[int, int]]:
        """What has come, all in all, from now on: at least one pause."""
        pauses: list[tuple[int, int]] = []

        def came() -> bool:
            with contextlib.suppress(BlockingIOError):
                while (frame := receive_outcome(self.sock)) is not None:
                    assert frame.sequence == 0
                    pauses.extend(read_pauses(frame))
            return bool(pauses)

        wait_until(came, "a pause", seconds=SOON)
        return pauses


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return make_pair()


@pytest.fixture
def ends(pair: tuple[socket.socket, socket.socket]) -> Iterator[tuple[Parent, Loans]]:
    near, far = pair
    with near, far:
        yield Parent(near), Loans(far, lambda _on: None)
        near.close()
        for thread in threading.enumerate():
            if thread.name == "conveyor-grants":
                thread.join(SOON)


def block(loans: Loans, run: int, future: Future[Any]) -> threading.Thread:
    def wait() -> None:
        with loans.blocked(run, future):
            future.result(SOON)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_pauses_of_many_runs_travel_in_order() -> None:
    near, far = make_pair()
    pauses = [(run, run % 3) for run in range(1, 10_000)]
    received: list[tuple[int, int]] = []
    with near, far:
        send_pauses(far, pauses)
        with contextlib.suppress(BlockingIOError):
            while (frame := receive_outcome(near)) is not None:
                received += read_pauses(frame)
    assert received == pauses


def test_a_run_goes_on_once_it_is_granted_its_slot(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    future: Future[int] = Future()
    thread = block(loans, 7, future)
    assert parent.heard() == [(7, WAITS)]
    future.set_result(1)
    assert parent.heard() == [(7, ASKS)]
    assert thread.is_alive()
    send_grants(parent.sock, [8, 7])
    thread.join(SOON)
    assert not thread.is_alive()
    assert loans.end(7) > 0
    assert loans.end(7) == 0


def test_a_slot_is_lent_until_the_last_wait_of_a_run_ends(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    first, second = Future[int](), Future[int]()
    threads = [block(loans, 7, first)]
    assert parent.heard() == [(7, WAITS)]
    threads.append(block(loans, 7, second))
    wait_until(lambda: loans.runs[7].waits == 2, "both wait", seconds=SOON)
    first.set_result(1)
    threads[0].join(SOON)
    assert not threads[0].is_alive()
    second.set_result(1)
    assert parent.heard() == [(7, ASKS)]
    third: Future[int] = Future()
    threads.append(block(loans, 7, third))
    # It waits again, so what had asked goes on without.
    assert parent.heard() == [(7, WAITS)]
    threads[1].join(SOON)
    assert not threads[1].is_alive()
    third.set_result(1)
    assert parent.heard() == [(7, ASKS)]
    send_grants(parent.sock, [7])
    threads[2].join(SOON)
    assert not threads[2].is_alive()


def test_a_run_that_is_stopped_goes_on_at_once(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    with pytest.raises(TaskTimeout), loans.blocked(7, Future()):
        raise TaskTimeout
    assert parent.heard() == [(7, WAITS), (7, TOOK)]


def test_a_stop_reaches_a_thread_that_waits(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    future: Future[int] = Future()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            with loans.blocked(7, future):
                future.result(SOON)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert parent.heard() == [(7, WAITS)]
    loans.interrupt(7)
    assert parent.heard() == [(7, ASKS)]
    loans.interrupt(7)
    thread.join(SOON)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_the_end_of_a_run_lets_go_what_it_left_behind(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    future: Future[int] = Future()
    thread = block(loans, 7, future)
    assert parent.heard() == [(7, WAITS)]
    loans.end(7)
    future.set_result(1)
    thread.join(SOON)
    assert not thread.is_alive()


def test_the_end_of_the_parent_lets_everything_go_on(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    future: Future[int] = Future()
    thread = block(loans, 7, future)
    assert parent.heard() == [(7, WAITS)]
    future.set_result(1)
    assert parent.heard() == [(7, ASKS)]
    parent.sock.close()
    thread.join(SOON)
    assert not thread.is_alive()


def test_coroutines_that_begin_to_wait_in_one_turn_say_so_at_once(
    ends: tuple[Parent, Loans],
) -> None:
    parent, loans = ends

    async def wait(run: int, opened: asyncio.Event) -> None:
        async with loans.suspended(run):
            await opened.wait()

    async def main() -> None:
        loans.loop = asyncio.get_running_loop()
        opened = asyncio.Event()
        tasks = [asyncio.create_task(wait(run, opened)) for run in range(1, 1001)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        frame = receive_outcome(parent.sock)
        assert frame is not None
        assert read_pauses(frame) == [(run, WAITS) for run in range(1, 1001)]
        tasks[0].cancel()
        opened.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pauses = parent.heard()
        assert sorted(pauses)[:2] == [(1, TOOK), (2, ASKS)]
        assert len(pauses) == 1000
        assert sum(task.done() for task in tasks) == 1
        send_grants(parent.sock, range(1, 1001))
        await asyncio.wait(tasks[1:], timeout=SOON)
        assert all(task.done() for task in tasks)

    asyncio.run(main())


def test_a_coroutine_whose_loop_was_closed_harms_nobody(ends: tuple[Parent, Loans]) -> None:
    parent, loans = ends
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        async with loans.suspended(7):
            pass

    waiting = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert parent.heard() == [(7, WAITS), (7, ASKS)]
    loop.close()
    send_grants(parent.sock, [7])
    future: Future[int] = Future()
    thread = block(loans, 8, future)
    assert parent.heard() == [(8, WAITS)]
    future.set_result(1)
    assert parent.heard() == [(8, ASKS)]
    send_grants(parent.sock, [8])
    thread.join(SOON)
    assert not thread.is_alive()
    waiting.get_coro().close()  # type: ignore[union-attr]


def test_a_stop_amid_a_message_loses_nothing_of_it(
    pair: tuple[socket.socket, socket.socket], ends: tuple[Parent, Loans]
) -> None:
    _, far = pair
    parent, loans = ends

    def stop(_number: int, _frame: object) -> None:
        raise TaskTimeout

    def send_stop() -> None:
        wait_until(lambda: 7 in loans.runs and loans.runs[7].waits == 1, "it waits", seconds=SOON)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            send_pauses(far, [(1, TOOK)])
    far.setblocking(True)
    loans.listen()  # only now: its thread would not wait on a socket that does not block
    before = signal.signal(signal.SIGUSR2, stop)
    thread = threading.Thread(target=send_stop)
    try:
        thread.start()
        with pytest.raises(TaskTimeout), loans.blocked(7, Future()):
            pass
    finally:
        thread.join(SOON)
        signal.signal(signal.SIGUSR2, before)
    assert set(parent.heard()) == {(1, TOOK)}
    loans.end(7)
    assert parent.heard() == [(7, WAITS)]


def test_no_time_is_taken_twice_for_waited(ends: tuple[Parent, Loans]) -> None:
    _, loans = ends

    async def wait() -> None:
        async with loans.suspended(7):
            pass

    async def main() -> float:
        began = time.monotonic()
        first = asyncio.create_task(wait())
        await asyncio.sleep(0)
        second = asyncio.create_task(wait())
        loans.runs[7].release()
        await asyncio.sleep(0)  # the second has waited and asks, before the first goes on
        time.sleep(0.2)  # noqa: ASYNC251
        await first
        loans.runs[7].release()
        await second
        return time.monotonic() - began

    assert asyncio.run(main()) >= loans.end(7) > 0
