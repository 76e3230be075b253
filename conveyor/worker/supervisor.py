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
import selectors
import threading
import time
from typing import TYPE_CHECKING, Final

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, PARKED_MAIL, Verdict
from conveyor.worker.announcement import Announcer, ignore_answer
from conveyor.worker.child import Work
from conveyor.worker.choice import Choice
from conveyor.worker.deaths import settle_death
from conveyor.worker.exchanges import Exchange, Exchanges
from conveyor.worker.frames import Outcome, OutcomeFrame
from conveyor.worker.holdings import Holdings
from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.lines import Lines
from conveyor.worker.pool import SHORT_RUN, Pool
from conveyor.worker.queue import WorkerQueue, unheard
from conveyor.worker.reports import report_death, report_outcome, report_refused
from conveyor.worker.runner import CANCELLED, TIMED_OUT
from conveyor.worker.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conveyor.broker.commands import Renewed, Settled
    from conveyor.broker.link import Link
    from conveyor.client import Client
    from conveyor.task import BaseTask
    from conveyor.worker.callbacks import Teller
    from conveyor.worker.plan import WorkerPlan
    from conveyor.worker.process import Death

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
        teller: Tells users of it.
    """

    def __init__(
        self,
        client: Client,
        tasks: Mapping[str, BaseTask[..., object]],
        plan: WorkerPlan,
        teller: Teller,
    ) -> None:
        self.id = os.urandom(4)
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.paused = False
        self.forked = threading.Event()
        self._teller = teller
        self._settings = client.settings
        self._broker = client.broker
        self._definitions = {name.encode(): task.definition for name, task in tasks.items()}
        self._lanes = {n: ASYNC if d.is_async else SYNC for n, d in self._definitions.items()}
        coroutines = plan.coroutines if ASYNC in self._lanes.values() else 0
        self._widths = {SYNC: plan.threads, ASYNC: coroutines}
        self._queues = [
            WorkerQueue(index, self._broker.keys(name), self.id.hex())
            for index, name in enumerate(plan.queues)
        ]
        self._announcer = Announcer(self._broker, self.id.hex(), plan, tasks)
        self._held = Holdings(self._queues, self._lanes)
        self._windows = {lane: Window(time.monotonic()) for lane in (SYNC, ASYNC)}
        self._choice = Choice(plan.weights)
        self._exchanges = Exchanges(self.id, self._settings, self._choice)
        self._next_tick = 0.0
        self._stop_by: float | None = None
        self._killing = False
        self._looked_again = False
        self._lines = Lines(
            self._broker.server,
            self._queues,
            self.selector,
            greet=self._greet,
            heard=self._on_heard,
            beat=plan.beat,
        )
        self._pool = self._make_pool(client)

    @property
    def stopping(self) -> bool:
        """Whether a shutdown has begun."""
        return self._stop_by is not None

    def run(self) -> None:
        """Works until a shutdown is done, or in burst mode until the queues are empty."""
        self._lines.open()
        for queue in self._queues:
            queue.unpark(self._definitions)
        self._pool.fill(time.monotonic())
        self.forked.set()
        self._teller.started()
        due = time.monotonic()
        while not self._finished():
            now = time.monotonic()
            if now >= due:
                self._look_after(now)
            self._pump(now)
            due = self._next_due()
            for key, _ in self.selector.select(max(0.0, due - time.monotonic())):
                key.data()
        self._close()

    def pause(self, paused: bool) -> None:
        """Takes no more tasks and hands back what has not begun, or takes tasks again."""
        if paused == self.paused:
            return
        self.paused = paused
        log.info("paused: nothing more is taken" if paused else "resumed")
        if paused:
            self._recall()
            self._release_waiting()
        self._announcer.paused(self._queues, paused)

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
        """Logs what each child has been given, and has it print its stacks."""
        self._pool.dump_stacks(time.monotonic())

    def _make_pool(self, client: Client) -> Pool:
        plan = self.plan
        widths = self._widths
        work = Work(self._definitions, client, plan.queues, widths[SYNC], widths[ASYNC])
        return Pool(
            work,
            plan.concurrency,
            self.selector,
            self._on_outcomes,
            self._on_death,
            lambda: [*self._lines.descriptors(), self.selector.fileno()],
            max_tasks=plan.max_tasks,
            max_memory=plan.max_memory,
        )

    def _greet(self, queues: Sequence[WorkerQueue], link: Link) -> None:
        """On a new connection nothing of what was known about the server holds."""
        self._held.leases.make_all_due(time.monotonic())
        for queue in queues:
            queue.expect_work()
            queue.clock.ring()
            answered = functools.partial(self._teller.answered, queue.keys.queue)
            self._announcer.greet(queue, link, answered)

    def _look_after(self, now: float) -> None:
        """Does what is due; between two such moments a turn of the loop only passes things on."""
        self._lines.tick(now)
        self._pool.fill(now)
        if now >= self._next_tick:
            self._tick(now)
        if not self.stopping:
            self._announcer.turn(self._queues, now)
        if self.plan.beat:
            for queue in self._queues:
                queue.clock.run(queue.link, now)
        self._renew(now)

    def _next_due(self) -> float:
        moments = self._lines.deadlines()
        moments += [queue.rest_ends() for queue in self._queues]
        if self.plan.beat:
            moments += [queue.clock.deadline(queue.link) for queue in self._queues]
        moments += [
            self._pool.deadline(),
            self._held.leases.next_due(),
            self._teller.deadline(),
            None if self.stopping else self._announcer.due,
            self._stop_by if not self._killing else None,
        ]
        busy = any(child.busy() for child in self._pool.children)
        if busy or len(self._held.leases) or self.stopping:
            moments.append(self._next_tick)
        return min(moment for moment in moments if moment is not None)

    def _finished(self) -> bool:
        settled = not len(self._held.leases) and not any(queue.pending for queue in self._queues)
        if self.stopping:
            assert self._stop_by is not None
            out_of_time = time.monotonic() > self._stop_by + LAST_WORDS
            return (settled and not self._exchanges.count and not self._pool.children) or (
                out_of_time and self._killing
            )
        if self.plan.burst and settled and not self._expects_work() and not self._exchanges.count:
            self._end_burst()
        return False

    def _end_burst(self) -> None:
        """Looks once more: what ran last may have sent something while nothing listened."""
        if self._looked_again:
            self.shut_down()
            return
        self._looked_again = True
        for queue in self._queues:
            queue.expect_work()

    def _expects_work(self) -> bool:
        return any(queue.has_any_work() for queue in self._queues)

    def _close(self) -> None:
        self._pool.shrink()
        self._pool.kill()
        for queue in self._queues:
            if queue.link.connected:
                self._announcer.withdraw(queue)
        self._lines.close()
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
                self._hand_out(lane, now)
                self._held.release(lane)
        if self._stop_by is not None and now >= self._stop_by and not self._killing:
            log.warning("the grace of %gs is over: interrupting what still runs", self.plan.grace)
            self.kill()

    def _renew(self, now: float) -> None:
        due = self._held.leases.next_due()
        if due is None or due > now:
            return
        jobs = self._held.leases.take_due(now, BATCH)
        queue = self._queues[jobs[0].queue]
        if not queue.link.connected:
            return  # once it is, all are due

        def renewed(answer: Renewed | None) -> None:
            if answer is None:
                return
            if Verdict.STALE in answer.verdicts:
                self._recall()
            elif len(jobs) < BATCH:
                for child in self._pool.children:
                    child.slots.renewed(queue.index, now)
            for job, verdict in zip(jobs, answer.verdicts, strict=True):
                lost = verdict == Verdict.STALE
                if lost:
                    self._held.lose(job)
                if verdict == Verdict.CANCEL_ASKED or (lost and job.started_ms < answer.since_ms):
                    self._cancel(job)

        queue.link.send(commands.renew(queue.keys, [(job.id, job.token) for job in jobs]), renewed)

    def _pump(self, now: float) -> None:
        """Hands out what is held, settles and claims where no call is in flight, listens."""
        for lane in self._held.waiting:
            self._hand_out(lane, now)
        if self._pool.lending.hurries:
            self._release_waiting()  # what is hurried comes before it
        claiming = self._exchanges.claiming
        standing = any(bell.stands for bell in self._lines.bells)
        wants = {lane: 0 if standing else self._wanted(lane) for lane in self._held.waiting}
        for queue in self._queues:
            queue.unpark_some(self._definitions, wants)
        for link in self._lines.calls:
            if link.idle:
                self._exchange(link, wants)
        listening = {lane: want > 0 or claiming[lane] > 0 for lane, want in wants.items()}
        holds_nothing = not len(self._held.leases)
        for bell in self._lines.bells:
            bell.listen(listening, now, holds_nothing=holds_nothing)
        if standing and (self.stopping or self.paused):
            self._lines.bells[0].call_back()
        elif holds_nothing and len(self._queues) == 1:
            self._claim_ahead(now)
        if self._teller.idle:
            expecting = self._expects_work() and not self.paused
            self._teller.look(len(self._held.leases), expecting, now)

    def _claim_ahead(self, now: float) -> None:
        """Has a claim stand behind the bell, unless the only queue is known to have more to do."""
        (queue,), (bell,) = self._queues, self._lines.bells
        busy = self._exchanges.count or queue.has_any_work() or queue.limited
        if busy or self.plan.burst or not bell.may_stand(now):
            return
        asked = {lane: self._wanted(lane, ahead=False) for lane in self._held.waiting}
        if all(asked.values()):
            bell.stand(*self._exchanges.begin(queue, [], asked, self._on_settled))

    def _release_waiting(self) -> None:
        """Gives back what waits; once a claim that is under way has come in, to keep the order."""
        for lane, under_way in self._exchanges.claiming.items():
            if not under_way:
                self._held.release(lane)

    def _hand_out(self, lane: str, now: float) -> None:
        if self.paused:
            self._pool.lending.grant(lane)
            return
        self._pool.send(
            lane, self._held.waiting[lane], short=self._windows[lane].average(now) < SHORT_RUN
        )

    def _wanted(self, lane: str, *, ahead: bool = True) -> int:
        """How many more tasks of a lane to claim, to hold some ahead or not."""
        held = self._held.bytes - self._pool.lending.bytes
        if self.stopping or self.paused or held > HELD_BYTES:
            return 0
        width, claiming = self._widths[lane], self._exchanges.claiming[lane]
        if not width:
            return SWEEP - claiming
        room = self._pool.room(lane)
        if room is None:
            return 0
        slots = self.plan.concurrency * (width if lane == SYNC else 1)
        ahead = ahead and not self._pool.lending.hurries
        more = self._windows[lane].ahead(slots, time.monotonic()) if ahead else 0
        coming = len(self._held.waiting[lane]) - self._pool.suspects[lane] + claiming
        if len(self._lines.calls) > 1:
            coming -= unheard(self._queues, lane, time.monotonic())
        return max(0, min(BATCH, room + more - coming))

    def _exchange(self, link: Link, wants: dict[str, int]) -> None:
        queues = [queue for queue in self._queues if queue.link is link]
        queue, asked = self._exchanges.choose(queues, wants, self._pool.lending.passed_over)
        if queue is None:
            return
        if queue.limited:
            # What is claimed counts as started: it must not wait here.
            asked = {n: min(want, self._wanted(n, ahead=False)) for n, want in asked.items()}
        batch = queue.take_batch()
        if batch or any(asked.values()):
            link.send(*self._exchanges.begin(queue, batch, asked, self._on_settled))
            for lane, want in asked.items():
                wants[lane] -= want

    def _on_settled(self, exchange: Exchange, answer: Settled | None) -> None:
        self._exchanges.end(exchange)
        if answer is None:
            exchange.queue.take_failure(exchange.batch, time.monotonic())
        else:
            self._take_answer(exchange, answer)
        if self.stopping or self.paused:
            self._release_waiting()

    def _take_answer(self, exchange: Exchange, answer: Settled) -> None:
        queue = exchange.queue
        queue.note_left(exchange, answer.left, answer.limited)
        if Verdict.STALE in answer.verdicts:
            report_refused(log, [job for job, _ in exchange.batch], answer.verdicts)
        if self._teller.tasks:
            self._teller.settled(queue.keys.queue, exchange.batch, answer.verdicts, answer.now_ms)
        claimed = answer.claimed
        self._looked_again = self._looked_again and not claimed
        for i in range(0, len(claimed), 2):
            lane = self._held.take(queue, claimed[i], claimed[i + 1], exchange.sent_at)
            self._choice.missed(lane, queue, -1)

    def _on_outcomes(self, outcomes: list[tuple[Job, OutcomeFrame]]) -> None:
        now = time.monotonic()
        for job, frame in outcomes:
            self._windows[job.lane].ran(frame.elapsed_us / 1e6, now)
            if frame.outcome != Outcome.SUCCESS or log.isEnabledFor(logging.DEBUG):
                report_outcome(log, job, self._queues[job.queue].keys.queue, frame)
            self._held.settle(job, Outcome.NAMES[frame.outcome], frame.data, frame.delay_ms)

    def _on_death(self, death: Death) -> None:
        if not self._killing and (death.begun or death.guilty or death.early):
            report_death(log, death)
        self._held.put_back(death.untouched)
        for job, outcome, data, delay_ms in settle_death(
            death, self._definitions, shutting_down=self._killing
        ):
            self._held.settle(job, outcome, data, delay_ms)
        if self.stopping or self.paused:
            self._release_waiting()

    def _on_heard(self, queue: WorkerQueue, meaning: str, member: bytes) -> None:
        if member == PARKED_MAIL:
            queue.look_for_parked()
            return
        if meaning == "stop":
            for job in self._held.leases.to_stop(queue.index, member):
                self._cancel(job)
            return
        queue.expect_work(meaning)
        if self._wanted(meaning) == 0:
            # It woke this worker, which has no room any more: somebody else may have.
            queue.link.send(commands.ring(queue.keys, meaning, "ready"), ignore_answer)

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
