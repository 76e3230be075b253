"""The parent grants lent slots, and forgets what died."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

import pytest
from servers import wait_until

from conveyor import Conveyor
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.child import Work
from conveyor.worker.frames import Pause, receive_grants
from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.lending import Lending, most_extra
from conveyor.worker.process import Child
from conveyor.worker.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conveyor.worker.process import Lane

SOON = 20.0


class Family:
    """Children without processes, and who lends their slots."""

    def __init__(self, coroutines: int) -> None:
        app = Conveyor("family", broker="redis://localhost:1")
        work = Work({}, app.client, ["q"], 1, coroutines)
        self.coroutines = coroutines
        self.given: list[Job] = []
        self.has_room = False
        self.children: list[Child] = []
        self.lending = Lending(
            work,
            1,
            self.children,
            spawn=lambda: None,
            give=self._give,
            has_room=lambda _child, _name, _ahead: self.has_room,
        )
        self._sequence = 0

    def add(self) -> Child:
        child = Child(Slots(1 + self.coroutines, 1), 1, self.coroutines, self.coroutines)
        self.children.append(child)
        return child

    def run(self, child: Child, name: str) -> int:
        """A run that a child has begun."""
        job = self.job(name)
        child.lanes[name].inflight[job.sequence] = job
        return job.sequence

    def job(self, name: str) -> Job:
        self._sequence += 1
        plan = make_plan({}, Settings(), queue="q", is_async=name == ASYNC, timezone=None)
        record = Template("a.task", plan.limits, b"").record(b"")
        job = Job(self._sequence, 0, b"id", record, 0.0)
        job.lane = name
        return job

    def _give(self, _child: Child, _lane: Lane, job: Job) -> bool:
        self.given.append(job)
        return True

    def close(self) -> None:
        for child in self.children:
            child.small_far.close()
            child.large_far.close()
            child.close()


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    family = Family(getattr(request, "param", 1))
    with contextlib.closing(family):
        yield family


@pytest.mark.parametrize("family", [10_000], indirect=True)
def test_any_number_of_runs_is_granted_at_once(family: Family) -> None:
    child = family.add()
    runs = [family.run(child, ASYNC) for _ in range(10_000)]
    family.lending.note(child, [(run, Pause.WAITS) for run in runs])
    family.lending.note(child, [(run, Pause.ASKS) for run in runs])
    family.lending.grant(ASYNC)
    assert not child.lanes[ASYNC].lent
    heard: list[int] = []
    while len(heard) < len(runs):
        heard += receive_grants(child.small_far)
    assert heard == runs


def test_what_is_said_again_after_a_stop_counts_once(family: Family) -> None:
    child, lending = family.add(), family.lending
    run = family.run(child, SYNC)
    lending.note(child, [(run, Pause.WAITS), (run, Pause.ASKS)])
    lending.note(child, [(run, Pause.ASKS)])
    lending.grant(SYNC)
    family.has_room = True
    ahead = family.job(SYNC)
    lending.send(SYNC, deque([ahead]), 1)
    assert family.given == [ahead]  # which it is not while anything asks for its slot


def test_a_branch_ends_with_the_child_that_it_was_in(family: Family) -> None:
    lending = family.lending
    waiting = [family.add() for _ in range(most_extra(1) // 2)]
    for child in waiting:
        lending.note(child, [(family.run(child, SYNC), Pause.WAITS)])
    dead = family.add()
    run = family.run(dead, SYNC)
    lending.note(dead, [(run, Pause.WAITS)])
    lending.note(dead, [(run, Pause.ASKS)])
    lending.grant(SYNC)
    assert lending.room(SYNC, []) == 0  # it computes
    family.children.remove(dead)
    lending.forget(dead)
    try:
        wait_until(lambda: lending.room(SYNC, []) == 1, "another branch goes on", seconds=SOON)
    finally:
        family.children.append(dead)
