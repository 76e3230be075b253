"""The process that runs tasks, from the fork to its end.

It lives as long as its parent: the kernel kills it when the parent dies (Linux), and end of file on
a work socket ends it anywhere else and at a warm shutdown. INT and TERM are the parent's business;
it tells a child to stop a run with USR2, and USR1 prints what every thread is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import random
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from conveyor.worker.exit import end_process, exit_with
from conveyor.worker.hooks import Hooks
from conveyor.worker.lanes import AsyncLane, SyncLane
from conveyor.worker.loans import Loans
from conveyor.worker.runner import Runner
from conveyor.worker.signals import ignore, let_through

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.client import Client
    from conveyor.task import Definition
    from conveyor.worker.slots import Slots

#: How soon a thread that computes makes way for another, in seconds: with the interpreter's default
#: a task that computes holds up the event loop beside it ten times as long.
SWITCH_INTERVAL = 0.0005
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Work:
    """What every child of a worker can do.

    Attributes:
        tasks: By name.
        client: The app's.
        queues: Names of the worker's queues.
        threads: Sync tasks at once.
        coroutines: Async tasks at once; 0 when the app has none.
        hurry: Whether what their runs wait for is to go to the head of its queue.
    """

    tasks: Mapping[bytes, Definition]
    client: Client
    queues: Sequence[str]
    threads: int
    coroutines: int
    hurry: bool = False


@dataclass(frozen=True, slots=True)
class Ends:
    """A child's ends of its sockets."""

    sync: socket.socket
    asynchronous: socket.socket
    small: socket.socket
    large: socket.socket


def run_child(
    work: Work, slots: Slots, ends: Ends, foreign: Iterable[int], parent: int
) -> NoReturn:
    """Runs tasks until the parent is gone; never returns.

    Args:
        work: What it can do.
        slots: Where it notes what it does.
        ends: Its sockets.
        foreign: Descriptors that are the parent's or another child's, to close.
        parent: The parent's pid.
    """
    try:
        _die_with(parent)
        for descriptor in foreign:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        random.seed()
        _print_by_line()
        _serve(work, slots, ends)
        exit_with(0)
    except BaseException:
        end_process()


def _serve(work: Work, slots: Slots, ends: Ends) -> None:
    asyncio._set_running_loop(None)  # forked inside one, when a worker is started from async code
    loans = Loans(ends.small, lambda on: work.client.outcomes.hurry(on=on))
    if work.threads > 1:
        loans.listen()
    if work.hurry:
        work.client.outcomes.hurry(on=True)
    runner = Runner(work.tasks, work.client, work.queues, slots, loans, ends.small, ends.large)
    plugins = work.client.plugins
    sync = SyncLane(runner, slots, loans, ends.sync, work.threads)
    _set_signals(sync)
    if not work.coroutines and not plugins.any_async_in_child():
        hooks = Hooks(plugins, runner, None)
        sync.hooks = hooks.around
        hooks.start()
        slots.serve()
        sync.serve()
        hooks.shut_down()
        return
    sys.setswitchinterval(SWITCH_INTERVAL)
    lane = AsyncLane(runner, slots, loans, ends.asynchronous, work.threads, work.coroutines)
    hooks = Hooks(plugins, runner, lane)
    sync.hooks = lane.hooks = hooks.around
    hooks.start()
    slots.serve()
    lane.start()
    sync.serve()
    lane.join()
    hooks.shut_down()
    lane.loop.close()


def _set_signals(sync: SyncLane) -> None:
    # Handlers that do nothing, not SIG_IGN: what a task starts by exec must not inherit the
    # deafness.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, ignore)
    signal.signal(signal.SIGTERM, ignore)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, sync.on_signal)
    _show_stacks_on(signal.SIGUSR1)
    let_through()


def _print_by_line() -> None:
    """What tasks print is seen while they run, and is not lost with a child that is killed."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # else somebody has put something of their own in its place
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            reconfigure(line_buffering=True)


def _show_stacks_on(number: signal.Signals) -> None:
    """On the error output; on the first one where somebody has put in its place what is no file."""
    for output in filter(None, (sys.stderr, sys.__stderr__)):
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.register(number, file=output, all_threads=True)
            return
    signal.signal(number, ignore)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
