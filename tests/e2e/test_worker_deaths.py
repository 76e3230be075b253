"""Children and workers that die: who takes over, when, and who pays."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from faults.lab import SOON, Gate, Lab
from servers import freeze, wait_until

from conveyor import TaskFailed, TaskResult, TaskStatus


@pytest.mark.parametrize("task", ["hold", "ahold"])
def test_task_of_a_killed_child_runs_again_elsewhere_at_once(lab: Lab, task: str) -> None:
    gate = lab.gate()
    # A stall timeout that no test would outwait: only its parent can have it run again.
    held = getattr(lab.tasks, task).options(stall_timeout=3600)
    with lab.worker("-c", "2") as worker:
        result = held.delay(gate.path)
        lab.wait_for_starts(result)
        (first,) = lab.history.read("start", task_id=result.id)
        os.kill(first.process, signal.SIGKILL)
        lab.wait_for_starts(result, runs=2)
        gate.open()
        assert result.wait(SOON) == 2
        wait_until(lambda: len(worker.children()) == 2, "the child was replaced", seconds=SOON)
    second = lab.history.read("start", task_id=result.id)[1]
    assert second.process != first.process
    record = result.task()
    assert (record.stall_retries, record.error_retries, record.interruptions) == (1, 0, 0)
    assert [run.outcome for run in record.attempts] == ["stall", "success"]
    assert f"child {first.process} was killed by SIGKILL" in record.attempts[0].error


def test_what_a_killed_child_had_not_begun_pays_nothing(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1") as worker:
        for _ in range(3):  # runs so short that more is sent ahead
            [one.wait(SOON) for one in lab.tasks.noop.map([()] * 300)]
        (child,) = worker.children()
        freeze(child)
        waiting = lab.tasks.effect.map([()] * 50)
        wait_until(lambda: lab.status().processing > 0, "some were claimed", seconds=SOON)
        os.kill(child, signal.SIGKILL)
        assert [one.wait(SOON) for one in waiting]
        gate.open()
    # A stopped child may have read one before it was stopped; it noted none of them as begun.
    assert [one.task().stall_retries for one in waiting] == [0] * 50
    assert {lab.history.count("start", task_id=one.id) for one in waiting} == {1}


def test_another_worker_takes_over_when_one_is_killed(lab: Lab) -> None:
    gate = lab.gate()
    held = lab.tasks.hold.options(stall_timeout=1)
    # The first hears of everything that comes due; the second has to find out in time nevertheless.
    with lab.worker("-c", "1") as worker:
        result = held.delay(gate.path)
        lab.wait_for_starts(result)
        with lab.worker("-c", "1"):
            worker.kill()
            killed_at = time.monotonic()
            lab.wait_for_starts(result, runs=2)
            assert time.monotonic() - killed_at < 10
            gate.open()
            assert result.wait(SOON) == 2
    record = result.task()
    assert (record.stall_retries, record.attempts[0].outcome) == (1, "stall")


def test_worker_that_was_idle_takes_over_what_it_never_heard_of(lab: Lab) -> None:
    gate, other = lab.gate(), lab.gate()
    held = lab.tasks.hold.options(stall_timeout=1)
    with lab.worker("-c", "1", "-Q", "elsewhere") as bystander, lab.worker("-c", "1") as worker:
        assert bystander.alive
        result = held.delay(gate.path)
        lab.wait_for_starts(result)
        # It listens to the queue from now on, while the one that works goes on renewing.
        with lab.worker("-c", "1") as heir:
            busy = held.delay(other.path)
            lab.wait_for_starts(busy)
            worker.kill()
            other.open()
            lab.wait_for_starts(result, runs=2)
            gate.open()
            assert (result.wait(SOON), busy.wait(SOON)) == (2, 1)
            assert heir.alive


def test_children_die_with_their_worker(lab: Lab) -> None:
    with lab.worker("-c", "3", "--threads", "2") as worker:
        results = [lab.tasks.hold.delay(lab.gate().path) for _ in range(2)]
        results.append(lab.tasks.ahold.delay(lab.gate().path))
        lab.wait_for_starts(*results)
        children = worker.children()
        worker.kill()
    wait_until(lambda: not any(map(_lives, children)), "its children are gone", seconds=SOON)


def test_only_the_task_that_kills_its_thread_mates_pays_in_the_end(lab: Lab) -> None:
    with lab.worker("-c", "1", "--threads", "4"):
        gate = lab.gate()
        others = [lab.tasks.hold.delay(gate.path) for _ in range(3)]
        lab.wait_for_starts(*others)
        killer = lab.tasks.exit_process.options(stall_retry_limit=3).delay()
        lab.wait_for_starts(killer, runs=2)
        gate.open()
        with pytest.raises(TaskFailed, match="exited with code 3"):
            killer.wait(SOON)
        assert [one.wait(SOON) for one in others]
    assert lab.history.count("start", task_id=killer.id) == 4
    # From its second death on it ran alone.
    assert all(one.task().stall_retries <= 2 for one in others)


def test_suspects_run_alone_after_two_deaths(lab: Lab) -> None:
    with lab.worker("-c", "1"):
        others = [lab.tasks.wait_for_the_last.delay() for _ in range(4)]
        killer = lab.tasks.die_with_others.options(stall_retry_limit=3).delay(4)
        assert all(one.wait(SOON) >= 3 for one in others)
        with pytest.raises(TaskFailed, match="exited with code 3"):
            killer.wait(SOON)
    assert [one.task().stall_retries for one in others] == [2] * 4
    assert killer.task().stall_retries == 3
    # Two deaths with all of them in one child, then each in a child with nobody else in it.
    alone = lab.history.read("alone")
    assert {event.about[1] for event in alone} == {"1"}
    starts = Counter(event.id for event in lab.history.read("start"))
    assert starts == {one.id: 3 for one in others} | {killer.id: 4}


def test_work_goes_on_beside_a_suspect(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2"):
        suspect = _make_suspect(lab, lab.tasks.hold, gate)
        lab.wait_for_starts(suspect, runs=3)
        assert [one.wait(SOON) for one in lab.tasks.add.map([(1, n) for n in range(100)])]
        assert [one.wait(SOON) for one in lab.tasks.aadd.map([(1, n) for n in range(100)])]
        assert suspect.status is TaskStatus.PROCESSING
        gate.open()
        assert suspect.wait(SOON) == 3


def test_what_waits_while_a_suspect_has_the_only_child_is_left_in_the_queue(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1"):
        suspect = _make_suspect(lab, lab.tasks.hold, gate)
        lab.wait_for_starts(suspect, runs=3)
        others = lab.tasks.effect.map([()] * 20) + lab.tasks.aeffect.map([()] * 20)
        time.sleep(0.5)  # ten times as long as what was claimed in vain is held
        gate.open()
        # The fence counts claims: hardly one was claimed and given back.
        assert sorted(one.wait(SOON) for one in others)[-1] <= 3


def test_nothing_waits_behind_a_suspect_that_waits_for_a_child(lab: Lab) -> None:
    gate, other = lab.gate(), lab.gate()
    side = lab.app.manager("side")
    with lab.worker("-c", "1", "-Q", "side") as worker:
        suspect = _make_suspect(lab, lab.tasks.ahold.options(queue="side"), gate)
        wait_until(lambda: suspect.task().stall_retries == 2, "to run later", seconds=SOON)
        worker.kill()
    busy = lab.tasks.hold.map([(other.path,)] * 2)
    wait_until(lambda: suspect.task().enqueue_after < datetime.now(UTC), "its time has come")
    side.pause_queue()
    with lab.worker("-c", "2", "-Q", "default,side"):
        lab.wait_for_starts(*busy)
        wait_until(lambda: suspect.status is TaskStatus.QUEUED, "it is the first in line")
        behind = lab.tasks.aadd.options(queue="side").map([(1, n) for n in range(50)])
        side.resume_queue()
        # No child is free for the suspect alone, but one is for coroutines.
        assert [one.wait(SOON) for one in behind]
        assert lab.history.count("start", task_id=suspect.id) == 2
        other.open()
        lab.wait_for_starts(suspect, runs=3)
        gate.open()
        assert suspect.wait(SOON)
        assert [one.wait(SOON) for one in busy]


def _make_suspect(lab: Lab, task: Any, gate: Gate) -> TaskResult[Any]:
    """A task in whose runs two children have died."""
    suspect = task.options(stall_retry_limit=5).delay(gate.path)
    for runs in (1, 2):
        lab.wait_for_starts(suspect, runs=runs)
        os.kill(lab.history.read("start", task_id=suspect.id)[-1].process, signal.SIGKILL)
    return suspect


def _lives(pid: int) -> bool:
    """False also for one that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
