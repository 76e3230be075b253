"""A child's side of lent slots: its runs tell the parent that they wait, and when they go on.

A run that waits for another task lends its slot: it tells the parent so before it blocks, and once
its wait is over it asks for the slot and blocks until that is granted. One that is being stopped
goes on at once and says that it took its slot back. What the coroutines of one turn of the event
loop have to say goes in one message. Grants come by the child's end of the socket that outcomes go
by, and a thread that is started with the first wait hears them.

A run may wait in several threads or coroutines at once. Its slot is lent from the beginning of the
first of these waits to the end of the last; one that ends before goes on without a slot, for a run
that held its slot while it waits for more could keep what it waits for from running.

If the parent dies, what waits for a grant goes on, and ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from conveyor.errors import TaskCancelled, TaskTimeout
from conveyor.worker.frames import CALM, HURRY, Pause, receive_grants, send_pauses

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Generator
    from concurrent.futures import Future

log = logging.getLogger("conveyor.child")


class Loan:
    """What one run has lent.

    Attributes:
        run: Its number.
        lock: Held by whoever changes this.
        waits: How many of its waits last.
        since: When the slot was lent, monotonic.
        waited: Seconds for which it was, all in all.
        go_on: Lets go on what has asked for the slot.
        futures: What threads of the run block on.
    """

    __slots__ = ("futures", "go_on", "lock", "run", "since", "waited", "waits")

    def __init__(self, run: int) -> None:
        self.run = run
        self.lock = threading.Lock()
        self.waits = 0
        self.since = 0.0
        self.waited = 0.0
        self.go_on: Callable[[], object] | None = None
        self.futures: set[Future[Any]] = set()

    def count(self) -> None:
        """Counts the time until now as waited; call it with the lock held."""
        now = time.monotonic()
        self.waited += now - self.since
        self.since = now

    def release(self) -> None:
        """Lets go on what has asked for the slot, if anything has."""
        with self.lock:
            go_on, self.go_on = self.go_on, None
        if go_on is not None:
            with contextlib.suppress(RuntimeError):  # its event loop was closed
                go_on()


class Loans:
    """The loans of one child's runs; the `Lender` of their contexts.

    Args:
        sock: The child's end of the socket for outcomes.
        hurry: Called with whether what runs wait for is to go to the head of its queue.

    Attributes:
        runs: The loans of runs that have waited and not ended, by the run's number.
        loop: The event loop of the async lane.
    """

    def __init__(self, sock: socket.socket, hurry: Callable[[bool], None]) -> None:
        self.runs: dict[int, Loan] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._sock = sock
        self._hurry = hurry
        self._pid = os.getpid()
        self._unsaid: list[tuple[int, int]] = []
        self._saying = threading.RLock()  # a coroutine that is collected meanwhile speaks too
        self._starting = threading.Lock()
        self._listens = False

    @contextmanager
    def blocked(self, run: int, future: Future[Any]) -> Generator[None]:
        """See `Lender`."""
        if os.getpid() != self._pid or self._blocks_loop():
            yield  # the copy of a task that forked has no slot to lend, nor has a loop
            return
        loan = self._begin(run)
        self._say()
        loan.futures.add(future)
        try:
            yield
        except (TaskTimeout, TaskCancelled):
            self._abandon(loan)
            raise
        except BaseException:
            self._take_back(loan)
            raise
        finally:
            loan.futures.discard(future)
        self._take_back(loan)

    @asynccontextmanager
    async def suspended(self, run: int) -> AsyncGenerator[None]:
        """See `Lender`."""
        if os.getpid() != self._pid:
            yield
            return
        loan = self._begin(run)
        self._say_soon()
        try:
            yield
        except asyncio.CancelledError:
            self._abandon(loan)
            raise
        except BaseException:
            await self._take_back_soon(loan)
            raise
        await self._take_back_soon(loan)

    def listen(self) -> None:
        """Starts the thread that hears grants, unless it was; the first wait does so too.

        Where runs have threads it must not wait for that: while a thread starts another, an
        exception that is set in it may come up in the other.
        """
        with self._starting:
            if not self._listens:
                threading.Thread(target=self._listen, name="conveyor-grants", daemon=True).start()
                self._listens = True

    def interrupt(self, run: int) -> None:
        """Ends the waits of a run's threads, whose stop could not reach them otherwise."""
        loan = self.runs.get(run)
        if loan is not None:
            for future in list(loan.futures):
                future.cancel()
            loan.release()

    def end(self, run: int) -> float:
        """Forgets a run that has ended; the seconds for which it had lent its slot."""
        loan = self.runs.pop(run, None)
        if loan is None:
            return 0.0
        loan.release()
        self._say()
        return loan.waited

    def _begin(self, run: int) -> Loan:
        if not self._listens:
            self.listen()
        loan = self.runs.setdefault(run, Loan(run))
        with loan.lock:
            loan.waits += 1
            if loan.waits > 1:
                return loan
            asking = loan.go_on is not None
            if not asking:
                loan.since = time.monotonic()
            self._unsaid.append((run, Pause.WAITS))
        if asking:
            loan.release()
        return loan

    def _ask(self, loan: Loan, go_on: Callable[[], object]) -> bool:
        """Ends a wait; True when it has to wait until it is let go on."""
        with loan.lock:
            loan.waits -= 1
            if loan.waits or self.runs.get(loan.run) is not loan:
                return False
            loan.go_on = go_on
            self._unsaid.append((loan.run, Pause.ASKS))
            return True

    def _abandon(self, loan: Loan) -> None:
        """Ends a wait that was interrupted: its run goes on at once."""
        with loan.lock:
            loan.waits -= 1
        self._took(loan)

    def _took(self, loan: Loan) -> None:
        with loan.lock:
            if loan.waits:
                return
            loan.go_on = None
            loan.count()
            self._unsaid.append((loan.run, Pause.TOOK))
        self._say()

    def _granted(self, loan: Loan) -> None:
        with loan.lock:
            if not loan.waits:
                loan.count()

    def _take_back(self, loan: Loan) -> None:
        granted = threading.Event()
        if self._ask(loan, granted.set):
            self._say()
            try:
                granted.wait()
            except BaseException:
                self._took(loan)
                raise
            self._granted(loan)

    async def _take_back_soon(self, loan: Loan) -> None:
        loop = asyncio.get_running_loop()
        granted = asyncio.Event()

        def go_on() -> None:
            loop.call_soon_threadsafe(granted.set)

        if self._ask(loan, go_on):
            self._say_soon()
            try:
                await granted.wait()
            except BaseException:
                self._took(loan)
                raise
            self._granted(loan)

    def _say_soon(self) -> None:
        """Says what there is to say once this turn of the event loop has brought all of it."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self._say()
        elif len(self._unsaid) == 1:
            loop.call_soon(self._say)

    def _say(self) -> None:
        """Says all of it, in order; what a stop interrupts is said again by who comes next."""
        with self._saying:
            while pauses := self._unsaid[:]:
                send_pauses(self._sock, pauses)
                del self._unsaid[: len(pauses)]

    def _blocks_loop(self) -> bool:
        try:
            blocks = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False
        if blocks:
            log.warning("a task blocks its event loop in wait(): `await` the result there instead")
        return blocks

    def _listen(self) -> None:
        while runs := receive_grants(self._sock):
            for run in runs:
                loan = self.runs.get(run)
                if run in (CALM, HURRY):
                    self._hurry(run == HURRY)
                elif loan is not None:
                    loan.release()
        for loan in list(self.runs.values()):
            loan.release()
