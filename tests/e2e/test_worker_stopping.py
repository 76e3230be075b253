"""Runs that are stopped: by their timeout, or because somebody cancels them."""

from __future__ import annotations

import os
import signal

import pytest
from faults.lab import SOON, Lab
from servers import freeze, wait_until

from conveyor import TaskCancelled, TaskFailed, TaskStatus, constant

LANES = pytest.mark.parametrize(
    ("task", "args"), [("hold", ()), ("ahold", ()), ("hold", ("--threads", "2"))]
)


@LANES
def test_run_that_takes_too_long_is_stopped(lab: Lab, task: str, args: tuple[str, ...]) -> None:
    with lab.worker("-c", "1", *args) as worker:
        children = worker.children()
        late = getattr(lab.tasks, task).options(execution_timeout=0.2)
        result = late.delay(lab.gate().path)
        with pytest.raises(TaskFailed, match=r"TaskTimeout: .* execution_timeout of 0\.2 s"):
            result.wait(SOON)
        # It let itself be stopped, so its child lives on.
        assert lab.tasks.where.delay().wait(SOON) in children
    record = result.task()
    assert [run.outcome for run in record.attempts] == ["timeout"]
    assert "hold" in record.traceback


def test_sleep_is_stopped_on_the_main_thread_and_on_the_loop(lab: Lab) -> None:
    with lab.worker("-c", "1") as worker:
        children = worker.children()
        late = lab.tasks.nap.options(execution_timeout=0.2)
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            late.delay(600.0).wait(SOON)
        assert lab.tasks.where.delay().wait(SOON) in children


def test_run_that_was_too_slow_is_retried(lab: Lab) -> None:
    late = lab.tasks.hold.options(execution_timeout=0.2, error_retry_limit=1, backoff=constant(0.1))
    with lab.worker("-c", "1"):
        gate = lab.gate()
        result = late.delay(gate.path)
        wait_until(lambda: result.task().error_retries == 1, "to be retried", seconds=SOON)
        gate.open()
        assert result.wait(SOON) == 2
    assert (result.task().error_retries, result.task().stall_retries) == (1, 0)


