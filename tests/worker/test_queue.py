"""What one call settles, and what follows when a script fails on it."""

from __future__ import annotations

import pytest

from conveyor.broker.commands import BATCH, BATCH_BYTES
from conveyor.broker.keys import QueueKeys
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.exchanges import Exchange
from conveyor.worker.job import Job
from conveyor.worker.queue import REST, WorkerQueue


def queue_with(count: int, size: int = 0, *, call: bytes = b"") -> WorkerQueue:
    queue = WorkerQueue(0, QueueKeys("space", "queue"), "01020304")
    plan = make_plan({}, Settings(), queue="queue", is_async=False, timezone=None)
    for number in range(count):
        record = Template("a.task", plan.limits, b"").record(call)
        job = Job(number + 1, 0, b"%d" % number, record, 0.0)
        queue.settle(job, "success", bytes(size))
    return queue


def ids(queue: WorkerQueue) -> list[bytes]:
    return [settlement.id for _, settlement in queue.take_batch()]


def test_a_batch_is_bounded_in_number() -> None:
    queue = queue_with(BATCH + 5)
    assert len(ids(queue)) == BATCH
    assert len(ids(queue)) == 5
    assert ids(queue) == []


def test_a_batch_is_bounded_in_bytes_but_takes_one_of_any_size() -> None:
    queue = queue_with(3, size=BATCH_BYTES // 2 + 1)
    assert [len(ids(queue)) for _ in range(3)] == [1, 1, 1]
    assert len(ids(queue_with(2, size=BATCH_BYTES // 2 - 200))) == 2
    assert len(ids(queue_with(1, size=BATCH_BYTES * 2))) == 1
    # A script rewrites the whole record.
    assert len(ids(queue_with(3, call=bytes(BATCH_BYTES // 2 + 1)))) == 1


def test_a_batch_that_a_script_failed_on_is_settled_one_by_one_in_order() -> None:
    queue = queue_with(3)
    queue.take_failure(queue.take_batch(), 10.0)
    assert queue.rests_until == 10.0 + REST
    assert [ids(queue) for _ in range(4)] == [[b"0"], [b"1"], [b"2"], []]
    queue = queue_with(3)
    queue.take_failure(queue.take_batch()[:1], 10.0)
    assert ids(queue) == []


def test_what_came_in_since_follows_in_batches_again() -> None:
    queue = queue_with(2)
    queue.take_failure(queue.take_batch(), 10.0)
    for job, _ in queue_with(3).pending:
        queue.settle(job, "release")
    assert [len(ids(queue)) for _ in range(3)] == [1, 1, 3]


def test_work_that_was_heard_of_during_a_claim_is_not_forgotten() -> None:
    queue = queue_with(0)
    quiet = Exchange(queue, [], {"r": 5, "a": 0}, 0.0, queue.rings)
    queue.note_left(quiet, b"")
    assert queue.has_work == {"r": False, "a": True}
    during = Exchange(queue, [], {"r": 5, "a": 5}, 0.0, queue.rings)
    queue.expect_work("r")
    queue.note_left(during, b"")
    assert queue.has_work["r"]


@pytest.mark.parametrize(
    ("outcome", "delay_ms", "looked_for"),
    [
        ("stall", 0, True),
        ("error", 0, True),
        ("timeout", 0, True),
        ("interrupted", 0, True),
        ("error", 1000, False),
        ("success", 0, False),
        ("fatal", 0, False),
    ],
)
def test_what_may_be_queued_again_at_once_is_looked_for(
    outcome: str, delay_ms: int, looked_for: bool
) -> None:
    queue = queue_with(1)
    job, _ = queue.take_batch()[0]
    queue.settle(job, outcome, b"", delay_ms)
    queue.note_left(Exchange(queue, queue.take_batch(), {"r": 1, "a": 1}, 0.0, queue.rings), b"")
    assert any(queue.has_work.values()) is looked_for
