"""The calls of one worker that settle and claim: which are under way, and what they ask for."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, NamedTuple

from conveyor.broker import commands
from conveyor.worker.job import ASYNC, SYNC

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from conveyor.broker.commands import Command, Settled, Settlement
    from conveyor.settings import Settings
    from conveyor.worker.choice import Choice
    from conveyor.worker.job import Job
    from conveyor.worker.queue import WorkerQueue


class Exchange(NamedTuple):
    """One call that settles and claims.

    Attributes:
        queue: Of all that it is about.
        batch: What it settles.
        asked: How many tasks it claims, by lane.
        sent_at: When it was sent, monotonic.
        rings: How often the queue had been said to have work by then.
    """

    queue: WorkerQueue
    batch: Sequence[tuple[Job, Settlement]]
    asked: Mapping[str, int]
    sent_at: float
    rings: int

    def command(self, worker: bytes, settings: Settings) -> Command[Settled]:
        """The call; it repeats the number of the queue's last."""
        return commands.settle(
            self.queue.keys,
            worker,
            self.queue.calls,
            [settlement for _, settlement in self.batch],
            sync=self.asked[SYNC],
            asynchronous=self.asked[ASYNC],
            keep_success=int(min(settings.retain_success_count, 2**53)),
            park_ms=round(min(settings.unknown_task_grace, 1e9) * 1000),
        )


class Exchanges:
    """Those that have begun and not ended.

    Args:
        worker: The worker's id.
        settings: The app's.
        choice: Of the queue to claim from: it is told what is claimed.

    Attributes:
        count: How many there are.
        claiming: How many tasks they ask for, by lane.
    """

    def __init__(self, worker: bytes, settings: Settings, choice: Choice) -> None:
        self.count = 0
        self.claiming = {SYNC: 0, ASYNC: 0}
        self._worker = worker
        self._settings = settings
        self._choice = choice

    def choose(
        self,
        queues: Sequence[WorkerQueue],
        wants: Mapping[str, int],
        passed_over: Callable[[str], Container[int]],
    ) -> tuple[WorkerQueue | None, dict[str, int]]:
        """Of which queue the next is, and how many tasks it is to claim there, by lane.

        Args:
            queues: Those it may be of; what ends goes before what is claimed.
            wants: How many tasks are wanted, by lane.
            passed_over: Numbers of the queues of which none is, by lane.
        """
        chosen = {
            lane: self._choice.choose(queues, lane, passed_over(lane)) if want else None
            for lane, want in wants.items()
        }
        ending = next((queue for queue in queues if queue.pending), None)
        queue = ending or chosen[SYNC] or chosen[ASYNC]
        most = self._choice.most
        asked = {
            lane: most(queues, lane, queue, want) if queue and chosen[lane] is queue else 0
            for lane, want in wants.items()
        }
        return queue, asked

    def begin(
        self,
        queue: WorkerQueue,
        batch: Sequence[tuple[Job, Settlement]],
        asked: Mapping[str, int],
        settled: Callable[[Exchange, Settled | None], None],
    ) -> tuple[Command[Settled], Callable[[Settled | None], None]]:
        """What is to be sent, and what is to be called with the answer: it must `end` it."""
        queue.calls += 1
        queue.asked = asked
        self.count += 1
        for lane, want in asked.items():
            self.claiming[lane] += want
            if want:
                self._choice.claim(lane, queue, want)
        exchange = Exchange(queue, batch, asked, time.monotonic(), queue.rings)
        command = exchange.command(self._worker, self._settings)
        return command, functools.partial(settled, exchange)

    def end(self, exchange: Exchange) -> None:
        """It was answered, or failed."""
        exchange.queue.asked = {}
        self.count -= 1
        for lane, want in exchange.asked.items():
            self.claiming[lane] -= want
            self._choice.missed(lane, exchange.queue, want)
