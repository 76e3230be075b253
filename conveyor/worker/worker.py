"""The worker as users see it: runs an app's tasks until told to stop."""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from conveyor.worker.plan import make_plan
from conveyor.worker.signals import Signals
from conveyor.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.app import Conveyor

log = logging.getLogger("conveyor.worker")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1)


class Worker:
    """Runs the tasks of one app, in child processes.

    Args:
        app: Whose tasks.
        queues: Names in strict order, or "name:weight"; None is the app's queue.
        concurrency: Children; None is the app's setting, else the CPUs there are.
        threads: Sync tasks at once in a child.
        coroutines: `async def` tasks at once in a child.
        grace: Seconds that a warm shutdown waits for what runs.
        max_tasks_per_child: Runs after which a child is replaced.
        max_memory_per_child: Bytes, or "200M", above which a child is replaced.
        beat: Whether it also moves what comes due.
        burst: Whether it ends when the queues are empty.

    Raises:
        ConfigurationError: A value is not allowed.

    Example:
        >>> Worker(app, ["high", "default"], concurrency=2).run()
    """

    def __init__(
        self,
        app: Conveyor,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
        *,
        threads: int | None = None,
        coroutines: int | None = None,
        grace: float | None = None,
        max_tasks_per_child: float | None = None,
        max_memory_per_child: int | str | None = None,
        beat: bool = True,
        burst: bool = False,
    ) -> None:
        given = {
            "concurrency": concurrency,
            "threads": threads,
            "coroutines": coroutines,
            "grace": grace,
            "max_tasks_per_child": max_tasks_per_child,
            "max_memory_per_child": max_memory_per_child,
        }
        self.app = app
        self.plan = make_plan(
            app.settings, given, queues=queues or [app.queue], beat=beat, burst=burst
        )
        self.killed = False
        self._thread: threading.Thread | None = None
        self._asked: deque[Callable[[Supervisor], None]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._interrupts = 0

    def run(self) -> None:
        """Works until a signal or `shutdown` ends it; blocks.

        On the main thread INT or TERM once ends it warmly, INT twice or QUIT at once, and USR1
        prints what each child is running.
        """
        self._work(self._supervisor())

    def start(self) -> None:
        """Works on a thread of its own, until `shutdown`; returns once the children are forked.

        A fork copies whatever other threads have open at that moment, so it is better done before
        they go on.
        """
        supervisor = self._supervisor()
        self._thread = threading.Thread(
            target=self._work, args=(supervisor,), name="conveyor-worker", daemon=True
        )
        self._thread.start()
        supervisor.forked.wait()

    def pause(self) -> None:
        """Takes no new tasks; what runs goes on."""
        self._ask(lambda supervisor: setattr(supervisor, "paused", True))

    def resume(self) -> None:
        """Takes tasks again."""
        self._ask(lambda supervisor: setattr(supervisor, "paused", False))

    def shutdown(self, *, kill: bool = False, timeout: float | None = None) -> None:
        """Ends the worker, and waits for it if `start` was called.

        Args:
            kill: Ends what runs now instead of within the grace; it goes back uncounted.
            timeout: Most seconds to wait for the end; None waits for ever.
        """
        self._ask(self._kill if kill else Supervisor.shut_down)
        if self._thread is not None:
            self._thread.join(timeout)

    def _run_with_signals(self, supervisor: Supervisor) -> None:
        with Signals(_SIGNALS) as signals:
            supervisor.selector.register(
                signals.sock,
                selectors.EVENT_READ,
                lambda: self._on_signals(supervisor, signals.read()),
            )
            supervisor.run()

    def _supervisor(self) -> Supervisor:
        supervisor = Supervisor(self.app.client, self.app.tasks, self.plan)
        supervisor.selector.register(
            self._wake_read, selectors.EVENT_READ, lambda: self._act(supervisor)
        )
        return supervisor

    def _work(self, supervisor: Supervisor) -> None:
        with self._wake_read, self._wake_write:
            try:
                if threading.current_thread() is threading.main_thread():
                    self._run_with_signals(supervisor)
                else:
                    supervisor.run()
            finally:
                supervisor.forked.set()

    def _kill(self, supervisor: Supervisor) -> None:
        self.killed = True
        supervisor.kill()

    def _ask(self, act: Callable[[Supervisor], Any]) -> None:
        self._asked.append(act)
        with contextlib.suppress(OSError):  # closed: it has ended
            self._wake_write.send(b"!")

    def _act(self, supervisor: Supervisor) -> None:
        self._wake_read.recv(4096)
        while self._asked:
            self._asked.popleft()(supervisor)

    def _on_signals(self, supervisor: Supervisor, numbers: Sequence[signal.Signals]) -> None:
        for number in numbers:
            if number == signal.SIGUSR1:
                supervisor.dump_stacks()
            elif number == signal.SIGQUIT or (number == signal.SIGINT and self._interrupts):
                log.warning("%s: ending what runs now; it goes back to its queue", number.name)
                self._kill(supervisor)
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._interrupts += number == signal.SIGINT
                log.info("%s: finishing what runs (at most %.0fs)", number.name, self.plan.grace)
                supervisor.shut_down()
