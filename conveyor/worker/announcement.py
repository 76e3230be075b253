"""What a worker says of itself to people who list workers, for as long as it lives."""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from conveyor.broker import commands
from conveyor.errors import BrokerUnavailable, QueueFull
from conveyor.events import EventType
from conveyor.packing import pack
from conveyor.recurring import Declarer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from conveyor.broker.broker import Broker
    from conveyor.broker.commands import Command
    from conveyor.broker.link import Link
    from conveyor.task import BaseTask
    from conveyor.worker.plan import WorkerPlan
    from conveyor.worker.queue import WorkerQueue

log = logging.getLogger("conveyor.worker")

#: Seconds between prolongations of the announcement, and ms that one holds.
HEARTBEAT: Final = 30.0
HOLDS_MS: Final = 95_000


class Announcer:
    """Announces one worker on its queues.

    Args:
        broker: Runs what may block.
        worker: The worker's id in hex.
        plan: What it says of itself.
        tasks: What it can run, of which some may recur.
    """

    def __init__(
        self,
        broker: Broker,
        worker: str,
        plan: WorkerPlan,
        tasks: Mapping[str, BaseTask[..., Any]],
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._plan = plan
        self._paused = False
        #: When `turn` has something to do, monotonic.
        self.due = 0.0
        self._declarers = {name: Declarer(broker.keys(name), tasks) for name in plan.queues}

    def greet(self, queue: WorkerQueue, link: Link, answered: Callable[[Any], None]) -> None:
        """Greets on a new connection, and has the rest said again."""
        link.send_first(self.hello(queue), answered)
        self._declarers[queue.keys.queue].ring()
        self.due = 0.0

    def hello(self, queue: WorkerQueue) -> Command[int]:
        """The greeting for a new connection, which announces the worker."""
        about = pack_announcement(self._plan, paused=self._paused)
        return commands.hello(queue.keys, self._worker, HOLDS_MS, about)

    def turn(self, queues: Iterable[WorkerQueue], now: float) -> None:
        """Prolongs the announcement when it is time to; where it is gone, says hello again."""
        if now < self.due:
            return
        self.due = now + HEARTBEAT
        for queue in queues:
            if queue.link.connected:
                self._declarers[queue.keys.queue].run(queue.link, now)
                self._make_known(queue)
                prolong = ("PEXPIRE", queue.keys.worker(self._worker), HOLDS_MS)
                queue.link.send(prolong, functools.partial(self._prolonged, queue))

    def paused(self, queues: Iterable[WorkerQueue], paused: bool) -> None:
        """Says that the worker takes no more tasks, or takes them again."""
        self._paused = paused
        event = EventType.WORKER_PAUSED if paused else EventType.WORKER_RESUMED
        for queue in queues:
            queue.link.send(self.hello(queue), ignore_answer)
            queue.link.send(commands.announce(queue.keys, event, self._worker), ignore_answer)

    def withdraw(self, queue: WorkerQueue) -> None:
        """Says goodbye."""
        try:
            self._broker.run(commands.hello(queue.keys, self._worker, 0, b""))
        except BrokerUnavailable as error:
            log.warning("left without a goodbye: %s", error)

    def _make_known(self, queue: WorkerQueue) -> None:
        try:
            self._broker.announce(queue.keys.queue)
        except (BrokerUnavailable, QueueFull) as error:
            log.debug("%s is not on the list of known queues yet: %s", queue.keys.queue, error)

    def _prolonged(self, queue: WorkerQueue, found: int | None) -> None:
        if found:
            return
        # The queue was destroyed, or the server lost it: all is said again.
        queue.link.send(self.hello(queue), ignore_answer)
        self._broker.unannounce(queue.keys.queue)
        self._make_known(queue)
        declarer = self._declarers[queue.keys.queue]
        declarer.ring()
        declarer.run(queue.link, time.monotonic())


def ignore_answer(_answer: object) -> None:
    """For calls whose answer says nothing new."""


def pack_announcement(plan: WorkerPlan, *, paused: bool = False) -> bytes:
    """Where the worker is, what it can do, and whether it does."""
    return pack(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": list(plan.queues),
            "concurrency": plan.concurrency,
            "threads": plan.threads,
            "coroutines": plan.coroutines,
            "beat": plan.beat,
            "paused": paused,
        }
    )
