"""Stops reach the runs they were meant for, and a loop that a task stops stays its thread's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from servers import wait_until

from conveyor import Conveyor, Plugin
from conveyor.context import await_for
from conveyor.options import make_plan
from conveyor.packed_options import Options
from conveyor.plugins import Plugins
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.frames import (
    JobFrame,
    Outcome,
    OutcomeFrame,
    make_pair,
    receive_outcome,
    send_job,
)
from conveyor.worker.hooks import Hooks
from conveyor.worker.lanes import AsyncLane, SyncLane
from conveyor.worker.loans import Loans
from conveyor.worker.runner import CANCELLED, Runner
from conveyor.worker.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON = 20.0


class Interrupted(Loans):
    """Stops two runs while the signal's handler stops the first of them."""

    signals = 0

    def interrupt(self, run: int) -> None:
        self.signals += 1
        if self.signals == 1:
            signal.raise_signal(signal.SIGUSR2)
        super().interrupt(run)


class Awaited(Future[None]):
    """Tells that somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def add_done_callback(self, callback: Callable[[Future[None]], object]) -> None:
        super().add_done_callback(callback)
        self.waited_for.set()


class Parent:
    """What a lane needs around it, in this process."""

    def __init__(self, loans: type[Loans] = Loans) -> None:
        app = Conveyor("lanes", broker="redis://localhost:1")
        self.begun = 0
        self.left_alone = asyncio.Event()
        self.future = Awaited()

        @app.task(name="spin")
        def spin() -> None:
            self.begun += 1
            while True:
                time.sleep(0.001)

        @app.task(name="leave")
        async def leave() -> None:
            self.begun += 1
            self.left = asyncio.create_task(self._stay())

        self._encode = app.client.codec.encode_call
        self.work, self.work_far = make_pair()
        self.small, self.small_far = make_pair()
        self.large, self.large_far = make_pair()
        self.slots = Slots(2, 1)
        self.loans = loans(self.small_far, lambda _on: None)
        self.runner = Runner(
            {b"spin": spin.definition, b"leave": leave.definition},
            app.client,
            ["q"],
            self.slots,
            self.loans,
            self.small_far,
            self.large_far,
        )

    async def _stay(self) -> None:
        await self.left_alone.wait()
        await await_for(self.future)

    def run(self, *sequences: int, name: str = "spin") -> None:
        plan = make_plan({}, Settings(), queue="q", is_async=False, timezone=None)
        record = Template(name, plan.limits, Options().pack()).record(self._encode(name, (), {}))
        for sequence in sequences:
            now = time.monotonic()
            send_job(self.work, JobFrame(sequence, 0, b"id", record, now, now))
        wait_until(lambda: self.begun == len(sequences), "they run", seconds=SOON)

    def outcomes(self, count: int) -> list[OutcomeFrame]:
        heard: list[OutcomeFrame] = []

        def came() -> bool:
            with contextlib.suppress(BlockingIOError):
                while (frame := receive_outcome(self.small)) is not None:
                    heard.append(frame)
            return len(heard) == count

        wait_until(came, f"{count} outcomes", seconds=SOON)
        return heard

    def close(self) -> None:
        for sock in (self.work_far, self.small, self.small_far, self.large, self.large_far):
            sock.close()
        self.slots.close()


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> Iterator[Parent]:
    with contextlib.closing(Parent(getattr(request, "param", Loans))) as parent:
        yield parent


@pytest.mark.parametrize("parent", [Interrupted], indirect=True)
def test_a_signal_amid_another_stops_the_runs_of_both(parent: Parent) -> None:
    lane = SyncLane(parent.runner, parent.slots, parent.loans, parent.work_far, 2)
    server = threading.Thread(target=lane.serve)
    before = signal.signal(signal.SIGUSR2, lane.on_signal)
    try:
        server.start()
        parent.run(1, 2)
        for sequence in (1, 2):
            parent.slots.ask_to_stop(sequence, CANCELLED)
        signal.raise_signal(signal.SIGUSR2)
        ends = {frame.sequence: frame.outcome for frame in parent.outcomes(2)}
        assert ends == {1: Outcome.CANCELLED, 2: Outcome.CANCELLED}
        assert parent.loans.signals == 2  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGUSR2, before)
        parent.work.close()
        server.join(SOON)
    assert not server.is_alive()


def test_a_loop_about_to_be_run_again_is_run_by_nobody_else(parent: Parent) -> None:
    where: list[str] = []

    class Speaking(Plugin):
        async def on_child_start(self) -> None:
            where.append(threading.current_thread().name)

    plugins = Plugins()
    plugins.register([Speaking()])
    lane = AsyncLane(parent.runner, parent.slots, parent.loans, parent.work_far, 1, 1)
    hooks = Hooks(plugins, parent.runner, lane)
    caller = threading.Thread(target=hooks.start, name="caller")
    lane.start()
    with _blocked_log() as (reached, go_on):
        lane.loop.call_soon_threadsafe(_exit)
        assert reached.wait(SOON)
        assert not lane.loop.is_running()
        caller.start()
        caller.join(0.1)  # it has nothing to do but to wait
        go_on.set()
        caller.join(SOON)
    parent.work.close()
    lane.join()
    lane.loop.close()
    assert where == ["conveyor-async"]


def test_what_a_run_left_behind_lends_no_slot(parent: Parent) -> None:
    lane = AsyncLane(parent.runner, parent.slots, parent.loans, parent.work_far, 1, 1)
    lane.start()
    parent.run(1, name="leave")
    assert [frame.outcome for frame in parent.outcomes(1)] == [Outcome.SUCCESS]
    lane.loop.call_soon_threadsafe(parent.left_alone.set)
    assert parent.future.waited_for.wait(SOON)
    assert parent.loans.runs == {}
    parent.future.set_result(None)
    wait_until(lambda: parent.left.done(), "it has ended", seconds=SOON)
    parent.work.close()
    lane.join()
    lane.loop.close()


def _exit() -> None:
    raise SystemExit(3)


@contextlib.contextmanager
def _blocked_log() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Holds up who logs of a child: tells that somebody does, and is told to let them go on."""
    reached, go_on = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            reached.set()
            go_on.wait(SOON)

    handler = Blocking()
    log = logging.getLogger("conveyor.child")
    log.addHandler(handler)
    try:
        yield reached, go_on
    finally:
        go_on.set()
        log.removeHandler(handler)
