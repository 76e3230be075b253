"""One queue as a worker sees it: what may lie there, and what is to settle."""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, BATCH_BYTES, Limited, Settlement
from conveyor.orchestrator import Clock
from conveyor.worker.job import ASYNC, SYNC, Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.broker.commands import Unparked
    from conveyor.broker.keys import QueueKeys
    from conveyor.broker.link import Link
    from conveyor.worker.exchanges import Exchange

#: Seconds without claims after a script has failed.
REST: Final = 1.0
#: Outcomes after which a task may be queued again at once.
_AGAIN: Final = ("error", "timeout", "stall", "interrupted")


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
        self._parked: dict[str, int] = {}
        self._releasing: set[str] = set()
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
                self._releasing.discard(lane)
                self.has_work[lane] = lane.encode() in left or self.rings != exchange.rings
        if any(each.outcome in _AGAIN and not each.delay_ms for _, each in exchange.batch):
            self.expect_work()

    def unpark(self, names: Iterable[bytes], start: int = 0) -> None:
        """Has all that is parked under these names released."""

        def go_on(answer: Unparked | None) -> None:
            self.expect_work()
            if answer is not None and answer.following >= 0:
                self.unpark(names, answer.following)

        self.link.send(commands.unpark(self.keys, start, _texts(names)), go_on)

    def look_for_parked(self) -> None:
        """Has `unpark_some` look: what another worker parked may be known here."""
        for lane in (SYNC, ASYNC):
            # A search under way comes to what is new last.
            self._parked.setdefault(lane, 0)

    def unpark_some(self, names: Iterable[bytes], wants: Mapping[str, int]) -> None:
        """Has as many released as are wanted of each lane, and no more before the next claim.

        What this worker did not claim at once would be parked again by those who do not know it.
        """
        for lane in [lane for lane in self._parked if wants[lane] and lane not in self._releasing]:
            self._releasing.add(lane)
            start, most = self._parked.pop(lane), wants[lane]
            command = commands.unpark(self.keys, start, _texts(names), most=most, lane=lane)
            self.link.send(command, functools.partial(self._unparked, lane))

    def _unparked(self, lane: str, answer: Unparked | None) -> None:
        if answer is not None and answer.following >= 0:
            self._parked[lane] = answer.following
        if answer is not None and answer.released:
            self.expect_work()
        else:
            self._releasing.discard(lane)

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
        self.expect_work()
        if len(batch) > 1:
            self.pending.extendleft(reversed(batch))
            self._one_by_one = len(batch)

    def rest_ends(self) -> float | None:
        """When it may be claimed from again after such a failure, monotonic; None: now."""
        return self.rests_until if time.monotonic() < self.rests_until else None


def unheard(queues: Sequence[WorkerQueue], lane: str, now: float) -> int:
    """How many tasks were claimed from servers that do not answer: others may have some."""
    return sum(queue.asked.get(lane, 0) for queue in queues if not queue.link.is_prompt(now))


def _texts(names: Iterable[bytes]) -> list[str]:
    return [name.decode() for name in names]
