"""The parent's view of its children: processes, sockets, and who was given what.

Knows nothing of the server. The parent keeps both ends of each work socket, so what a child has not
read can be taken back by reading the child's own end: no protocol, no race. When a child dies its
last outcomes are read first; of what is then left, the runs it noted in its slots had begun, and
the rest had not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING, Final

from conveyor.worker.child import Ends, Work, run_child
from conveyor.worker.exit import flush_output
from conveyor.worker.frames import (
    SHOWN,
    OutcomeFrame,
    StopFrame,
    read_pauses,
    receive_large_outcome,
    receive_outcome,
    send_job,
    send_stop,
)
from conveyor.worker.job import ASYNC, SYNC
from conveyor.worker.lending import MOST_SUSPENDED, Lending
from conveyor.worker.process import Child, Death, Lane
from conveyor.worker.signals import held_back
from conveyor.worker.slots import Slots

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

    from conveyor.worker.job import Job

log = logging.getLogger("conveyor.worker")

#: Datagrams that may lie in a sync lane's socket beyond what runs, while runs are short.
AHEAD: Final = 8
#: Seconds a run may take for more to be sent behind it.
SHORT_RUN: Final = 0.001
#: Seconds after which what lies behind a run is taken back.
STUCK: Final = 0.025
#: Seconds after which a lane that could run what it was given, and has not read it, is held up: by
#: a coroutine that computes, code that holds the interpreter's lock, or a signal.
DEAF: Final = 0.05
#: Seconds in which such a lane is given nothing, unless it answers.
DEAF_PAUSE: Final = 0.25
#: Seconds that a run asked to stop has before its child is killed.
HARD_STOP: Final = 1.0
#: Seconds before a child that died without having run anything is replaced.
RESPAWN_PAUSE: Final = 1.0


class Pool:
    """The children of one worker.

    Args:
        work: What each child can do.
        size: How many there should be.
        selector: Of the parent's loop; registered files have their callback as data.
        on_outcomes: Called with a child's outcomes, as they come.
        on_death: Called when a child is gone, after its last outcomes.
        foreign: Descriptors that children must close.
        max_tasks: Runs after which a child is replaced.
    """

    def __init__(
        self,
        work: Work,
        size: int,
        selector: selectors.BaseSelector,
        on_outcomes: Callable[[list[tuple[Job, OutcomeFrame]]], None],
        on_death: Callable[[Death], None],
        foreign: Callable[[], Iterable[int]],
        *,
        max_tasks: float,
        max_memory: float,
    ) -> None:
        self._work = work
        self._size = size
        self._selector = selector
        self._on_outcomes = on_outcomes
        self._on_death = on_death
        self._foreign = foreign
        self._max_tasks = max_tasks
        self._max_memory = max_memory
        self.children: list[Child] = []
        self._spawn_at = 0.0
        self._next = 0
        self._kept: dict[str, Child] = {}
        self._deaf: set[Lane] = set()
        self.suspects = {SYNC: 0, ASYNC: 0}
        self.lending = Lending(
            work,
            size,
            self.children,
            spawn=self._spawn_another,
            give=self._give,
            has_room=self._has_room,
        )

    def fill(self, now: float) -> None:
        """Starts children until there are as many as there should be; idle extra ones go."""
        while now >= self._spawn_at and self._is_short():
            try:
                self._spawn()
            except OSError as error:
                log.error("no child can be started (%s): that is tried again", error)
                self._spawn_at = now + RESPAWN_PAUSE
        for child in self.lending.let_go(now):
            self._retire(child)
        for lane in [lane for lane in self._deaf if now >= lane.deaf_until]:
            lane.deaf_until = 0.0
            self._deaf.remove(lane)

    def deadline(self) -> float | None:
        """When `fill` has something to do, monotonic."""
        moment = self._spawn_at if self._is_short() else self.lending.deadline()
        moments = [moment, *(lane.deaf_until for lane in self._deaf)]
        return min((each for each in moments if each is not None), default=None)

    def send(self, lane: str, jobs: deque[Job], *, short: bool) -> None:
        """Gives jobs to children, idle ones first; what nobody has room for stays.

        A suspect is given a child to itself. While it waits for one, the least busy is kept free
        for it, and what is behind it goes to the others.

        Args:
            lane: Of the jobs.
            jobs: In order; those that are sent are removed.
            short: Whether runs are so short that children may be given some ahead.
        """
        self._kept.pop(lane, None)
        if self.lending.active:
            self.lending.make_way(lane, jobs)
        suspects: list[Job] = []
        while jobs and self.children:
            if jobs[0].suspect:
                suspect = jobs.popleft()
                if not self._send_alone(lane, suspect):
                    suspects.append(suspect)
            else:
                send = self.lending.send if self.lending.active else self._send_ordinary
                send(lane, jobs, AHEAD if short and lane == SYNC else 0)
                if jobs and not jobs[0].suspect:
                    break
        jobs.extendleft(reversed(suspects))
        self.suspects[lane] = len(suspects)

    def room(self, lane: str) -> int | None:
        """How many more tasks of a lane could begin at once, less than 0 when some lie ahead.

        None when no child takes any.
        """
        lanes = [child.lanes[lane] for child in self.children if self._is_open(child)]
        if self._deaf:
            lanes = [each for each in lanes if not each.deaf_until]
        if self.lending.active:
            return self.lending.room(lane, lanes)
        if not lanes:
            return None
        return sum(each.width - len(each.inflight) for each in lanes) - self._outgoing(lane)

    def take_back(self, now: float, *, everything: bool = False) -> list[Job]:
        """What lies unread behind long runs or in children that begin, or all; in order."""
        jobs: list[Job] = []
        for child in self.children:
            before = len(jobs)
            for lane in child.lanes.values():
                if everything and lane.inflight:
                    jobs += child.take_back(lane)
                elif lane.inflight and now - lane.moved_at > STUCK:
                    jobs += self._take_unread(child, lane, now)
            if child.retiring and len(jobs) > before:
                self._retire(child)
        return jobs

    def _take_unread(self, child: Child, lane: Lane, now: float) -> list[Job]:
        if len(lane.inflight) > lane.width or not child.slots.served():
            return child.take_back(lane)
        begun = set(child.slots.running())
        unread = [job.sent_at for number, job in lane.inflight.items() if number not in begun]
        if not unread or now - min(unread) <= DEAF:
            return []
        jobs = child.take_back(lane)
        if jobs:
            self._rest(lane, now)
        return jobs

    def _rest(self, lane: Lane, now: float) -> None:
        lane.deaf_until = now + DEAF_PAUSE
        self._deaf.add(lane)

    def stop(self, job: Job, reason: int, now: float) -> bool:
        """Asks a run to stop, and kills its child if it has not in time; False: no child has it."""
        for child in self.children:
            if job.sequence in child.lanes[job.lane].inflight:
                if job.sequence not in child.kill_at:
                    child.kill_at[job.sequence] = now + HARD_STOP
                    self._ask(child, job, reason)
                return True
        return False

    def tick(self, now: float) -> list[Job]:
        """Kills children whose runs would not stop, lets worn ones go; returns late runs."""
        late: list[Job] = []
        for child in self.children:
            for sequence in child.slots.late(now):
                job = child.lanes[SYNC].inflight.get(sequence) or child.lanes[ASYNC].inflight.get(
                    sequence
                )
                if job is not None and sequence not in child.kill_at:
                    late.append(job)
            self._kill_if_due(child, now)
            if not child.retiring and (self._is_spent(child) or self._has_grown(child)):
                self._retire(child)
        self.fill(now)
        return late

    def kill(self) -> None:
        """Kills every child; their deaths are reported as usual."""
        for child in self.children:
            child.signal(signal.SIGKILL)

    def dump_stacks(self, now: float) -> None:
        """Logs what every child has been given, and has it print where that is."""
        for child in self.children:
            for lane in child.lanes.values():
                for job in lane.inflight.values():
                    log.warning("child %d has had %s for %.1fs", child.pid, job, now - job.sent_at)
            with contextlib.suppress(OSError):  # full or gone: its threads' stacks are all there is
                for number in child.lanes[ASYNC].inflight:
                    send_stop(child.lanes[ASYNC].near, StopFrame(number, SHOWN))
            child.signal(signal.SIGUSR1)

    def shrink(self) -> None:
        """Lets every child go once it has nothing to do."""
        self._size = 0
        self.lending.close()
        for child in list(self.children):
            self._retire(child)

    def read(self, child: Child) -> bool:
        """Passes on what a child has answered; True when it has closed its end."""
        outcomes: list[tuple[Job, OutcomeFrame]] = []
        gone = False
        for sock, receive in ((child.small, receive_outcome), (child.large, receive_large_outcome)):
            with contextlib.suppress(BlockingIOError):
                while (frame := receive(sock)) is not None:
                    job = self._answered(child, frame)
                    if job is not None:
                        outcomes.append((job, frame))
                    elif not frame.sequence:
                        self.lending.note(child, read_pauses(frame))
                gone = True
        if outcomes:
            self._on_outcomes(outcomes)
        idle_and_worn = not child.busy() and self._has_grown(child)
        if child.retiring or self._is_spent(child) or idle_and_worn:
            self._retire(child)
        return gone

    def _answered(self, child: Child, frame: OutcomeFrame) -> Job | None:
        for lane in child.lanes.values():
            job = lane.inflight.pop(frame.sequence, None)
            if job is not None:
                if lane.lent:
                    self.lending.end(lane, job)
                lane.moved_at = time.monotonic()
                lane.deaf_until = 0.0
                child.done += 1
                child.kill_at.pop(frame.sequence, None)
                if job.suspect:
                    child.alone = False
                return job
        return None

    def _send_alone(self, lane: str, job: Job) -> bool:
        if self.lending.active and self.lending.free(lane) <= 0:
            return False
        able = [each for each in self.children if self._is_open(each)]
        able = [each for each in able if not each.lanes[lane].deaf_until]
        child = min(able, key=Child.busy, default=None)
        if self.lending.active and (child is None or child.busy()):
            child = self.lending.add_child() or child
        if child is not None and not child.busy():
            return self._give(child, child.lanes[lane], job)
        if child is not None and not any(other.alone for other in self.children):
            self._kept[lane] = child
        return False

    def _send_ordinary(self, lane: str, jobs: deque[Job], most_ahead: int) -> None:
        outgoing = self._outgoing(lane)
        self._next = (self._next + 1) % len(self.children)
        order = self.children[self._next :] + self.children[: self._next]
        order.sort(key=lambda child: not child.slots.served())
        for ahead in (0, most_ahead) if most_ahead else (0,):
            for child in order:
                while jobs and not jobs[0].suspect and self._has_room(child, lane, ahead):
                    if outgoing and (self.room(lane) or 0) <= 0:
                        return
                    if not self._give(child, child.lanes[lane], jobs[0]):
                        break
                    jobs.popleft()

    def _outgoing(self, lane: str) -> int:
        """How many runs children still have whose successors are here already."""
        return sum(len(child.lanes[lane].inflight) for child in self.children if child.retiring)

    def _is_open(self, child: Child) -> bool:
        if child.retiring or child.alone or child.sent >= self._max_tasks:
            return False
        return not self._kept or child not in self._kept.values()

    def _has_room(self, child: Child, name: str, ahead: int) -> bool:
        lane = child.lanes[name]
        free = not lane.full and not lane.deaf_until
        return free and self._is_open(child) and len(lane.inflight) < lane.width + ahead

    def _give(self, child: Child, lane: Lane, job: Job) -> bool:
        try:
            send_job(lane.near, job.frame())
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._watch_room(lane)
            return False
        except OSError as error:
            log.error("child %d cannot be given %s (%s): later", child.pid, job, error)
            self._rest(lane, time.monotonic())
            return False
        job.sent_at = now = time.monotonic()
        if not lane.inflight:
            lane.moved_at = now
        lane.inflight[job.sequence] = job
        child.sent += 1
        child.alone = job.suspect
        return True

    def _watch_room(self, lane: Lane) -> None:
        lane.full = True
        self._selector.register(lane.near, selectors.EVENT_WRITE, lambda: self._has_drained(lane))

    def _has_drained(self, lane: Lane) -> None:
        if not lane.full:
            return  # let go in this very turn of the loop
        lane.full = False
        self._selector.unregister(lane.near)

    def _ask(self, child: Child, job: Job, reason: int) -> None:
        child.slots.ask_to_stop(job.sequence, reason)
        if job.lane == SYNC:
            child.signal(signal.SIGUSR2)
        else:
            with contextlib.suppress(OSError):  # full or gone: the hard stop follows
                send_stop(child.lanes[ASYNC].near, StopFrame(job.sequence, reason))

    def _kill_if_due(self, child: Child, now: float) -> None:
        if not child.killed_for and any(now >= moment for moment in child.kill_at.values()):
            child.killed_for = set(child.kill_at)  # all were asked to end, and end so
            child.signal(signal.SIGKILL)

    def _is_spent(self, child: Child) -> bool:
        return child.sent >= self._max_tasks and child.has_begun_all()

    def _has_grown(self, child: Child) -> bool:
        if self._max_memory == float("inf") or not child.done:
            return False  # what it needs before its first run its successor would need as well
        return child.memory() > self._max_memory

    def _retire(self, child: Child) -> None:
        child.retiring = True
        if not child.busy():
            self._dismiss(child)

    def _dismiss(self, child: Child) -> None:
        """End of file on its work sockets ends it; its death follows."""
        for lane in child.lanes.values():
            if lane.full:
                self._has_drained(lane)
            lane.close()

    def _is_short(self) -> bool:
        return sum(not (each.retiring or each.extra) for each in self.children) < self._size

    def _spawn_another(self) -> Child | None:
        return self._spawn() if self._size and time.monotonic() >= self._spawn_at else None

    def _spawn(self) -> Child:
        work = dataclasses.replace(self._work, hurry=self.lending.hurries)
        spare = MOST_SUSPENDED if work.coroutines else 0
        slots = Slots(work.threads + work.coroutines, len(work.queues), spare)
        child = Child(slots, work.threads, work.coroutines, spare)
        ends = Ends(child.lanes[SYNC].far, child.lanes[ASYNC].far, child.small_far, child.large_far)
        foreign = [d for other in self.children for d in other.descriptors()]
        own = [child.small, child.large, child.lanes[SYNC].near, child.lanes[ASYNC].near]
        foreign += [end.fileno() for end in own]
        foreign += self._foreign()
        parent = os.getpid()
        flush_output()
        with held_back():
            child.pid = os.fork()
            if child.pid == 0:
                run_child(work, slots, ends, foreign, parent)
        child.small_far.close()
        child.large_far.close()
        self._watch(child)
        self.children.append(child)
        log.debug("child %d started", child.pid)
        return child

    def _watch(self, child: Child) -> None:
        child.open_pidfd()
        if child.pidfd >= 0:
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._bury(child))
        self._selector.register(child.small, selectors.EVENT_READ, lambda: self._on_readable(child))
        self._selector.register(child.large, selectors.EVENT_READ, lambda: self._on_readable(child))

    def _on_readable(self, child: Child) -> None:
        """Where the kernel has no pidfd, end of file tells of a death."""
        if child not in self.children:
            return  # buried in this very turn of the loop, after the selector had named both
        if self.read(child) and child.pidfd < 0:
            self._bury(child)

    def _bury(self, child: Child) -> None:
        self.read(child)
        status = child.wait()
        self.children.remove(child)
        self.lending.forget(child)
        self._selector.unregister(child.small)
        self._selector.unregister(child.large)
        if child.pidfd >= 0:
            self._selector.unregister(child.pidfd)
        for lane in child.lanes.values():
            if lane.full:
                self._has_drained(lane)
        death = child.death(status)
        child.close()
        if death.early:
            self._spawn_at = time.monotonic() + RESPAWN_PAUSE
        self._on_death(death)
        self.fill(time.monotonic())
