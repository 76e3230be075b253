"""One queue as a worker sees it: what may lie there, what is to settle, how to hear of more."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, BATCH_BYTES, Limited, Settlement
from conveyor.orchestrator import BLOCK, Clock
from conveyor.worker.job import ASYNC, SYNC, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from conveyor.broker.commands import Command, Settled
    from conveyor.broker.keys import QueueKeys
    from conveyor.broker.link import Link
    from conveyor.settings import Settings

#: Seconds without claims after a script has failed.
REST: Final = 1.0
#: Outcomes after which a task may be queued again at once.
_AGAIN: Final = ("error", "timeout", "stall", "interrupted")
#: Seconds that a bell is left alone while the worker is claiming anyway.
QUIET: Final = 0.05
#: Calls in a row that find a bell not blocked, after which it is on the wrong server.
MOST_CALLS: Final = 20


class WorkerQueue:
    """A queue's state in one worker.

    Args:
        index: Its number in frames.
        keys: Its keys.
        mailbox: The worker's id in hex.
    """

    def __init__(self, index: int, keys: QueueKeys, mailbox: str) -> None:
        self.index = index
        self.keys = keys
        self.mailbox = keys.marker(mailbox)
        self.clock = Clock(keys, self.expect_work)
        self.has_work = {SYNC: True, ASYNC: True}
        self.limited = self.held_back = False
        self.rings = 0
        self.calls = 0
        self.asked: Mapping[str, int] = {}
        self.pending: deque[tuple[Job, Settlement]] = deque()
        self.rests_until = 0.0
        self._one_by_one = 0
        self.link: Link

    def expect_work(self, *lanes: str) -> None:
        """Has lanes claim again: both, or those given."""
        self.rings += 1
        self.has_work.update(dict.fromkeys(lanes or (SYNC, ASYNC), True))

    def has_any_work(self) -> bool:
        """Whether it may have, now or once its rate limit allows."""
        return self.held_back or any(self.has_work.values())

    def note_left(self, exchange: Exchange, left: bytes, limited: int = Limited.NO) -> None:
        """Takes note of where work is left; what was heard of since the call may be newer.

        What the call settled may be queued again, which a worker that ends with its work must see.
        """
        self.limited = limited != Limited.NO
        if any(exchange.asked.values()):
            self.held_back = limited == Limited.HOLDS_BACK
        for lane, want in exchange.asked.items():
            if want:
                self.has_work[lane] = lane.encode() in left or self.rings != exchange.rings
        if any(each.outcome in _AGAIN and not each.delay_ms for _, each in exchange.batch):
            self.expect_work()

    def unpark(self, names: Iterable[bytes], start: int = 0) -> None:
        """Has what is parked under these names released."""

        def go_on(following: int | None) -> None:
            self.expect_work()
            if following is not None and following >= 0:
                self.unpark(names, following)

        known = [name.decode() for name in names]
        self.link.send(commands.unpark(self.keys, start, known), go_on)

    def settle(self, job: Job, outcome: str, data: bytes = b"", delay_ms: int = 0) -> None:
        """Has a lease ended with the next call."""
        self.pending.append((job, Settlement(job.id, job.token, outcome, data, delay_ms)))

    def take_batch(self) -> list[tuple[Job, Settlement]]:
        """What the next call settles: bounded in number and bytes."""
        batch: list[tuple[Job, Settlement]] = []
        size = 0
        most = 1 if self._one_by_one else BATCH
        self._one_by_one = max(0, self._one_by_one - 1)
        while self.pending and len(batch) < most:
            job, settlement = self.pending[0]
            size += len(job.record) + len(settlement.data)
            if batch and size > BATCH_BYTES:
                break
            batch.append(self.pending.popleft())
        return batch

    def take_failure(self, batch: Sequence[tuple[Job, Settlement]], now: float) -> None:
        """A script failed on some record: settles one by one, so that only its task is left.

        That one's lease then runs out. Claims rest for a moment, lest they fail in a tight loop.
        """
        self.rests_until = now + REST
        if len(batch) > 1:
            self.pending.extendleft(reversed(batch))
            self._one_by_one = len(batch)

    def rest_ends(self) -> float | None:
        """When it may be claimed from again after such a failure, monotonic; None: now."""
        return self.rests_until if time.monotonic() < self.rests_until else None


def unheard(queues: Sequence[WorkerQueue], lane: str, now: float) -> int:
    """How many tasks were claimed from servers that do not answer: others may have some."""
    return sum(queue.asked.get(lane, 0) for queue in queues if not queue.link.is_prompt(now))


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


class Bell:
    """Blocks until there is work, something comes due, or a run is to be stopped.

    It blocks on the markers of lanes that want work and are known to be empty; while the worker is
    claiming anyway it stays quiet, and when a lane comes to want work it is called back to listen
    to that as well. A worker that holds nothing listens for all that it wants: what has woken it is
    mostly all there is, and then this call is not in the way once the task runs.

    Args:
        queues: Those it can hear: all of them, or one on a cluster.
        beat: Whether to hear what comes due.
        heard: Called with the queue and "r" or "a" (work) or the id of a task to stop.
    """

    def __init__(
        self,
        queues: Sequence[WorkerQueue],
        *,
        beat: bool,
        heard: Callable[[WorkerQueue, str, bytes], None],
    ) -> None:
        self._queues = queues
        self._beat = beat
        self._heard = heard
        self._client_id: int | None = None
        self._keys: tuple[str, ...] = ()
        self._called_back = False
        self._futile_calls = 0
        self._quiet_since = 0.0
        self._meaning: dict[str, tuple[WorkerQueue, str]] = {}
        for queue in queues:
            self._meaning[queue.mailbox] = (queue, "stop")
            for lane in (SYNC, ASYNC):
                self._meaning[queue.keys.marker(lane)] = (queue, lane)
            self._meaning[queue.keys.marker("o")] = (queue, "due")
        self.link: Link

    def greet(self, link: Link) -> None:
        """Learns the name of a new connection, by which it can be called back.

        The one before may have died with a marker that it had popped.
        """
        for queue in self._queues:
            queue.expect_work()
            queue.clock.ring()
        self._client_id = None
        self._keys = ()
        link.send_first(("CLIENT", "ID"), self._learn)

    def listen(self, wanted: dict[str, bool], now: float, *, holds_nothing: bool) -> None:
        """Listens for what is wanted now: lanes that have room."""
        keys = [queue.mailbox for queue in self._queues]
        if self._beat:
            keys += [queue.keys.marker("o") for queue in self._queues]
        claiming = False
        for lane, want in wanted.items():
            for queue in self._queues:
                if want and queue.has_work[lane] and not holds_nothing:
                    claiming = True
                elif want:
                    keys.append(queue.keys.marker(lane))
        if self._keys:
            self._call_back_if_deaf(keys)
        elif self._client_id is not None and not (claiming and now < self._quiet_since + QUIET):
            self._block(tuple(keys))

    def _block(self, keys: tuple[str, ...]) -> None:
        self._keys = keys
        self._called_back = False
        self._futile_calls = 0
        self.link.send(("BZPOPMIN", *keys, BLOCK), self._woken)

    def _call_back_if_deaf(self, keys: list[str]) -> None:
        if not self._called_back and not set(keys) <= set(self._keys):
            self._called_back = True
            self._queues[0].link.send(("CLIENT", "UNBLOCK", self._client_id), self._was_called)

    def _was_called(self, unblocked: int | None) -> None:
        """The call may overtake the one it is to end, on the other connection: then once more.

        If that does not help, the bell hangs on a server that is gone or no longer the primary.
        """
        if unblocked == 0:
            self._futile_calls += 1
            self._called_back = self._futile_calls >= MOST_CALLS
            if self._called_back:
                self.link.renew()

    def _woken(self, popped: list[Any] | None) -> None:
        self._keys = ()
        self._quiet_since = time.monotonic()
        if not popped:
            if not self._beat and not self._called_back:
                self._look_for_work()
            return
        queue, meaning = self._meaning[popped[0].decode()]
        if meaning == "due":
            queue.clock.ring()
        else:
            self._heard(queue, meaning, popped[1])

    def _look_for_work(self) -> None:
        """Where there may be no orchestrator, only a claim moves what has come due."""
        for queue in self._queues:
            queue.expect_work()

    def _learn(self, client_id: int | None) -> None:
        self._client_id = client_id
