"""Where a child runs its tasks: sync ones on its main thread or on threads, async ones on a loop.

Each lane reads its own work socket, so neither waits for the other. A sync lane reads one task at a
time and blocks in between; the async lane reads whatever lies there and runs it all at once: the
parent sends no more than it has room for.

A run is stopped by an exception raised in it: on the main thread by the signal's handler, on other
threads by the interpreter, in a coroutine by cancelling it. What ignores even that (C code, a
caught exception) the parent ends by ending the process.

A run that ends badly is an outcome like any other. What goes wrong beside runs, where no outcome
can be had, ends the process, never a thread or a coroutine alone: the parent then accounts for all
that was begun, and would wait for ever for what nobody answers. A loop that a task has stopped, or
left by an exit beside its run, is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

from conveyor.context import enter, leave
from conveyor.errors import TaskCancelled, TaskTimeout
from conveyor.worker.exit import end_process
from conveyor.worker.frames import SHOWN, JobFrame, StopFrame, receive_job
from conveyor.worker.runner import CANCELLED

if TYPE_CHECKING:
    from types import FrameType

    from conveyor.worker.hooks import Hooks
    from conveyor.worker.loans import Loans
    from conveyor.worker.runner import Run, Runner
    from conveyor.worker.slots import Slots

log = logging.getLogger("conveyor.child")

_NOBODY: Final = 0


class SyncLane:
    """Runs plain functions, on the calling thread or on several of its own.

    Args:
        runner: Runs one task.
        slots: Whose first slots are this lane's.
        loans: Of its runs.
        sock: The lane's work socket.
        threads: How many tasks at once.
    """

    def __init__(
        self, runner: Runner, slots: Slots, loans: Loans, sock: socket.socket, threads: int
    ) -> None:
        self.hooks: Hooks | None = None
        self._runner = runner
        self._loans = loans
        self._slots = slots
        self._sock = sock
        self._reading = threading.Lock()
        self._stopping = threading.Lock()
        self._threads = threads
        self._busy = [_NOBODY] * threads
        self._idents = [_NOBODY] * threads
        self._signalled = self._handling = False

    def serve(self) -> None:
        """Runs tasks until the parent is gone."""
        if self._threads == 1:
            self._serve_on_main_thread()
            return
        threads = [
            threading.Thread(
                target=self._serve_on_thread,
                args=(slot,),
                name=f"conveyor-task-{slot}",
                daemon=True,
            )
            for slot in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def on_signal(self, _number: int, _frame: object) -> None:
        """Raises in the runs that were asked to stop; the handler of the stop signal.

        One that interrupts another leaves its work to it, which may hold a lock.
        """
        self._signalled = True
        while self._signalled and not self._handling:
            self._handling = True
            try:
                self._signalled = False
                self._raise_where_asked()
            finally:
                self._handling = False

    def _serve_on_main_thread(self) -> None:
        while isinstance(job := receive_job(self._sock), JobFrame):
            run = self._runner.begin(job, 0)
            if run is not None:
                self._run(run)

    def _serve_on_thread(self, slot: int) -> None:
        self._idents[slot] = threading.get_ident()
        try:
            while True:
                with self._reading:
                    job = receive_job(self._sock)
                if not isinstance(job, JobFrame):
                    return
                run = self._runner.begin(job, slot)
                if run is not None:
                    self._run(run)
        except BaseException:
            end_process()

    def _run(self, run: Run) -> None:
        entered = enter(run.context)
        hooks = self.hooks
        try:
            if hooks is not None:
                hooks.before(run)
            value = self._call(run)
        except BaseException as error:
            self._busy[run.slot] = _NOBODY
            ending = self._runner.after_raise(run, error)
        else:
            ending = self._runner.after_return(run, value)
        if hooks is not None:
            hooks.after(run, ending)
        leave(entered)
        self._runner.end(run, ending)
        del ending  # its error's traceback leads back here, and would keep what the run held

    def _call(self, run: Run) -> Any:
        self._busy[run.slot] = run.job.sequence
        try:
            return run.definition.function(*run.args, **run.kwargs)
        finally:
            self._busy[run.slot] = _NOBODY
            if self._threads > 1 and self._slots.stop_asked(run.slot):
                self._withdraw(run.slot)

    def _raise_where_asked(self) -> None:
        for slot, sequence in enumerate(self._busy):
            reason = self._slots.stop_asked(slot)
            if sequence != _NOBODY and reason:
                self._raise_in(
                    slot, sequence, TaskCancelled if reason == CANCELLED else TaskTimeout
                )

    def _raise_in(self, slot: int, sequence: int, error: type[BaseException]) -> None:
        if self._threads == 1:
            self._busy[slot] = _NOBODY
            raise error
        with self._stopping:
            if self._busy[slot] == sequence:
                self._busy[slot] = _NOBODY  # once: a second might come up behind the run
                _set_async_exception(self._idents[slot], error)
                self._loans.interrupt(sequence)

    def _withdraw(self, slot: int) -> None:
        """An exception set for a run that has just ended must not hit what follows it."""
        with self._stopping:
            _set_async_exception(self._idents[slot], None)


class AsyncLane:
    """Runs `async def` tasks side by side on one event loop, in a thread of its own.

    Args:
        runner: Runs one task.
        slots: Of which those from the first on are this lane's, and what is added.
        loans: Of its runs.
        sock: The lane's work socket; shared by fork, so it is never made non-blocking.
        first_slot: The first slot that is this lane's.
        count: How many tasks at once, but for those that wait for others.

    Attributes:
        loop: Where they run.
        serves: Whether the loop is its thread's, even while it is about to be run again.
    """

    def __init__(
        self,
        runner: Runner,
        slots: Slots,
        loans: Loans,
        sock: socket.socket,
        first_slot: int,
        count: int,
    ) -> None:
        self.hooks: Hooks | None = None
        self.loop = loans.loop = asyncio.new_event_loop()
        self.serves = False
        self._runner = runner
        self._slots = slots
        self._sock = sock
        self._free = list(range(first_slot, first_slot + count))
        self._running: dict[int, asyncio.Task[None]] = {}
        self._closed = asyncio.Event()
        self._let_go = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="conveyor-async", daemon=True)

    def start(self) -> None:
        """Starts the lane's thread; once this returns, its loop runs."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result()
        self.serves = True

    def join(self) -> None:
        """Waits until the parent is gone and what runs has ended; only then the loop stops."""
        self.loop.call_soon_threadsafe(self._let_go.set)
        self._thread.join()
        self.serves = False

    def _serve(self) -> None:
        try:
            asyncio.set_event_loop(self.loop)
            self.loop.add_reader(self._sock.fileno(), self._read)
            end = self._watch_end()
            while not end.done():
                self._run_loop(end)
                if end.cancelled():  # by a task that cancels all there are
                    self._check_begun()
                    end = self._watch_end()
            end.result()
        except BaseException:
            end_process()

    def _watch_end(self) -> asyncio.Task[None]:
        end = self.loop.create_task(self._until_closed())
        end.add_done_callback(lambda _: self.loop.stop())
        return end

    def _run_loop(self, end: asyncio.Task[None]) -> None:
        """Runs the loop until the lane has ended, or something else has it stop."""
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio lets these two out of the loop when they end a task or a callback.
            name = type(error).__name__
            log.exception("%s beside a run: it ends what awaits it, and the rest goes on", name)
        else:
            if not end.done():
                log.warning("a task stopped the event loop that it shares: it is run again")

    def _check_begun(self) -> None:
        """Raises for a run that was cancelled before its first step: it has no outcome."""
        if any(task.done() for task in self._running.values()):
            raise RuntimeError("a run was cancelled by another before its first step")

    async def _until_closed(self) -> None:
        await self._closed.wait()
        await asyncio.gather(*self._running.values())
        await self._let_go.wait()

    def _read(self) -> None:
        try:
            while True:
                try:
                    frame = receive_job(self._sock, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                if frame is None:
                    self.loop.remove_reader(self._sock.fileno())
                    self._closed.set()
                    return
                if isinstance(frame, StopFrame):
                    self._stop(frame)
                else:
                    self._start(frame)
        except BaseException:
            end_process()

    def _start(self, job: JobFrame) -> None:
        slot = self._free.pop() if self._free else self._slots.add()
        run = self._runner.begin(job, slot)
        if run is None:
            self._free.append(slot)
            return
        self._running[job.sequence] = self.loop.create_task(self._run(run))

    def _stop(self, frame: StopFrame) -> None:
        task = self._running.get(frame.sequence)
        if task is not None and frame.reason == SHOWN:
            _print_stack(task)
        elif task is not None:
            # Not at once: cancelled before its first step it would end without an outcome.
            self.loop.call_soon(task.cancel)

    async def _run(self, run: Run) -> None:
        enter(run.context)
        hooks = self.hooks
        try:
            try:
                if hooks is not None:
                    await hooks.abefore(run)
                value = await run.definition.function(*run.args, **run.kwargs)
            except BaseException as error:
                ending = self._runner.after_raise(run, error)
            else:
                ending = self._runner.after_return(run, value)
            if hooks is not None:
                await hooks.aafter(run, ending)
            self._runner.end(run, ending)
        except BaseException:
            end_process()
        del ending
        self._running.pop(run.job.sequence, None)
        self._free.append(run.slot)


def _print_stack(task: asyncio.Task[None]) -> None:
    """Prints where a coroutine waits; its thread's stack shows the event loop alone."""
    frames: list[tuple[FrameType, int]] = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None)) is not None:
        frames.append((frame, frame.f_lineno))
        waits = waits.cr_await
    lines = traceback.StackSummary.extract(iter(frames[1:])).format()
    with contextlib.suppress(OSError, ValueError):  # a task has closed it
        print("Coroutine (outermost call first):", *lines, sep="\n", file=sys.stderr, flush=True)


def _set_async_exception(ident: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if error is None else ctypes.py_object(error)
    )
