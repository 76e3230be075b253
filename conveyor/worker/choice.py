"""Which queue a worker claims from next: the first with work, or the one that is behind its weight.

With weights each queue has a time of its own, which a claim moves on by what it claimed over the
weight; the one whose time is the least is next. One that had no work has saved up nothing: its time
goes on from the lane's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from conveyor.worker.queue import WorkerQueue


#: Tasks claimed at once from the queue with the least weight at least, while others have work.
TURN: Final = 4


class Choice:
    """The choice of one worker.

    Args:
        weights: By number of the queue, or None for strict order.
    """

    def __init__(self, weights: Sequence[int] | None) -> None:
        self._weights = weights
        self._times: dict[tuple[str, int], float] = defaultdict(float)
        self._now: dict[str, float] = defaultdict(float)

    def choose(
        self, queues: Sequence[WorkerQueue], lane: str, passed_over: Container[int] = ()
    ) -> WorkerQueue | None:
        """The queue to claim from, of those given, or None when none has work for the lane.

        Args:
            queues: All that might be.
            lane: What to claim.
            passed_over: Numbers of queues that are not.
        """
        now = time.monotonic()
        with_work = [
            queue
            for queue in queues
            if queue.has_work[lane] and now >= queue.rests_until and queue.index not in passed_over
        ]
        if not with_work or self._weights is None:
            return next(iter(with_work), None)
        return min(with_work, key=lambda queue: self._time(lane, queue))

    def most(self, queues: Sequence[WorkerQueue], lane: str, queue: WorkerQueue, want: int) -> int:
        """How many to claim from it at once: half its share, where others have one as well."""
        shared = any(other.has_work[lane] for other in queues if other is not queue)
        if self._weights is None or not shared:
            return want
        weight = self._weights[queue.index]
        least, half = TURN * weight // min(self._weights), want * weight // sum(self._weights) // 2
        return min(want, max(least, half))

    def claim(self, lane: str, queue: WorkerQueue, count: int) -> None:
        """So many are being claimed from a queue, which moves the time of its lane to its own."""
        if self._weights is not None:
            self._now[lane] = self._time(lane, queue)
            self._times[lane, queue.index] = self._now[lane] + count / self._weights[queue.index]

    def missed(self, lane: str, queue: WorkerQueue, count: int) -> None:
        """So many of those were not there."""
        if self._weights is not None:
            self._times[lane, queue.index] -= count / self._weights[queue.index]

    def _time(self, lane: str, queue: WorkerQueue) -> float:
        return max(self._times[lane, queue.index], self._now[lane])
