"""What a worker's parent holds: every lease, what of it waits for a child, and how it is let go."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.worker.queue import WorkerQueue

log = logging.getLogger("conveyor.worker")


class Holdings:
    """Leases, and the jobs that no child has been given yet, by lane.

    Args:
        queues: The worker's, by number.
        lanes: Of the tasks it knows, by name.
    """

    def __init__(self, queues: Sequence[WorkerQueue], lanes: Mapping[bytes, str]) -> None:
        self.leases = Leases()
        self.waiting: dict[str, deque[Job]] = {SYNC: deque(), ASYNC: deque()}
        self.bytes = 0
        self._queues = queues
        self._lanes = lanes
        self._sequence = 0

    def take(self, queue: WorkerQueue, task_id: bytes, record: bytes, sent_at: float) -> str:
        """Takes a claimed task, or parks one that nothing here can run; returns its lane."""
        self._sequence += 1
        job = Job(self._sequence, queue.index, task_id, record, sent_at)
        self.leases.add(job, sent_at)
        self.bytes += len(record)
        lane = self._lanes.get(job.name)
        if lane is None:
            name = job.name.decode(errors="replace")
            log.warning("no task is named %r here: %s is parked until a worker knows it", name, job)
            self.settle(job, "park", f"this worker does not know {name}".encode())
            return job.lane
        job.lane = lane
        self.waiting[lane].append(job)
        return lane

    def settle(self, job: Job, outcome: str, data: bytes = b"", delay_ms: int = 0) -> None:
        """Has a lease ended with its queue's next call; a lost one is refused there."""
        self._let_go(job)
        self._queues[job.queue].settle(job, outcome, data, delay_ms)

    def lose(self, job: Job) -> None:
        """Another run may be under way: what has not begun here must not begin."""
        log.warning("the lease of %s was lost", job)
        self._let_go(job)
        self.withdraw(job)

    def withdraw(self, job: Job) -> bool:
        """Takes a job from those that wait for a child; False when it is not among them."""
        if job not in self.waiting[job.lane]:
            return False
        self.waiting[job.lane].remove(job)
        return True

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Has jobs wait again, before the others, the first claimed first."""
        for job in _last_first(jobs):
            job.sent_at = 0.0
            self.waiting[job.lane].appendleft(job)

    def release(self, lane: str) -> None:
        """Gives back what waits, so that the first claimed is the first to be claimed again."""
        jobs = _last_first(self.waiting[lane])
        self.waiting[lane].clear()
        for job in jobs:
            self.settle(job, "release")

    def _let_go(self, job: Job) -> None:
        if self.leases.drop(job):
            self.bytes -= len(job.record)


def _last_first(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: -job.sequence)
