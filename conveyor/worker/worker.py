"""The worker as users see it: runs an app's tasks until told to stop.

Its methods may be called from any thread, from a signal's handler and from its own callbacks: they
leave a wish and wake the loop, which acts. What it calls of the user's (callbacks, and the plugins'
hooks of workers) runs on one thread beside the loop, in order.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from conveyor.errors import ConveyorError
from conveyor.moments import Duration, to_ms
from conveyor.worker.callbacks import Callbacks, Teller
from conveyor.worker.descriptors import make_room
from conveyor.worker.lending import most_extra
from conveyor.worker.plan import make_plan
from conveyor.worker.signals import Signals
from conveyor.worker.supervisor import LAST_WORDS, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conveyor.app import Conveyor
    from conveyor.records import TaskRecord

log = logging.getLogger("conveyor.worker")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1)


class Worker:
    """Runs the tasks of one app, in child processes.

    Args:
        app: Whose tasks.
        queues: Names in strict order, or "name:weight", in a list or a text with commas; None is
            the app's queue.
        concurrency: Children; None is the app's setting, else the CPUs there are.
        threads: Sync tasks at once in a child.
        coroutines: `async def` tasks at once in a child.
        grace: Seconds that a warm shutdown waits for what runs.
        max_tasks_per_child: Runs after which a child is replaced.
        max_memory_per_child: Bytes, or "200M", above which a child is replaced.
        beat: Whether it also moves what comes due; None is the app's setting, else True.
        burst: Whether it ends when the queues are empty.
        on_ready: Called once, when the children are there and the server answers.
        on_idle: Called once in each idle period, after `idle_timeout` with nothing to do.
        idle_timeout: Seconds or a timedelta; None is the app's setting, else 0.25.
        on_task_success: Called with each task that succeeded here, its result in it.
        on_task_error: Called with a task and its error as text (`TaskRecord.error`) after each run
            that raised or took too long, the last one too.
        on_task_failed: The same once no retry follows, after `on_task_error`; also for a task that
            stalled or was interrupted for the last time.
        on_handler_error: Called with what another callback, or a plugin's hook of workers, raised;
            without it that is logged.

    Callbacks run on one thread beside the loop, in order; an `async def` is awaited there. Tasks
    are told of once the server has accepted their outcome. They wait in memory while a callback
    takes its time, so keep callbacks short.

    Raises:
        ConfigurationError: A value is not allowed.

    Example:
        >>> Worker(app, ["high", "default"], concurrency=2).run()
    """

    def __init__(
        self,
        app: Conveyor,
        queues: str | Sequence[str] | None = None,
        concurrency: int | None = None,
        *,
        threads: int | None = None,
        coroutines: int | None = None,
        grace: Duration | None = None,
        max_tasks_per_child: float | None = None,
        max_memory_per_child: int | str | None = None,
        beat: bool | None = None,
        burst: bool = False,
        on_ready: Callable[[], Any] | None = None,
        on_idle: Callable[[], Any] | None = None,
        idle_timeout: Duration | None = None,
        on_task_success: Callable[[TaskRecord], Any] | None = None,
        on_task_error: Callable[[TaskRecord, str], Any] | None = None,
        on_task_failed: Callable[[TaskRecord, str], Any] | None = None,
        on_handler_error: Callable[[Exception], Any] | None = None,
    ) -> None:
        given = {
            "concurrency": concurrency,
            "threads": threads,
            "coroutines": coroutines,
            "grace": grace,
            "max_tasks_per_child": max_tasks_per_child,
            "max_memory_per_child": max_memory_per_child,
            "beat": beat,
        }
        self.app = app
        self.plan = make_plan(app.settings, given, queues=queues or [app.queue], burst=burst)
        idle = app.settings.idle_timeout if idle_timeout is None else idle_timeout
        idle_ms = to_ms(idle, "idle_timeout")
        callbacks = Callbacks(
            on_ready=on_ready,
            on_idle=None if idle_ms is None else on_idle,
            idle_timeout=(idle_ms or 0) / 1000,
            on_task_success=on_task_success,
            on_task_error=on_task_error,
            on_task_failed=on_task_failed,
            on_handler_error=on_handler_error,
        )
        self.killed = False
        self._teller = Teller(app.client, self, callbacks)
        self._loop_thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked: deque[Callable[[Supervisor], None]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)  # full is enough to wake the loop
        self._interrupts = 0
        self._began = False

    def run(self) -> None:
        """Works until a signal or `shutdown` ends it; blocks.

        On the main thread INT or TERM once ends it warmly, INT twice or QUIT at once, and USR1
        prints what each child is running.

        Raises:
            ConveyorError: It works, or has worked, already.
        """
        self._work(self._supervisor())

    def start(self) -> None:
        """Works on a thread of its own, until `shutdown`; returns once the children are forked.

        A fork copies whatever other threads have open at that moment, so it is better done before
        they go on.

        Raises:
            ConveyorError: It works, or has worked, already.
        """
        supervisor = self._supervisor()
        self._thread = threading.Thread(
            target=self._work, args=(supervisor,), name="conveyor-worker", daemon=True
        )
        self._thread.start()
        supervisor.forked.wait()

    def pause(self) -> None:
        """Takes no new tasks; what runs goes on, and what has not begun goes back at once."""
        self._ask(lambda supervisor: supervisor.pause(True))

    def resume(self) -> None:
        """Takes tasks again."""
        self._ask(lambda supervisor: supervisor.pause(False))

    def shutdown(self, kill: bool = False, timeout: Duration | None = None) -> None:
        """Ends the worker, and waits for its end; not in a callback, which it would wait for.

        Args:
            kill: Ends what runs now instead of within the grace; it goes back uncounted.
            timeout: Most seconds to wait for the end, or a timedelta; None waits for ever.
        """
        ms = None if timeout is None else to_ms(timeout, "timeout")
        self._ask(self._kill if kill else Supervisor.shut_down)
        own = self._loop_thread is threading.current_thread() or self._teller.is_current()
        if self._loop_thread is not None and not own:
            self._ended.wait(None if ms is None else min(ms / 1000, threading.TIMEOUT_MAX))

    def _run_with_signals(self, supervisor: Supervisor) -> None:
        with Signals(_SIGNALS) as signals:
            supervisor.selector.register(
                signals.sock,
                selectors.EVENT_READ,
                lambda: self._on_signals(supervisor, signals.read()),
            )
            supervisor.run()

    def _supervisor(self) -> Supervisor:
        if self._began:
            raise ConveyorError("a worker works once: make another Worker")
        self._began = True
        supervisor = Supervisor(self.app.client, self.app.tasks, self.plan, self._teller)
        supervisor.selector.register(
            self._wake_read, selectors.EVENT_READ, lambda: self._act(supervisor)
        )
        return supervisor

    def _work(self, supervisor: Supervisor) -> None:
        self._loop_thread = threading.current_thread()
        make_room(self.plan.concurrency + most_extra(self.plan.concurrency))
        with self._wake_read, self._wake_write:
            try:
                if threading.current_thread() is threading.main_thread():
                    self._run_with_signals(supervisor)
                else:
                    supervisor.run()
            finally:
                supervisor.forked.set()
                self._teller.close(LAST_WORDS if self.killed else self.plan.grace)
                self._ended.set()

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
                log.info("%s: finishing what runs (at most %gs)", number.name, self.plan.grace)
                supervisor.shut_down()
