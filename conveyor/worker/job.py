"""A claimed task as the parent holds it, from the claim to its outcome."""

from __future__ import annotations

import time

from conveyor.escaping import escaped
from conveyor.records import LEASE
from conveyor.worker.frames import JobFrame

SYNC, ASYNC = "r", "a"

#: Stalls after which a task runs alone in a child, so that the next death names the guilty one.
SUSPECT_STALLS = 2


class Job:
    """One lease.

    Attributes:
        sequence: Its number in this worker, from 1.
        queue: Number of its queue in this worker.
        id: The task's.
        token: The lease's.
        record: As claimed.
        name: The task type.
        lane: "r" or "a": which kind of task it is here.
        claimed_at: Before the claim was sent, monotonic: the lease holds at least from then.
        taken_at: When the claim's answer was read, monotonic.
        sent_at: When a child was given it, monotonic; 0 while none has it.
        acknowledge_ms: How often the lease is renewed.
        suspect: Whether it must run alone.
        stop: Why it was asked to stop, or 0.
    """

    __slots__ = (
        "_started", "acknowledge_ms", "claimed_at", "id", "lane", "name", "queue", "record",
        "sent_at", "sequence", "stop", "suspect", "taken_at", "token",
    )  # fmt: skip

    def __init__(
        self, sequence: int, queue: int, task_id: bytes, record: bytes, claimed_at: float
    ) -> None:
        self.token, self._started, stalls, _, self.acknowledge_ms, length = LEASE.unpack_from(
            record
        )
        self.name = record[LEASE.size + 4 : LEASE.size + 4 + length]
        self.sequence = sequence
        self.queue = queue
        self.id = task_id
        self.record = record
        self.lane = SYNC
        self.claimed_at = claimed_at
        self.taken_at = time.monotonic()
        self.sent_at = 0.0
        self.suspect = stalls >= SUSPECT_STALLS
        self.stop = 0

    @property
    def started_ms(self) -> int:
        """When it was claimed, by the server's clock."""
        return int.from_bytes(self._started, "little")

    def frame(self) -> JobFrame:
        """What a child is sent."""
        return JobFrame(
            self.sequence, self.queue, self.id, self.record, self.claimed_at, self.taken_at
        )

    def __str__(self) -> str:
        """The name and the start of the id, as logs have it."""
        text = f"{self.name.decode(errors='replace')}[{self.id.decode(errors='replace')[:8]}]"
        return escaped(text)
