"""Which queue is claimed from next."""

from __future__ import annotations

from collections import Counter

from conveyor.broker.keys import QueueKeys
from conveyor.worker.choice import Choice
from conveyor.worker.job import SYNC
from conveyor.worker.queue import WorkerQueue


def queues(*names: str) -> list[WorkerQueue]:
    """Queues that have work."""
    found = [WorkerQueue(i, QueueKeys("app", name), "worker") for i, name in enumerate(names)]
    for queue in found:
        queue.has_work[SYNC] = True
    return found


def claims(choice: Choice, among: list[WorkerQueue], counts: list[int]) -> Counter[int]:
    """How many were claimed from each queue, in claims of these sizes."""
    claimed: Counter[int] = Counter()
    for count in counts:
        queue = choice.choose(among, SYNC)
        assert queue is not None
        choice.claim(SYNC, queue, count)
        claimed[queue.index] += count
    return claimed


def test_without_weights_it_is_the_first_with_work() -> None:
    high, low = both = queues("high", "low")
    choice = Choice(None)
    assert claims(choice, both, [1] * 10) == {0: 10}
    high.has_work[SYNC] = False
    assert choice.choose(both, SYNC) is low


def test_with_weights_each_gets_its_share_of_every_few_claims() -> None:
    choice = Choice([3, 1])
    both = queues("high", "low")
    for _ in range(5):
        assert claims(choice, both, [1] * 4) == {0: 3, 1: 1}


def test_it_is_tasks_that_are_shared_not_claims_of_any_size() -> None:
    claimed = claims(Choice([3, 1]), queues("high", "low"), [1, 50, 7, 200, 31, 13] * 30)
    assert abs(claimed[0] - 3 * claimed[1]) <= 4 * 200


def test_what_was_not_there_is_not_counted() -> None:
    choice = Choice([1, 1])
    high, low = both = queues("high", "low")
    choice.claim(SYNC, high, 200)
    choice.missed(SYNC, high, 199)
    assert claims(choice, both, [1] * 3) == {0: 1, 1: 2}
    assert low.has_work[SYNC]


def test_a_queue_without_work_saves_nothing_up() -> None:
    choice = Choice([1, 1])
    high, low = both = queues("high", "low")
    low.has_work[SYNC] = False
    claims(choice, both, [1] * 1000)
    low.has_work[SYNC] = True
    assert claims(choice, both, [1] * 10) == {0: 5, 1: 5}
    assert high.has_work[SYNC]
