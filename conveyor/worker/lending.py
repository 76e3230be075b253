"""The parent's side of lent slots: how many runs compute, which may go on, and where others begin.

A run that waits for another task lends its slot (see `loans.py`), so that as many runs compute as
the worker has slots, however many wait. A lent slot is used where there is room: a coroutine goes
beside those that wait; a plain function needs a thread, and so, where none is free, an extra child.

What asks for its slot goes first: it is granted one before anything new begins, the first claimed
before the others. Nothing is given beyond the slots, so what was granted never finds another in
its place. An extra child that has been idle for a while is let go.

There are only so many extra children, and parents that begin before what others wait for could
take them all. So when a quarter of them is needed, the children have what their runs wait for go to
the head of its queue (see `wait.lua`): that begins next, and it is depth that costs children, no
longer number. When half of them are, nothing else begins, and one branch at a time goes on:
the other half suffices for it unless it is deeper than that.
"""

from __future__ import annotations

import contextlib
import logging
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from conveyor.records import Flag
from conveyor.worker.frames import CALM, HURRY, MOST_RUNS, Pause, send_grants
from conveyor.worker.job import ASYNC, SYNC

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Sequence

    from conveyor.worker.child import Work
    from conveyor.worker.job import Job
    from conveyor.worker.process import Child, Lane

log = logging.getLogger("conveyor.worker")

#: Most coroutines that wait for other tasks in one child, beyond which none begins there.
MOST_SUSPENDED: Final = 10_000
#: Most bytes of records of runs that wait which do not keep a worker from claiming more.
LENT_BYTES: Final = 256 * 1_048_576
#: Seconds that an extra child stays when it has nothing to do.
LINGER: Final = 5.0
#: Seconds that who waits for a run that has ended has to ask for its slot, before another branch.
HEARSAY: Final = 0.05
#: Seconds without claims from a queue after one that brought nothing hurried, unless another run
#: waits meanwhile.
REST: Final = 0.1
_FLAGS_AT: Final = 3


def most_extra(concurrency: int) -> int:
    """How many extra children a worker may have; the second half for what runs wait for alone."""
    return max(64, 8 * concurrency)


