"""Which children are given what; children without processes."""

from __future__ import annotations

import errno
import os
import selectors
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING

from conveyor import Conveyor
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.child import Work
from conveyor.worker.job import ASYNC, SYNC, Job
from conveyor.worker.pool import DEAF_PAUSE, Pool
from conveyor.worker.process import Child
from conveyor.worker.slots import Slots

if TYPE_CHECKING:
    import pytest


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


def make_pool(
    selector: selectors.BaseSelector, size: int, *, max_tasks: float = float("inf")
) -> Pool:
    app = Conveyor("pool", broker="redis://localhost:1")
    return Pool(
        Work({}, app.client, ["q"], 1, 0),
        size,
        selector,
        lambda _outcomes: None,
        lambda _death: None,
        lambda: [],
        max_tasks=max_tasks,
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


def test_a_child_that_has_not_begun_its_last_run_is_not_replaced_yet() -> None:
    with selectors.DefaultSelector() as selector, closing(Idle()) as child:
        pool = make_pool(selector, 1, max_tasks=1)
        pool.children.append(child)
        pool.send(SYNC, deque([job(1)]), short=False)
        pool.tick(time.monotonic())
        assert not child.retiring
        assert pool.room(SYNC) is None
        child.slots.begin(0, 1, 0.0)
        pool.shrink()
        pool.tick(time.monotonic())
        assert child.retiring


def test_a_retiring_child_whose_last_run_is_taken_back_is_let_go() -> None:
    with selectors.DefaultSelector() as selector, closing(Idle()) as child:
        pool = make_pool(selector, 0)
        pool.children.append(child)
        pool.send(SYNC, deque([job(1)]), short=False)
        pool.shrink()
        assert child.lanes[SYNC].near.fileno() >= 0
        assert [one.sequence for one in pool.take_back(time.monotonic(), everything=True)] == [1]
        assert child.lanes[SYNC].near.fileno() < 0


def test_what_cannot_be_sent_for_want_of_descriptors_is_sent_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with selectors.DefaultSelector() as selector, closing(Idle()) as child:
        pool = make_pool(selector, 1)
        pool.children.append(child)
        jobs = deque([job(1)])
        with monkeypatch.context() as patch:
            patch.setattr("conveyor.worker.pool.send_job", full)
            pool.send(SYNC, jobs, short=False)
        assert (len(jobs), child.busy(), pool.room(SYNC)) == (1, 0, None)
        pool.fill(time.monotonic() + DEAF_PAUSE)
        pool.send(SYNC, jobs, short=False)
        assert child.busy() == 1


def test_a_child_whose_end_somebody_else_was_told_of_is_gone() -> None:
    with closing(Idle()) as child:
        child.pid = os.fork()
        if child.pid == 0:
            os._exit(3)
        os.waitpid(child.pid, 0)
        assert "SIGCHLD" in child.death(child.wait()).reason


def test_a_kernel_without_pidfd_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing, raising=False)
    with closing(Idle()) as child:
        child.open_pidfd()
        assert child.pidfd == -1
