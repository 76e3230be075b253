"""Which queue a worker claims from next: the first with work, or one drawn by weight."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from conveyor.worker.queue import WorkerQueue


class Choice:
    """The choice of one worker.

    What was drawn stays so until it has claimed: drawn anew in every call that only settles, the
    queue that is settled would be drawn too often.

    Args:
        weights: By number of the queue, or None for strict order.
    """

    def __init__(self, weights: Sequence[int] | None) -> None:
        self._weights = weights
        self._drawn: dict[str, WorkerQueue] = {}

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
        if self._drawn.get(lane) not in with_work:
            weights = [self._weights[queue.index] for queue in with_work]
            self._drawn[lane] = random.choices(with_work, weights)[0]
        return self._drawn[lane]

    def claimed(self, lane: str) -> None:
        """What was drawn has claimed: the next choice draws anew."""
        self._drawn.pop(lane, None)