class Lending:
    """The loans of one worker's runs, and the extra children that they need.

    Args:
        work: What each child can do.
        size: How many children there are but for extra ones.
        children: All of them; the pool's own list.
        spawn: Starts one more; None: not now.
        give: Gives a child a job; False when its socket is full.
        has_room: Whether a child may be given a job of a lane, so many beyond what it can run.

    Attributes:
        active: Whether there are loans or extra children, without which nothing here matters.
        extra: How many extra children there are.
        hurries: Whether what runs wait for goes to the head of its queue.
    """

    def __init__(
        self,
        work: Work,
        size: int,
        children: Sequence[Child],
        *,
        spawn: Callable[[], Child | None],
        give: Callable[[Child, Lane, Job], bool],
        has_room: Callable[[Child, str, int], bool],
    ) -> None:
        self.active = False
        self._bytes = 0
        self.extra = 0
        self.hurries = False
        self._widths = {SYNC: work.threads, ASYNC: work.coroutines}
        self._size = size
        self._children = children
        self._spawn = spawn
        self._give = give
        self._has_room = has_room
        self._most_extra = most_extra(size)
        self._lent = {SYNC: 0, ASYNC: 0}
        self._asking = 0
        self._branch: _Branch | None = None
        self._resting: dict[int, float] = {}
        self._closed = self._warned = False

    @property
    def bytes(self) -> int:
        """Of the records of runs that wait, up to a bound."""
        return min(self._bytes, LENT_BYTES)

    def passed_over(self, name: str) -> set[int]:
        """The queues that were seen to have nothing that may begin."""
        if not self._is_scarce(name):
            return set()
        now = time.monotonic()
        return {queue for queue, until in self._resting.items() if now < until}

    def note(self, child: Child, pauses: Iterable[tuple[int, int]]) -> None:
        """Takes what a child says of its runs."""
        unknown: list[int] = []
        for run, kind in pauses:
            lane = next((lane for lane in child.lanes.values() if run in lane.inflight), None)
            if kind == Pause.WAITS and lane is not None:
                self._lend(lane, run)
            elif kind == Pause.ASKS and lane is not None and run in lane.lent:
                self._begin_asking(lane, run)
            elif kind == Pause.ASKS:
                unknown.append(run)
            elif lane is not None:
                self.end(lane, lane.inflight[run])
        if unknown:
            # They have ended, and something that they left behind asks in their name.
            with contextlib.suppress(OSError):
                send_grants(child.small, unknown)

    def end(self, lane: Lane, job: Job) -> None:
        """Takes note that a run waits no more."""
        if job.sequence in lane.lent:
            lane.lent.discard(job.sequence)
            self._lent[job.lane] -= 1
            self._bytes -= len(job.record)
            self._stop_asking(lane, job.sequence)
            _widen(lane)
            self._update()

    def forget(self, child: Child) -> None:
        """Takes note that a child is gone."""
        for lane in child.lanes.values():
            for run in list(lane.lent):
                self.end(lane, lane.inflight[run])
            if self._branch is not None and self._branch.lane is lane:
                self._branch = None
        self.extra -= child.extra
        self._update()

    def free(self, name: str) -> int:
        """How many more runs of a lane may compute; less than 0 when too many do."""
        slots = self._size * self._widths[name]
        return slots - sum(_computing(child.lanes[name]) for child in self._children)

    def room(self, name: str, open_lanes: Sequence[Lane]) -> int | None:
        """How many more runs of a lane could begin; None when no child takes any."""
        left = 0 if self._closed or self._is_behind(name) else self._most_extra - self.extra
        if not open_lanes and not left:
            return None
        if not self._may_begin(name):
            return 0
        able = sum(max(0, lane.width - len(lane.inflight)) for lane in open_lanes)
        most = 1 if self._is_scarce(name) else self.free(name)
        return min(most, self.free(name), able + left * self._widths[name])

    def grant(self, name: str) -> None:
        """Lets runs that ask for it go on, as far as there are slots."""
        while self._asking and (free := self.free(name)) > 0:
            lanes = [(child.lanes[name], child) for child in self._children]
            able = [(lane, child) for lane, child in lanes if lane.asking and _room(lane)]
            if not able:
                return
            lane, child = min(able, key=lambda pair: next(iter(pair[0].asking)))
            runs = list(islice(lane.asking, min(free, _room(lane), MOST_RUNS)))
            try:
                send_grants(child.small, runs)
            except OSError:  # full or gone: later, or never
                return
            for run in runs:
                self.end(lane, lane.inflight[run])
                self._follow(name, lane, run)

    def make_way(self, name: str, jobs: deque[Job]) -> None:
        """Runs that ask for their slots go first; what lies behind runs waits with the rest."""
        self.grant(name)
        taken: list[Job] = []
        for child in self._children:
            lane = child.lanes[name]
            if len(lane.inflight) > lane.width and (self._asking or lane.lent):
                taken += child.take_back(lane)
        for job in sorted(taken, key=lambda job: -job.sequence):
            job.sent_at = 0.0
            jobs.appendleft(job)

    def send(self, name: str, jobs: deque[Job], ahead: int) -> None:
        """Gives jobs while there are slots, to an extra child where no other has room."""
        while jobs and not jobs[0].suspect and self._may_begin(name):
            if self._is_scarce(name) and not jobs[0].record[_FLAGS_AT] & Flag.HURRIED:
                self._resting[jobs[0].queue] = time.monotonic() + REST
                self._warn("only what they wait for begins now")
                return
            child = self._roomiest(name) or self._child_for(name)
            if child is None or not self._give(child, child.lanes[name], jobs[0]):
                return
            self._follow(name, child.lanes[name], jobs[0].sequence)
            jobs.popleft()
        if not ahead or self._asking or self.hurries:
            return
        for child in self._children:
            lane = child.lanes[name]
            while jobs and not jobs[0].suspect and self._may_lie_ahead(child, name, ahead):
                if not self._give(child, lane, jobs[0]):
                    break
                jobs.popleft()

    def add_child(self) -> Child | None:
        """Starts an extra child; None when there may be no more."""
        if self._closed:
            return None
        if self.extra >= self._most_extra:
            self._warn("there are as many extra children as there may be for that")
            return None
        try:
            child = self._spawn()
        except OSError as error:
            self._warn(f"no extra child can be started for that ({error})")
            return None
        if child is not None:
            child.extra = True
            self.extra += 1
            self._update()
        return child

    def deadline(self) -> float | None:
        """When `let_go` has something to do, monotonic."""
        if not self.extra:
            return None
        return min((each.idle_since + LINGER for each in self._idle()), default=None)

    def let_go(self, now: float) -> list[Child]:
        """The extra children that have been idle for long enough."""
        gone: list[Child] = []
        if not self.extra:
            return gone
        for child in self._idle():
            if child.sent != child.sent_when_idle:
                child.sent_when_idle, child.idle_since = child.sent, now
            elif now >= child.idle_since + LINGER:
                gone.append(child)
        return gone

    def close(self) -> None:
        """Starts no more children: the worker ends."""
        self._closed = True

    def _is_scarce(self, name: str) -> bool:
        return name == SYNC and self._needed() >= self._most_extra // 2

    def _needed(self) -> int:
        """How many extra children the sync runs that wait make up for."""
        return self._lent[SYNC] // self._widths[SYNC]

    def _may_begin(self, name: str) -> bool:
        if self.free(name) <= 0:
            return False
        if not self._is_scarce(name):
            return True
        return self._branch is None or self._branch.rests(time.monotonic())

    def _follow(self, name: str, lane: Lane, run: int) -> None:
        if name == SYNC:
            self._branch = _Branch(lane, run)

    def _roomiest(self, name: str) -> Child | None:
        able = [child for child in self._children if self._has_room(child, name, 0)]
        return min(
            able,
            key=lambda it: (not it.slots.served(), it.extra, _computing(it.lanes[name])),
            default=None,
        )

    def _child_for(self, name: str) -> Child | None:
        """An extra child, unless one that has room is only to read what was sent to it."""
        full = any(child.lanes[name].full for child in self._children)
        return None if full or self._is_behind(name) else self.add_child()

    def _is_behind(self, name: str) -> bool:
        """Whether an event loop is late to read what it was given, which calls for no process."""
        return name == ASYNC and any(child.lanes[name].deaf_until for child in self._children)

    def _may_lie_ahead(self, child: Child, name: str, ahead: int) -> bool:
        lane = child.lanes[name]
        full = len(lane.inflight) >= lane.width and not lane.lent
        return full and self._has_room(child, name, ahead)

    def _lend(self, lane: Lane, run: int) -> None:
        self._stop_asking(lane, run)
        self._resting.clear()
        if run not in lane.lent:
            lane.lent.add(run)
            job = lane.inflight[run]
            self._lent[job.lane] += 1
            self._bytes += len(job.record)
            _widen(lane)
            self._update()

    def _begin_asking(self, lane: Lane, run: int) -> None:
        if run not in lane.asking:  # else a stop had interrupted what said so
            lane.asking[run] = None
            self._asking += 1

    def _stop_asking(self, lane: Lane, run: int) -> None:
        if run in lane.asking:
            del lane.asking[run]
            self._asking -= 1

    def _update(self) -> None:
        self.active = any(self._lent.values()) or self.extra > 0
        if self.hurries and self._needed() <= self._most_extra // 8:
            self._hurry(on=False)
        elif not self.hurries and self._needed() >= self._most_extra // 4:
            self._hurry(on=True)

    def _hurry(self, *, on: bool) -> None:
        self.hurries = on
        for child in self._children:
            with contextlib.suppress(OSError):
                send_grants(child.small, [HURRY if on else CALM])

    def _idle(self) -> list[Child]:
        children = self._children
        return [each for each in children if each.extra and not (each.busy() or each.retiring)]

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            text = "%d runs wait for other tasks, and %s: the rest begins as they end"
            log.warning(text, sum(self._lent.values()), reason)


class _Branch:
    """The run that began or went on last: the end of the branch that may grow."""

    def __init__(self, lane: Lane, run: int) -> None:
        self.lane = lane
        self._run = run
        self._ended_at = 0.0

    def rests(self, now: float) -> bool:
        """Whether something else may begin: it waits, or it ended and nobody asked since."""
        if self._run in self.lane.inflight:
            return self._run in self.lane.lent
        self._ended_at = self._ended_at or now
        return now >= self._ended_at + HEARSAY


def _computing(lane: Lane) -> int:
    """How many runs of a child's lane have a slot."""
    return min(len(lane.inflight) - len(lane.lent), lane.slots)


def _room(lane: Lane) -> int:
    return lane.slots - _computing(lane)


def _widen(lane: Lane) -> None:
    lane.width = lane.slots + min(len(lane.lent), lane.spare)
