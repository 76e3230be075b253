"""The leases a worker holds, and when each is renewed.

Leases of one acknowledgement interval come due in the order they were taken or renewed, so the
first of each interval tells whether any is due: finding them costs nothing while none is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conveyor.broker.commands import GONE_MAIL

if TYPE_CHECKING:
    from conveyor.worker.job import Job


class Leases:
    """What the parent has claimed and not settled."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._due: dict[int, dict[int, float]] = {}

    def __len__(self) -> int:
        """How many are held."""
        return len(self._jobs)

    def add(self, job: Job, now: float) -> None:
        """Takes a lease."""
        self._jobs[job.sequence] = job
        self._due.setdefault(job.acknowledge_ms, {})[job.sequence] = now + job.acknowledge_ms / 1000

    def drop(self, job: Job) -> bool:
        """Forgets a lease that was settled or lost; False when it was not held."""
        if self._jobs.pop(job.sequence, None) is None:
            return False
        line = self._due.get(job.acknowledge_ms)
        if line is not None:
            line.pop(job.sequence, None)
            if not line:
                del self._due[job.acknowledge_ms]
        return True

    def to_stop(self, queue: int, mail: bytes) -> list[Job]:
        """Those that a message in a mailbox is about: one run, or all begun before a moment."""
        jobs = [job for job in self._jobs.values() if job.queue == queue]
        if mail[:-6] == GONE_MAIL:
            gone_ms = int.from_bytes(mail[-6:], "little")
            return [job for job in jobs if job.started_ms < gone_ms]
        return [job for job in jobs if job.token + job.id == mail]

    def next_due(self) -> float | None:
        """When the first is due to be renewed, monotonic."""
        return min((next(iter(line.values())) for line in self._due.values()), default=None)

    def take_due(self, now: float, limit: int) -> list[Job]:
        """Leases to renew now, of one queue; each is next due an interval from now."""
        taken: list[Job] = []
        for interval, line in self._due.items():
            for sequence, due in list(line.items()):
                job = self._jobs[sequence]
                if due > now or len(taken) >= limit:
                    break
                if taken and job.queue != taken[0].queue:
                    continue
                taken.append(job)
                del line[sequence]
                line[sequence] = now + interval / 1000
        return taken

    def make_all_due(self, now: float) -> None:
        """Has every lease renewed at the next opportunity: the server was away."""
        for line in self._due.values():
            for sequence in line:
                line[sequence] = now
