"""Which children are given what; children without processes."""

from __future__ import annotations

import selectors
from collections import deque
from contextlib import closing

from conveyor import Conveyor
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.child import Work
from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.pool import Pool
from conveyor.worker.process import Child
from conveyor.worker.slots import Slots


class Idle(Child):
    """A child that nobody runs."""

    def __init__(self) -> None:
        super().__init__(Slots(1, 1), 1, 0, 0)

    def close(self) -> None:
        self.small_far.close()
        self.large_far.close()
        super().close()


def job(sequence: int) -> Job:
    plan = make_plan({}, Settings(), queue="q", is_async=False, timezone=None)
    return Job(sequence, 0, b"id", Template("a.task", plan.limits, b"").record(b""), 0.0)


def make_pool(selector: selectors.BaseSelector, size: int) -> Pool:
    app = Conveyor("pool", broker="redis://localhost:1")
    return Pool(
        Work({}, app.client, ["q"], 1, 0),
        size,
        selector,
        lambda _outcomes: None,
        lambda _death: None,
        lambda: [],
        max_tasks=float("inf"),
        max_memory=float("inf"),
    )


def test_the_last_run_of_a_replaced_child_keeps_its_slot_among_several() -> None:
    with selectors.DefaultSelector() as selector, closing(Idle()) as old:
        pool = make_pool(selector, 2)
        with closing(Idle()) as first, closing(Idle()) as second:
            pool.children += [old, first, second]
            old.lanes[SYNC].inflight[1] = job(1)
            old.retiring = True
            jobs = deque([job(2), job(3)])
            pool.send(SYNC, jobs, short=True)
            assert [one.sequence for one in jobs] == [3]
            assert first.busy() + second.busy() == 1
            assert (pool.room(SYNC), pool.room(ASYNC)) == (0, 0)
