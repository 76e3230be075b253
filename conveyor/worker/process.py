"""One child process as its parent holds it: sockets, slots, and what it was given."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conveyor.worker.frames import make_pair, send_stop, take_back
from conveyor.worker.job import ASYNC, SYNC, Job

if TYPE_CHECKING:
    from conveyor.worker.slots import Slots


@dataclass(frozen=True, slots=True)
class Death:
    """A child that is gone.

    Attributes:
        pid: It was.
        reason: In words.
        killed: Whether we killed it for runs that would not stop.
        guilty: Those of them that had not ended after all.
        begun: Other runs it had begun.
        untouched: What it was given and had not begun.
        early: Whether it died before it had run anything.
    """

    pid: int
    reason: str
    killed: bool
    guilty: list[Job]
    begun: list[Job]
    untouched: list[Job]
    early: bool


class Lane:
    """One work socket of a child, both ends, and what was sent through it.

    Args:
        slots: How many of its runs may compute at once.
        spare: How many more there may be while others wait; 0 where each has a thread.

    Attributes:
        width: How many it may run now, with those that wait.
        inflight: What it was given and has not answered, by number.
        lent: Those among them that wait for other tasks, and lend their slots.
        asking: Those among the lent that would go on, in the order in which they asked.
        moved_at: When something last moved here, monotonic.
        deaf_until: While it is given nothing, since it did not read what it was given; else 0.
        full: Whether its socket is.
    """

    def __init__(self, slots: int, spare: int = 0) -> None:
        self.near, self.far = make_pair()
        self.slots = self.width = slots
        self.spare = spare
        self.inflight: dict[int, Job] = {}
        self.lent: set[int] = set()
        self.asking: dict[int, None] = {}
        self.moved_at = 0.0
        self.deaf_until = 0.0
        self.full = False

    def take_back(self) -> list[Job]:
        """What the child has not read, in order."""
        numbers, stops = take_back(self.far)
        with contextlib.suppress(OSError):  # gone: nothing of it runs any more
            for stop in stops:
                send_stop(self.near, stop)
        return [self.inflight.pop(number) for number in numbers if number in self.inflight]

    def close(self) -> None:
        """Closes both ends: the child reads end of file once it has read the rest."""
        with contextlib.suppress(OSError):  # closed already
            self.near.shutdown(socket.SHUT_WR)  # whoever else was forked has a copy of it open
        self.near.close()
        self.far.close()


class Child:
    """One child process.

    Args:
        slots: Where it notes what it does.
        sync: Width of its sync lane.
        asynchronous: Width of its async lane.
        spare: How many coroutines it may hold beyond that while they wait.

    Attributes:
        sent: How many tasks it was given, but for those that were taken back.
        done: How many it has answered.
        retiring: Whether it is given no more, and let go once it has answered.
        alone: Whether it runs a suspect, and is given nothing beside it.
        kill_at: When it is to be killed unless a run has ended, by the run's number.
        killed_for: The runs for which it was.
        extra: Whether it is here for lent slots, and goes once they are back.
        idle_since: When an extra one was first seen idle, monotonic.
        sent_when_idle: What `sent` was then.
    """

    def __init__(self, slots: Slots, sync: int, asynchronous: int, spare: int) -> None:
        self.pid = 0
        self.pidfd = -1
        self.slots = slots
        self.lanes = {SYNC: Lane(sync), ASYNC: Lane(asynchronous, spare)}
        self.small, self.small_far = make_pair()
        self.large, self.large_far = make_pair()
        self.sent = 0
        self.done = 0
        self.retiring = False
        self.alone = False
        self.kill_at: dict[int, float] = {}
        self.killed_for: set[int] = set()
        self.extra = False
        self.idle_since = 0.0
        self.sent_when_idle = -1

    def busy(self) -> int:
        """How many tasks it has been given and not answered."""
        return sum(len(lane.inflight) for lane in self.lanes.values())

    def has_begun_all(self) -> bool:
        """Whether it runs all that it was given: nothing of that can be taken back."""
        begun = set(self.slots.running())
        return all(lane.inflight.keys() <= begun for lane in self.lanes.values())

    def take_back(self, lane: Lane) -> list[Job]:
        """What it has not read of a lane, in order."""
        jobs = lane.take_back()
        self.sent -= len(jobs)
        self.alone = self.alone and self.busy() > 0
        return jobs

    def open_pidfd(self) -> None:
        """Has its end be heard of at once, where the kernel can tell."""
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, or forbidden: its sockets tell
                self.pidfd = os.pidfd_open(self.pid)

    def wait(self) -> int | None:
        """How it ended, once it has; None where somebody else was told."""
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return None

    def death(self, status: int | None) -> Death:
        """What to tell of it now that it is gone, by what `waitpid` said and what it had noted."""
        untouched: list[Job] = []
        for lane in self.lanes.values():
            if lane.near.fileno() >= 0:
                untouched += lane.take_back()
        noted = set(self.slots.running())
        left = [job for lane in self.lanes.values() for job in lane.inflight.values()]
        guilty = [job for job in left if job.sequence in self.killed_for]
        begun = [job for job in left if job.sequence in noted and job not in guilty]
        untouched += [job for job in left if job not in guilty and job not in begun]
        killed = bool(self.killed_for)
        early = self.done == 0 and not begun and not killed and not self.retiring
        return Death(self.pid, _reason(status), killed, guilty, begun, untouched, early)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def memory(self) -> int:
        """Its resident bytes; 0 where that cannot be read."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def descriptors(self) -> list[int]:
        """What another child must close of it."""
        ends = [
            self.small,
            self.large,
            *(end for lane in self.lanes.values() for end in (lane.near, lane.far)),
        ]
        return [end.fileno() for end in ends] + ([self.pidfd] if self.pidfd >= 0 else [])

    def close(self) -> None:
        """Closes all that the parent holds of it."""
        for lane in self.lanes.values():
            lane.close()
        self.small.close()
        self.large.close()
        self.slots.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)


def _reason(status: int | None) -> str:
    if status is None:
        return "is gone, and how it ended is not known, since SIGCHLD is ignored"
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
