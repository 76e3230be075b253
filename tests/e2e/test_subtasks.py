"""Tasks that wait for others lend their slots: nothing deadlocks, and no more compute than may."""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from family import Family
from faults.history import History
from faults.lab import TESTS, Gate
from servers import wait_until
from workers import RunningWorker

from conveyor import Conveyor, TaskCancelled, TaskFailed, TaskResult, TaskStatus
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server

#: Seconds after which what should happen is taken not to.
LONG = 50.0
#: A queue that no worker serves.
NOWHERE = "nowhere"

_numbers = count(1)


class Home:
    """A namespace with its tasks, their history, and workers."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.app = Conveyor(f"family-{os.getpid()}-{next(_numbers)}", broker=url)
        self.tasks = Family(self.app)
        self.history = History(directory)

    def worker(self, *args: str) -> RunningWorker:
        env = {
            "CONVEYOR_BROKER": self.url,
            "TEST_NAMESPACE": self.app.name,
            "TEST_HISTORY": str(self.directory),
        }
        return RunningWorker("e2e.family", TESTS, *args, env=env)

    def gate(self) -> Gate:
        return Gate(self.directory / f"gate-{next(_numbers)}")

    def unserved(self) -> TaskResult[Any]:
        """A task that waits until somebody serves its queue."""
        return self.tasks.tree.options(queue=NOWHERE).delay(0, 0)

    def most_at_once(self, kind: str) -> int:
        """How many runs of a kind computed at once, at most."""
        most = now = 0
        for event in self.history.read("on", "off"):
            if event.about[0] == kind:
                now += 1 if event.name == "on" else -1
                most = max(most, now)
        return most

    def wait_until_waiting(self, *results: TaskResult[Any]) -> None:
        """Until each run waits for another task, or has ended."""
        wait_until(
            lambda: all(self.history.count("off", task_id=one.id) for one in results),
            "they wait",
            seconds=LONG,
        )

    def warm_up(self) -> None:
        """Has the child wait once, so that later waits start no threads there."""
        assert self.tasks.tree.delay(1, 1).wait(LONG) == 2
        assert self.tasks.parent.delay(1).wait(LONG) == 1

    def queued(self) -> int:
        broker = self.app.client.broker
        return broker.run(commands.status(broker.keys("default"))).queued


@pytest.fixture
def home(server: Server, tmp_path: Path) -> Iterator[Home]:
    home = Home(server.url, tmp_path)
    with home.app:
        yield home


def test_a_thousand_coroutines_wait_beside_ten_slots(home: Home) -> None:
    parents = home.tasks.parent.map([(number,) for number in range(1000)])
    with home.worker("-c", "1", "--coroutines", "10") as worker:
        assert [one.wait(LONG) for one in parents] == list(range(1000))
        assert len(worker.children()) == 1
    assert home.most_at_once("async") <= 10


def test_a_sync_tree_deeper_than_the_concurrency_ends(home: Home) -> None:
    with home.worker("-c", "2") as worker:
        assert home.tasks.tree.delay(6, 2).wait(LONG) == 127
        most = len({event.process for event in home.history.read("on")})
        assert 2 < most <= 66
        wait_until(lambda: len(worker.children()) == 2, "extra children are gone", seconds=LONG)
    assert home.most_at_once("sync") <= 2


def test_a_sync_chain_of_thirty_ends_on_one_child(home: Home) -> None:
    with home.worker("-c", "1"):
        assert home.tasks.tree.delay(30, 1).wait(LONG) == 31
    assert home.most_at_once("sync") == 1


@pytest.mark.parametrize("name", ["tree", "odd"])
def test_more_sync_parents_than_there_may_be_children(home: Home, name: str) -> None:
    arguments = (1, 1) if name == "tree" else (1,)
    parents = getattr(home.tasks, name).map([arguments] * 200)
    with home.worker("-c", "1") as worker:
        assert {one.wait(LONG) for one in parents} == {2 if name == "tree" else 3}
        assert "runs wait for other tasks" not in worker.output
    assert home.most_at_once("sync") == 1
    assert len({event.process for event in home.history.read("on")}) < 50


def test_the_number_of_runs_that_wait_is_bounded(home: Home) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1") as worker:
        waiting = home.tasks.expect.map([(unserved.id, NOWHERE)] * 60)
        worker.wait_for("only what they wait for begins now")
        assert home.history.count("start") == 32
        with home.worker("-c", "1", "-Q", NOWHERE):
            assert all(one.wait(LONG) for one in waiting)
        assert home.tasks.tree.delay(1, 1).wait(LONG) == 2


def test_what_runs_wait_for_is_found_in_a_later_queue(home: Home) -> None:
    parents = home.tasks.tree.options(queue="high").map([(1, 1)] * 60)
    with home.worker("-c", "1", "-Q", "high,default"):
        assert {one.wait(LONG) for one in parents} == {2}


@pytest.mark.parametrize("task", ["odd", "even"])
def test_sync_and_async_tasks_wait_for_each_other(home: Home, task: str) -> None:
    with home.worker("-c", "1", "--coroutines", "1"):
        assert getattr(home.tasks, task).delay(5).wait(LONG) == 63
    assert home.most_at_once("sync") == 1
    assert home.most_at_once("async") <= 1


def test_an_async_tree_that_gathers_ends_on_one_slot(home: Home) -> None:
    with home.worker("-c", "1", "--coroutines", "1"):
        assert home.tasks.atree.delay(5, 3).wait(LONG) == 364
    assert home.most_at_once("async") <= 1


def test_threads_lend_their_slots(home: Home) -> None:
    with home.worker("-c", "1", "--threads", "3"):
        assert home.tasks.tree.delay(5, 2).wait(LONG) == 63
    assert home.most_at_once("sync") <= 3


def test_a_run_may_wait_in_several_threads(home: Home) -> None:
    with home.worker("-c", "1"):
        assert home.tasks.expect_in_threads.delay(2).wait(LONG) == [3, 3, 3]
    assert home.most_at_once("sync") == 1


def test_a_coroutine_may_wait_in_a_thread(home: Home) -> None:
    with home.worker("-c", "1", "--coroutines", "1"):
        results = home.tasks.expect_beside.map([(number,) for number in range(5)])
        assert [one.wait(LONG) for one in results] == list(range(5))


def test_children_that_are_replaced_after_each_task(home: Home) -> None:
    with home.worker("-c", "1", "--max-tasks-per-child", "1"):
        assert home.tasks.tree.delay(3, 2).wait(LONG) == 15


@pytest.mark.parametrize("task", ["expect_in_vain", "give_up"])
def test_a_wait_that_times_out_takes_its_slot_back(home: Home, task: str) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1", "--coroutines", "1"):
        results = getattr(home.tasks, task).map([(unserved.id, NOWHERE)] * 5)
        assert {one.wait(LONG) for one in results} <= {"in vain", "in vainin vain"}
    assert home.most_at_once("sync") <= 1


def test_a_run_that_leaves_a_wait_behind_harms_nobody(home: Home) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1", "--coroutines", "1"):
        assert home.tasks.leave_behind.delay(unserved.id, NOWHERE).wait(LONG) == "left"
        assert unserved.cancel()
        assert home.tasks.parent.delay(7).wait(LONG) == 7
        assert home.tasks.tree.delay(2, 1).wait(LONG) == 3


@pytest.mark.parametrize("task", ["expect", "aexpect"])
def test_other_tasks_run_while_one_waits(home: Home, task: str) -> None:
    gate = home.gate()
    with home.worker("-c", "1", "--coroutines", "1"):
        held = home.tasks.hold.options(queue="default").delay(gate.path)
        waiting = getattr(home.tasks, task).delay(held.id, "default")
        others = home.tasks.tree.map([(0, 0)] * 3) if task == "aexpect" else []
        assert home.tasks.leaf.delay(1).wait(LONG) == 1
        gate.open()
        assert waiting.wait(LONG)
        assert [one.wait(LONG) for one in others] == [1] * len(others)


@pytest.mark.parametrize("task", ["expect", "aexpect"])
def test_runs_that_wait_pay_for_the_death_of_their_child(home: Home, task: str) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1") as worker:
        waiting = [getattr(home.tasks, task).delay(unserved.id, NOWHERE) for _ in range(2)]
        home.wait_until_waiting(*waiting)
        for child in worker.children():
            os.kill(child, signal.SIGKILL)
        wait_until(
            lambda: all(home.history.count("start", task_id=one.id) == 2 for one in waiting),
            "they run again",
            seconds=LONG,
        )
        assert home.tasks.tree.delay(2, 2).wait(LONG) == 7
        with home.worker("-c", "1", "-Q", NOWHERE):
            assert all(one.wait(LONG) for one in waiting)
        records = [one.task() for one in waiting]
    assert [(record.stall_retries, record.interruptions) for record in records] == [(1, 0)] * 2


@pytest.mark.parametrize("task", ["expect", "aexpect"])
def test_another_worker_takes_over_runs_that_wait(home: Home, task: str) -> None:
    unserved = home.unserved()
    held = getattr(home.tasks, task).options(stall_timeout=1)
    with home.worker("-c", "1") as worker:
        waiting = [held.delay(unserved.id, NOWHERE) for _ in range(3)]
        home.wait_until_waiting(*waiting)
        worker.kill()
    with home.worker("-c", "1", "-Q", f"{NOWHERE},default"):
        assert all(one.wait(LONG) for one in waiting)
    assert {one.task().stall_retries for one in waiting} == {1}


@pytest.mark.parametrize("task", ["expect", "aexpect"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_runs_that_wait_are_timed_out(home: Home, task: str, threads: str) -> None:
    unserved = home.unserved()
    gate = home.gate()
    with home.worker("-c", "1", "--threads", threads, "--coroutines", "2") as worker:
        (child,) = worker.children()
        home.warm_up()
        beside = (home.tasks.hold if threads == "2" else home.tasks.ahold).delay(gate.path)
        late = getattr(home.tasks, task).options(execution_timeout=0.3)
        waiting = late.delay(unserved.id, NOWHERE)
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            waiting.wait(LONG)
        assert home.tasks.tree.delay(2, 1).wait(LONG) == 3
        gate.open()
        # The child was not ended for it.
        assert beside.wait(LONG) == child
        assert beside.task().interruptions == 0


@pytest.mark.parametrize("task", ["expect", "aexpect"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_runs_that_wait_are_cancelled(home: Home, task: str, threads: str) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1", "--threads", threads, "--coroutines", "1") as worker:
        home.warm_up()
        children = worker.children()
        waiting = getattr(home.tasks, task).delay(unserved.id, NOWHERE)
        home.wait_until_waiting(waiting)
        assert waiting.cancel()
        with pytest.raises(TaskCancelled):
            waiting.wait(LONG)
        assert home.tasks.tree.delay(2, 1).wait(LONG) == 3
        assert home.tasks.parent.delay(1).wait(LONG) == 1
        assert set(children) <= set(worker.children())


@pytest.mark.parametrize("task", ["expect", "aexpect"])
def test_end_of_the_grace_interrupts_runs_that_wait(home: Home, task: str) -> None:
    unserved = home.unserved()
    with home.worker("-c", "1", "--grace", "0.3") as worker:
        waiting = [getattr(home.tasks, task).delay(unserved.id, NOWHERE) for _ in range(3)]
        home.wait_until_waiting(*waiting)
        assert worker.stop() == 0
    records = [one.task() for one in waiting]
    assert {(one.status, one.retries, one.interruptions) for one in records} == {
        (TaskStatus.QUEUED, 0, 1)
    }


@pytest.mark.parametrize(("task", "child"), [("expect", "ahold"), ("aexpect", "hold")])
def test_warm_shutdown_lets_runs_go_on_whose_wait_ends(home: Home, task: str, child: str) -> None:
    gate = home.gate()
    with home.worker("-c", "1", "--coroutines", "1", "--grace", "3600") as worker:
        held = getattr(home.tasks, child).delay(gate.path)
        waiting = getattr(home.tasks, task).delay(held.id, "default")
        home.wait_until_waiting(waiting)
        wait_until(lambda: home.history.count("start") == 2, "both run", seconds=LONG)
        worker.signal(signal.SIGTERM)
        worker.wait_for("finishing what runs")
        gate.open()
        assert worker.wait() == 0
    assert waiting.status is TaskStatus.SUCCESS


@pytest.mark.parametrize("task", ["tree", "atree"])
def test_burst_does_not_end_while_runs_wait(home: Home, task: str) -> None:
    result = getattr(home.tasks, task).delay(4, 2)
    with home.worker("-c", "1", "--coroutines", "1", "--burst") as worker:
        assert worker.wait() == 0
    assert result.status is TaskStatus.SUCCESS
    assert home.queued() == 0