def test_timeout_in_threads_hits_only_its_own_run(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--threads", "3"):
        others = [lab.tasks.hold.delay(gate.path) for _ in range(2)]
        lab.wait_for_starts(*others)
        late = lab.tasks.hold.options(execution_timeout=0.2).delay(lab.gate().path)
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            late.wait(SOON)
        gate.open()
        assert [one.wait(SOON) for one in others] == [1, 1]


def test_runs_of_a_child_that_were_all_asked_to_stop_have_all_timed_out(lab: Lab) -> None:
    with lab.worker("-c", "1", "--threads", "2"):
        late = [lab.tasks.nap.options(execution_timeout=0.5 + n * 0.2) for n in range(2)]
        results = [one.delay(600.0) for one in late]
        for one in results:
            assert [run.outcome for run in lab.ended(one).attempts] == ["timeout"]
            assert lab.history.count("start", task_id=one.id) == 1


def test_coroutines_that_are_cancelled_together_all_hear_of_it(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1") as worker:
        results = lab.tasks.ahold.map([(gate.path,)] * 50)
        lab.wait_for_starts(*results)
        (child,) = worker.children()
        (mailbox,) = (f"k:{one.decode()}" for one in lab.status().workers)
        freeze(child)
        assert all(one.cancel() for one in results[:10])
        letters = lab.app.client.broker.keys("default").prefix + mailbox
        wait_until(lambda: not lab.client.exists(letters), "the parent has read", seconds=SOON)
        os.kill(child, signal.SIGCONT)
        assert {lab.ended(one).status for one in results[:10]} == {TaskStatus.CANCELLED}
        gate.open()
        assert all(one.wait(SOON) for one in results[10:])
    assert {one.task().interruptions for one in results[10:]} == {0}


def test_call_of_c_that_hears_nothing_is_ended_with_its_child(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1") as worker:
        beside = lab.tasks.ahold.delay(gate.path)
        lab.wait_for_starts(beside)
        deaf = lab.tasks.compute_in_c.options(execution_timeout=0.2).delay()
        with pytest.raises(TaskFailed, match=r"TaskTimeout: .* did not stop when asked to"):
            deaf.wait(SOON)
        gate.open()
        # What ran beside it was interrupted, which costs it nothing.
        assert beside.wait(SOON) >= 2
        wait_until(lambda: len(worker.children()) == 1, "replaced", seconds=SOON)
    record = beside.task()
    assert (record.retries, record.interruptions) == (0, 1)
    assert lab.history.count("start", task_id=deaf.id) == 1


@pytest.mark.parametrize("task", ["hold_stubbornly", "ahold_stubbornly"])
def test_run_that_swallows_its_timeout_is_ended_with_its_child(lab: Lab, task: str) -> None:
    with lab.worker("-c", "1"):
        stubborn = getattr(lab.tasks, task).options(execution_timeout=0.2)
        result = stubborn.delay(lab.gate().path)
        with pytest.raises(TaskFailed, match=r"TaskTimeout: .* did not stop when asked to"):
            result.wait(SOON)
    assert lab.history.count("swallowed", task_id=result.id) == 1


def test_run_that_swallows_its_timeout_and_returns_has_timed_out_all_the_same(lab: Lab) -> None:
    with lab.worker("-c", "1") as worker:
        children = worker.children()
        result = lab.tasks.swallow.options(execution_timeout=0.2).delay()
        with pytest.raises(TaskFailed, match="TaskTimeout"):
            result.wait(SOON)
        assert lab.tasks.where.delay().wait(SOON) in children
    assert lab.history.count("swallowed", task_id=result.id) == 1


@pytest.mark.parametrize("threads", ["1", "2"])
def test_stop_that_comes_at_the_end_of_a_run_hits_no_other(lab: Lab, threads: str) -> None:
    # The parent looks every 50 ms, so somewhere here a run ends just as it is asked to stop.
    late = lab.tasks.nap.options(execution_timeout=0.04)
    with lab.worker("-c", "1", "--threads", threads):
        results = late.map([(0.04 + 0.003 * number,) for number in range(20)])
        steady = lab.tasks.nap.map([(0.001,)] * 20)
        assert [one.wait(SOON) for one in steady] == [None] * 20
        for one in results:
            record = lab.ended(one)
            assert record.status is TaskStatus.SUCCESS or "TaskTimeout" in str(record.error)


def test_cancel_before_it_runs(lab: Lab) -> None:
    queued = lab.tasks.effect.delay()
    scheduled = lab.tasks.effect.schedule(after=3600)
    other = lab.tasks.effect.delay()
    assert queued.cancel()
    assert scheduled.cancel()
    for one in (queued, scheduled):
        with pytest.raises(TaskCancelled):
            one.wait(SOON)
        assert not one.cancel()
    with lab.worker("-c", "1"):
        assert other.wait(SOON) == 1
    assert {event.id for event in lab.history.read("start")} == {other.id}


@LANES
def test_cancel_while_it_runs(lab: Lab, task: str, args: tuple[str, ...]) -> None:
    with lab.worker("-c", "1", *args) as worker:
        children = worker.children()
        result = getattr(lab.tasks, task).delay(lab.gate().path)
        lab.wait_for_starts(result)
        assert result.cancel()
        with pytest.raises(TaskCancelled):
            result.wait(SOON)
        assert lab.tasks.where.delay().wait(SOON) in children
    record = result.task()
    assert (record.status, record.retries) == (TaskStatus.CANCELLED, 0)
    assert lab.history.count("effect", task_id=result.id) == 0


def test_cancel_of_one_that_hears_nothing(lab: Lab) -> None:
    with lab.worker("-c", "1"):
        result = lab.tasks.compute_in_c.delay()
        lab.wait_for_starts(result)
        assert result.cancel()
        with pytest.raises(TaskCancelled):
            result.wait(SOON)
        assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
    assert lab.history.count("start", task_id=result.id) == 1


@pytest.mark.parametrize("task", ["effect", "aeffect"])
def test_cancel_of_one_that_waits_in_a_childs_socket(lab: Lab, task: str) -> None:
    waiting = getattr(lab.tasks, task)
    with lab.worker("-c", "1") as worker:
        lab.tasks.noop.map([()] * 1000)  # so short that more is sent ahead
        lab.wait_for_drain()
        (child,) = worker.children()
        freeze(child)
        results = waiting.map([()] * 4)
        wait_until(lambda: lab.status().processing > 0, "claimed", seconds=SOON)
        cancelled = results[-1]
        assert cancelled.cancel()
        with pytest.raises(TaskCancelled):
            cancelled.wait(SOON)  # its child is still stopped
        os.kill(child, signal.SIGCONT)
        assert [one.wait(SOON) for one in results[:-1]]
    assert lab.history.count("start", task_id=cancelled.id) == 0


def test_cancel_of_one_that_is_to_be_retried(lab: Lab) -> None:
    flaky = lab.tasks.flaky.options(error_retry_limit=5, backoff="exponential")
    with lab.worker("-c", "1"):
        result = flaky.delay(9)
        wait_until(lambda: result.status is TaskStatus.SCHEDULED, "to be retried", seconds=SOON)
        assert result.cancel()
        with pytest.raises(TaskCancelled):
            result.wait(SOON)


def test_cancel_of_a_run_whose_child_dies(lab: Lab) -> None:
    with lab.worker("-c", "1"):
        result = lab.tasks.hold_stubbornly.delay(lab.gate().path)
        lab.wait_for_starts(result)
        (start,) = lab.history.read("start", task_id=result.id)
        freeze(start.process)
        assert result.cancel()
        os.kill(start.process, signal.SIGKILL)
        with pytest.raises(TaskCancelled):
            result.wait(SOON)
    assert lab.history.count("start", task_id=result.id) == 1
