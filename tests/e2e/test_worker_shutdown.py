"""Workers that are told to end: what runs, what waits, and what it costs them."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON, Lab
from servers import wait_until
from workers import Project

from conveyor import TaskFailed, TaskStatus

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("task", ["hold", "ahold"])
def test_warm_shutdown_finishes_what_runs(lab: Lab, task: str, number: signal.Signals) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--coroutines", "1") as worker:
        running = getattr(lab.tasks, task).delay(gate.path)
        lab.wait_for_starts(running)
        worker.signal(number)
        later = lab.tasks.add.delay(1, 1)
        gate.open()
        assert worker.wait() == 0
    assert running.status is TaskStatus.SUCCESS
    assert later.status is TaskStatus.QUEUED


def test_idle_worker_ends_at_once(lab: Lab) -> None:
    with lab.worker("-c", "2") as worker:
        assert worker.stop() == 0
    assert not lab.status().workers


def test_impatient_signals_do_not_break_off_the_end_of_a_worker(lab: Lab) -> None:
    with lab.worker("-c", "1") as worker:
        while worker.alive:
            worker.signal(signal.SIGINT)
            time.sleep(0.001)
        assert worker.wait() in (0, 1)
        assert "Traceback" not in worker.output
    assert not lab.status().workers


@pytest.mark.parametrize("task", ["hold", "ahold"])
def test_end_of_the_grace_interrupts_uncounted(lab: Lab, task: str) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--grace", "0.3") as worker:
        running = getattr(lab.tasks, task).delay(gate.path)
        lab.wait_for_starts(running)
        worker.stop()
    record = running.task()
    assert (record.status, record.retries, record.interruptions) == (TaskStatus.QUEUED, 0, 1)
    assert [run.outcome for run in record.attempts] == ["interrupted"]
    gate.open()
    with lab.worker("-c", "1"):
        assert running.wait(SOON) == 2


@pytest.mark.parametrize("task", ["hold", "ahold"])
def test_end_of_the_grace_fails_what_may_run_but_once(lab: Lab, task: str) -> None:
    once = getattr(lab.tasks, task).options(stall_retry_limit=0, error_retry_limit=0)
    with lab.worker("-c", "1", "--grace", "0.3") as worker:
        running = once.delay(lab.gate().path)
        lab.wait_for_starts(running)
        worker.stop()
    with pytest.raises(TaskFailed, match="TaskInterrupted"):
        running.wait(SOON)
    assert lab.history.count("start", task_id=running.id) == 1


def test_task_that_may_run_but_once_fails_when_its_child_dies(lab: Lab) -> None:
    once = lab.tasks.exit_process.options(stall_retry_limit=0, error_retry_limit=0)
    with lab.worker("-c", "1"):
        result = once.delay()
        with pytest.raises(TaskFailed, match=r"TaskStalled: child .* exited with code 3"):
            result.wait(SOON)
    assert lab.history.count("start", task_id=result.id) == 1


def test_task_that_may_run_but_once_fails_when_its_worker_dies(lab: Lab) -> None:
    once = lab.tasks.hold.options(stall_retry_limit=0, error_retry_limit=0, stall_timeout=0.5)
    with lab.worker("-c", "1") as worker:
        result = once.delay(lab.gate().path)
        lab.wait_for_starts(result)
        worker.kill()
    with lab.worker("-c", "1"), pytest.raises(TaskFailed, match="TaskStalled"):
        result.wait(SOON)
    assert lab.history.count("start", task_id=result.id) == 1


def test_second_int_ends_what_runs_now(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--grace", "3600") as worker:
        running = lab.tasks.hold.delay(gate.path)
        lab.wait_for_starts(running)
        worker.signal(signal.SIGINT)
        worker.wait_for("finishing what runs")
        assert worker.alive
        worker.signal(signal.SIGINT)
        worker.wait()
    record = running.task()
    assert (record.status, record.retries, record.interruptions) == (TaskStatus.QUEUED, 0, 1)


def test_signal_to_a_child_that_begins_is_none_to_its_worker(
    server: Server, tmp_path: Path
) -> None:
    # As when Ctrl-C reaches the whole group while a child is forked.
    source = """
    import os, signal
    from conveyor import Conveyor
    app = Conveyor("NAME")
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
    @app.task
    def add(x: int, y: int) -> int:
        return x + y
    """
    project = Project(tmp_path, server.url, source)
    with project.worker("-c", "2") as worker:
        for number in range(3):
            called = project.conveyor("-A", "myapp", "call", "add", "1", f"{number}", "--wait")
            assert called.out == f"{1 + number}\n"
        assert "SIGINT" not in worker.output
        assert worker.stop() == 0


def test_quit_ends_what_runs_now(lab: Lab) -> None:
    with lab.worker("-c", "1", "--grace", "3600") as worker:
        running = lab.tasks.ahold.delay(lab.gate().path)
        lab.wait_for_starts(running)
        worker.signal(signal.SIGQUIT)
        worker.wait()
    assert (running.status, running.task().interruptions) == (TaskStatus.QUEUED, 1)


def test_shutdown_gives_back_in_order_what_was_claimed_ahead(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2") as worker:
        lab.tasks.noop.map([()] * 2000)
        lab.wait_for_drain()
        calls = [lab.tasks.hold.call(gate.path)] * 2 + [lab.tasks.effect.call()] * 300
        results = lab.app.map(calls)
        lab.wait_for_starts(*results[:2])
        worker.signal(signal.SIGTERM)
        wait_until(lambda: lab.status().queued == 300, "all are back", seconds=SOON)
        gate.open()
        assert worker.wait() == 0
    with lab.worker("-c", "1"):
        assert [one.wait(SOON) for one in results]
    order = [event.id for event in lab.history.read("start")][2:]
    assert order == [one.id for one in results[2:]]


def test_what_a_child_is_running_is_printed_on_demand(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1") as worker:
        running = [task.delay(gate.path) for task in (lab.tasks.hold, lab.tasks.ahold)]
        lab.wait_for_starts(*running)
        worker.signal(signal.SIGUSR1)
        for name, result in zip(("hold", "ahold"), running, strict=True):
            worker.wait_for(f"{name}[{result.id[:8]}]")
            worker.wait_for(f"in {name}\n")  # its stack
        gate.open()
        assert [one.wait(SOON) for one in running] == [1, 1]


def test_rolling_restart_costs_no_task_anything(lab: Lab) -> None:
    results = []
    worker = lab.worker("-c", "2", "--grace", "0.2")
    for _ in range(2):
        results += lab.tasks.nap.map([(0.01,)] * 50)
        following = lab.worker("-c", "2", "--grace", "0.2")
        worker.stop()
        worker = following
    with worker:
        assert [one.wait(SOON) for one in results] == [None] * 100
    assert {one.task().retries for one in results} == {0}
