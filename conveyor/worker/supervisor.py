"""The parent's loop: claims batches, hands single tasks to children, settles outcomes.

It runs no task, so a task that holds the interpreter for minutes costs no lease. One call to the
server is in flight at a time: what comes in meanwhile goes with the next one, so batches form by
themselves. Every call may be repeated after a lost reply (see `broker/link.py`), and every lease is
ended with its token, so a reply that never came and a worker that came back too late change
nothing.

If this process dies, its children die with it, its leases run out, and whoever looks next runs
those tasks again: each counts as stalled, since nobody can tell which had begun.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import selectors
import threading
import time
from typing import TYPE_CHECKING, Final

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, PARKED_MAIL, TOKEN, Settled, Verdict
from conveyor.broker.link import Link
from conveyor.worker.announcement import Announcer, ignore_answer
from conveyor.worker.child import Work
from conveyor.worker.deaths import settle_death
from conveyor.worker.frames import Outcome, OutcomeFrame
from conveyor.worker.holdings import Holdings
from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.pool import SHORT_RUN, Death, Pool
from conveyor.worker.queue import Bell, Exchange, WorkerQueue, unheard
from conveyor.worker.reports import report_death, report_outcome, report_refused
from conveyor.worker.runner import CANCELLED, TIMED_OUT
from conveyor.worker.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.client import Client
    from conveyor.task import BaseTask
    from conveyor.worker.plan import WorkerPlan

log = logging.getLogger("conveyor.worker")

#: Seconds between looks at runs while any are held.
TICK: Final = 0.05
#: Most bytes of records held at once.
HELD_BYTES: Final = 16 * 1_048_576
#: Tasks claimed at once from a lane that nothing here uses, to park them.
SWEEP: Final = 10
#: Seconds after the grace that the last outcomes may take to reach the server.
LAST_WORDS: Final = 5.0


class Supervisor:
    """One worker's parent.

    Args:
        client: The app's.
        tasks: What can be run here, by name.
        plan: What to be.
    """

    def __init__(
        self, client: Client, tasks: Mapping[str, BaseTask[..., object]], plan: WorkerPlan
    ) -> None:
        self.id = os.urandom(4)
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.paused = False
        self.forked = threading.Event()
        self._settings = client.settings
        self._broker = client.broker
        self._definitions = {name.encode(): task.definition for name, task in tasks.items()}
        self._lanes = {n: ASYNC if d.is_async else SYNC for n, d in self._definitions.items()}
        self._queues = [
            WorkerQueue(index, self._broker.keys(name), self.id.hex())
            for index, name in enumerate(plan.queues)
        ]
        self._announcer = Announcer(self._broker, self.id.hex(), plan, tasks)
        self._held = Holdings(self._queues, self._lanes)
        self._windows = {lane: Window(time.monotonic()) for lane in (SYNC, ASYNC)}
        self._claiming = {SYNC: 0, ASYNC: 0}
        self._exchanges = 0
        self._drawn: dict[str, WorkerQueue] = {}
        self._next_tick = 0.0
        self._stop_by: float | None = None
        self._killing = False
        self._links: list[Link] = []
        self._bells: list[Bell] = []
        self._pool = self._make_pool(client)

    @property
    def stopping(self) -> bool:
        """Whether a shutdown has begun."""
        return self._stop_by is not None

    def run(self) -> None:
        """Works until a shutdown is done, or in burst mode until the queues are empty."""
        self._open()
        self._pool.fill(time.monotonic())
        self.forked.set()
        while not self._finished():
            self._turn()
            for key, _ in self.selector.select(self._pause()):
                key.data()
        self._close()

    def shut_down(self) -> None:
        """Begins a warm shutdown: nothing more is taken, what has not begun goes back at once."""
        if self.stopping:
            return
        self._stop_by = time.monotonic() + self.plan.grace
        self._recall()
        self._release_waiting()
        self._pool.shrink()

    def kill(self) -> None:
        """Ends every run now; the tasks go back uncounted."""
        self.shut_down()
        if not self._killing:
            self._killing = True
            self._stop_by = time.monotonic()
            self._pool.kill()

    def dump_stacks(self) -> None:
        """Logs what each child is running, and has it print its stacks."""
        for job in self._pool.jobs():
            log.info("%s has been here for %.1fs", job, time.monotonic() - job.claimed_at)
        self._pool.dump_stacks()

    def _make_pool(self, client: Client) -> Pool:
        plan = self.plan
        coroutines = plan.coroutines if ASYNC in self._lanes.values() else 0
        work = Work(self._definitions, client, plan.queues, plan.threads, coroutines)
        return Pool(
            work,
            plan.concurrency,
            self.selector,
            self._on_outcomes,
            self._on_death,
            self._descriptors,
            max_tasks=plan.max_tasks,
            max_memory=plan.max_memory,
        )

    def _descriptors(self) -> Iterable[int]:
        files = [descriptor for link in self._links for descriptor in link.filenos()]
        return [*files, self.selector.fileno()]

    def _open(self) -> None:
        """On a cluster each queue has its own connections, elsewhere all share two."""
        groups = (
            [[queue] for queue in self._queues] if self._broker.server.clustered else [self._queues]
        )
        for group in groups:
            memory = group[0].keys.memory
            bell = Bell(group, beat=self.plan.beat, heard=self._on_heard)
            greet = functools.partial(self._greet, group)
            link = Link(self._broker.server, memory, self.selector, greet)
            bell.link = Link(self._broker.server, memory, self.selector, bell.greet, blocking=True)
            for queue in group:
                queue.link = link
            self._links += [link, bell.link]
            self._bells.append(bell)
        for queue in self._queues:
            self._unpark(queue, 0)

    def _greet(self, queues: Sequence[WorkerQueue], link: Link) -> None:
        """On a new connection nothing of what was known about the server holds."""
        self._held.leases.make_all_due(time.monotonic())
        for queue in queues:
            queue.expect_work()
            queue.clock.ring()
            self._announcer.greet(queue, link)

    def _unpark(self, queue: WorkerQueue, start: int) -> None:
        names = [name.decode() for name in self._definitions]

        def go_on(following: int | None) -> None:
            queue.expect_work()
            if following is not None and following >= 0:
                self._unpark(queue, following)

        queue.link.send(commands.unpark(queue.keys, start, names), go_on)

    def _turn(self) -> None:
        now = time.monotonic()
        for link in self._links:
            link.tick(now)
        self._pool.fill(now)
        if now >= self._next_tick:
            self._tick(now)
        if not self.stopping:
            self._announcer.turn(self._queues, now)
        if self.plan.beat:
            for queue in self._queues:
                queue.clock.run(queue.link, now)
        self._renew(now)
        self._pump(now)

    def _pause(self) -> float | None:
        moments = [link.deadline() for link in self._links]
        if self.plan.beat:
            moments += [queue.clock.deadline(queue.link) for queue in self._queues]
        moments += [
            self._pool.deadline(),
            self._held.leases.next_due(),
            None if self.stopping else self._announcer.due,
            self._stop_by if not self._killing else None,
        ]
        if len(self._held.leases) or self.stopping:
            moments.append(self._next_tick)
        nearest = min(moment for moment in moments if moment is not None)
        return max(0.0, nearest - time.monotonic())

    def _finished(self) -> bool:
        settled = not len(self._held.leases) and not any(queue.pending for queue in self._queues)
        if self.stopping:
            assert self._stop_by is not None
            out_of_time = time.monotonic() > self._stop_by + LAST_WORDS
            return (settled and not self._exchanges and not self._pool.children) or (
                out_of_time and self._killing
            )
        if not self.plan.burst:
            return False
        empty = not any(queue.has_any_work() for queue in self._queues)
        return settled and empty and not self._exchanges

    def _close(self) -> None:
        self._pool.shrink()
        self._pool.kill()
        for queue in self._queues:
            if queue.link.connected:
                self._announcer.withdraw(queue)
        for link in self._links:
            link.close()
        while self._pool.children:
            for key, _ in self.selector.select():
                key.data()
        self.selector.close()

    def _tick(self, now: float) -> None:
        """Looks after runs that take long."""
        self._next_tick = now + TICK
        for job in self._pool.tick(now):
            job.stop = TIMED_OUT
            self._pool.stop(job, TIMED_OUT, now)
        self._held.put_back(self._pool.take_back(now))
        for lane, window in self._windows.items():
            if window.silent(now):
                window.close()
                self._hand_out(lane)
                self._held.release(lane)
        if self._stop_by is not None and now >= self._stop_by and not self._killing:
            log.warning("the grace of %.0fs is over: interrupting what still runs", self.plan.grace)
            self.kill()

    def _renew(self, now: float) -> None:
        due = self._held.leases.next_due()
        if due is None or due > now:
            return
        jobs = self._held.leases.take_due(now, BATCH)
        queue = self._queues[jobs[0].queue]

        def renewed(verdicts: Sequence[int] | None) -> None:
            if verdicts is None:
                return
            if Verdict.STALE in verdicts:
                self._recall()
            elif len(jobs) < BATCH:
                for child in self._pool.children:
                    child.slots.renewed(queue.index, now)
            for job, verdict in zip(jobs, verdicts, strict=True):
                if verdict == Verdict.STALE:
                    self._held.lose(job)
                elif verdict == Verdict.CANCEL_ASKED:
                    self._cancel(job)

        queue.link.send(commands.renew(queue.keys, [(job.id, job.token) for job in jobs]), renewed)

    def _pump(self, now: float) -> None:
        """Hands out what is held, settles and claims where no call is in flight, listens."""
        for lane in self._held.waiting:
            self._hand_out(lane)
        wants = {lane: self._wanted(lane) for lane in self._held.waiting}
        for link in self._links[::2]:
            if link.idle:
                self._exchange(link, wants)
        listening = {lane: want > 0 or self._claiming[lane] > 0 for lane, want in wants.items()}
        for bell in self._bells:
            bell.listen(listening, now)

    def _release_waiting(self) -> None:
        """Gives back what waits; once a claim that is under way has come in, to keep the order."""
        for lane, under_way in self._claiming.items():
            if not under_way:
                self._held.release(lane)

    def _hand_out(self, lane: str) -> None:
        self._pool.send(
            lane, self._held.waiting[lane], short=self._windows[lane].average < SHORT_RUN
        )

    def _wanted(self, lane: str, *, ahead: bool = True) -> int:
        """How many more tasks of a lane to claim, to hold some ahead or not."""
        if self.stopping or self.paused or self._held.bytes > HELD_BYTES:
            return 0
        room = self._pool.room(lane)
        if room is None:
            return 0
        width = self.plan.threads if lane == SYNC else self._async_width()
        if not width:
            return SWEEP - self._claiming[lane]
        slots = self.plan.concurrency * (width if lane == SYNC else 1)
        more = self._windows[lane].ahead(slots) if ahead else 0
        held = len(self._held.waiting[lane]) - self._pool.suspects[lane] + self._claiming[lane]
        if len(self._bells) > 1:
            held -= unheard(self._queues, lane, time.monotonic())
        return max(0, min(BATCH, room + more - held))

    def _async_width(self) -> int:
        return self.plan.coroutines if ASYNC in self._lanes.values() else 0

    def _exchange(self, link: Link, wants: dict[str, int]) -> None:
        queues = [queue for queue in self._queues if queue.link is link]
        chosen = {lane: self._choose(queues, lane) if wants[lane] else None for lane in wants}
        queue = (
            next((queue for queue in queues if queue.pending), None)
            or chosen[SYNC]
            or chosen[ASYNC]
        )
        if queue is None:
            return
        asked = {lane: wants[lane] if chosen[lane] is queue else 0 for lane in wants}
        if queue.limited:
            # What is claimed counts as started: it must not wait here.
            asked = {n: min(want, self._wanted(n, ahead=False)) for n, want in asked.items()}
        batch = queue.take_batch()
        if not batch and not any(asked.values()):
            return
        queue.calls += 1
        queue.asked = asked
        self._exchanges += 1
        for lane, want in asked.items():
            self._claiming[lane] += want
            wants[lane] -= want
            if want:
                self._drawn.pop(lane, None)
        exchange = Exchange(queue, batch, asked, time.monotonic(), queue.rings)
        command = commands.settle(
            queue.keys,
            self.id,
            queue.calls,
            [settlement for _, settlement in batch],
            sync=asked[SYNC],
            asynchronous=asked[ASYNC],
            keep_success=int(min(self._settings.retain_success_count, 2**53)),
            park_ms=round(min(self._settings.unknown_task_grace, 1e9) * 1000),
        )
        link.send(command, functools.partial(self._on_settled, exchange))

    def _choose(self, queues: Sequence[WorkerQueue], lane: str) -> WorkerQueue | None:
        """The queue to claim from: the first with work, or one drawn by weight.

        What was drawn stays so until it has claimed: drawn anew in every call that only settles,
        the queue that is settled would be drawn too often.
        """
        now = time.monotonic()
        with_work = [q for q in queues if q.has_work[lane] and now >= q.rests_until]
        if not with_work or self.plan.weights is None:
            return next(iter(with_work), None)
        if self._drawn.get(lane) not in with_work:
            weights = [self.plan.weights[queue.index] for queue in with_work]
            self._drawn[lane] = random.choices(with_work, weights)[0]
        return self._drawn[lane]

    def _on_settled(self, exchange: Exchange, answer: Settled | None) -> None:
        queue = exchange.queue
        queue.asked = {}
        self._exchanges -= 1
        for lane, want in exchange.asked.items():
            self._claiming[lane] -= want
        if answer is None:
            queue.take_failure(exchange.batch, time.monotonic())
            return
        queue.note_left(exchange, answer.left, answer.limited)
        if Verdict.STALE in answer.verdicts:
            report_refused(log, [job for job, _ in exchange.batch], answer.verdicts)
        claimed = answer.claimed
        for i in range(0, len(claimed), 2):
            self._held.take(queue, claimed[i], claimed[i + 1], exchange.sent_at)
        if self.stopping:
            self._release_waiting()

    def _on_outcomes(self, outcomes: list[tuple[Job, OutcomeFrame]]) -> None:
        now = time.monotonic()
        for job, frame in outcomes:
            self._windows[job.lane].ran(frame.elapsed_us / 1e6, now)
            if frame.outcome != Outcome.SUCCESS or log.isEnabledFor(logging.DEBUG):
                report_outcome(log, job, frame)
            self._held.settle(job, Outcome.NAMES[frame.outcome], frame.data, frame.delay_ms)

    def _on_death(self, death: Death) -> None:
        if not self._killing and (death.begun or death.guilty or death.early):
            report_death(log, death)
        self._held.put_back(death.untouched)
        for job, outcome, data, delay_ms in settle_death(
            death, self._definitions, shutting_down=self._killing
        ):
            self._held.settle(job, outcome, data, delay_ms)
        if self.stopping:
            self._release_waiting()

    def _on_heard(self, queue: WorkerQueue, meaning: str, member: bytes) -> None:
        if member == PARKED_MAIL:
            self._unpark(queue, 0)
            return
        if meaning == "stop":
            job = self._held.leases.find(queue.index, member[:TOKEN], member[TOKEN:])
            if job is not None:
                self._cancel(job)
            return
        queue.expect_work(meaning)
        if self._wanted(meaning) == 0:
            # It woke this worker, which has no room any more: somebody else may have.
            queue.link.send(("ZADD", queue.keys.marker(meaning), 0, "ready"), ignore_answer)

    def _cancel(self, job: Job) -> None:
        """Ends a task that has not begun here, or stops its run."""
        self._recall()
        if self._held.withdraw(job):
            self._held.settle(job, "cancelled")
            return
        job.stop = CANCELLED
        self._pool.stop(job, CANCELLED, time.monotonic())

    def _recall(self) -> None:
        """Has all that no child has read wait here again."""
        self._held.put_back(self._pool.take_back(time.monotonic(), everything=True))
