"""How work flows through a worker: side by side, in order, in nobody's way, until none is left."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON, Lab
from servers import freeze, wait_until

from conveyor import TaskStatus

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


def test_nothing_waits_behind_a_long_task(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2"):
        lab.tasks.noop.map([()] * 2000)  # so short that the worker claims far ahead
        lab.wait_for_drain()
        long = lab.tasks.hold.delay(gate.path)
        short = lab.tasks.effect.map([()] * 50)
        # The long one ends only once the short ones have.
        assert [one.wait(SOON) for one in short]
        assert long.status is TaskStatus.PROCESSING
        gate.open()
        assert long.wait(SOON)
    assert all(one.task().retries == one.task().interruptions == 0 for one in (long, *short))


def test_nothing_waits_behind_a_long_task_that_comes_with_short_ones(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2"):
        noop, hold = lab.tasks.noop, lab.tasks.hold
        calls = [noop.call()] * 1000 + [hold.call(gate.path)] + [noop.call()] * 1000
        results = lab.app.map(calls)
        long = results.pop(1000)
        for one in results:
            one.wait(SOON)
        assert long.status is TaskStatus.PROCESSING
        gate.open()
        assert long.wait(SOON)


def test_a_full_server_is_drained_by_a_worker_that_starts_then(
    own_server: Server, tmp_path: Path
) -> None:
    with Lab(own_server.url, tmp_path) as lab:
        results = lab.tasks.add.map([(1, 2)] * 20)
        own_server.call("CONFIG", "SET", "maxmemory", "1")
        with lab.worker("-c", "1") as worker:
            assert [one.wait(SOON) for one in results] == [3] * 20
            assert worker.stop() == 0


def test_nothing_waits_in_a_worker_while_another_is_free(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1"):
        lab.tasks.noop.map([()] * 2000)
        lab.wait_for_drain()
        # The first long task fills the one worker, with what it had claimed ahead behind it.
        results = lab.tasks.hold.map([(gate.path,)] * 2)
        lab.wait_for_starts(results[0])
        with lab.worker("-c", "1"):
            lab.wait_for_starts(results[1])
            gate.open()
            assert [one.wait(SOON) for one in results]


def test_async_tasks_run_beside_a_sync_one(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1"):
        sync = lab.tasks.hold.delay(gate.path)
        lab.wait_for_starts(sync)
        assert [one.wait(SOON) for one in lab.tasks.aadd.map([(1, n) for n in range(200)])]
        assert sync.status is TaskStatus.PROCESSING
        gate.open()
        assert sync.wait(SOON) == 1


def test_sync_tasks_run_beside_async_ones(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--coroutines", "3"):
        results = lab.tasks.ahold.map([(gate.path,)] * 5)
        lab.wait_for_starts(*results[:3])
        assert [one.wait(SOON) for one in lab.tasks.add.map([(1, n) for n in range(200)])]
        assert lab.history.count("start") == 3
        gate.open()
        assert [one.wait(SOON) for one in results]


def test_coroutines_do_not_wait_behind_one_that_computes(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2"):
        long = lab.tasks.hold_loop.delay(gate.path)
        lab.wait_for_starts(long)
        short = [lab.tasks.aeffect.delay() for _ in range(20)]  # to both children by turns
        assert all(one.wait(SOON) for one in short)
        assert long.status is TaskStatus.PROCESSING
        gate.open()
        assert long.wait(SOON)


def test_nothing_waits_for_an_idle_child_that_is_stopped(lab: Lab) -> None:
    with lab.worker("-c", "2", "--threads", "4") as worker:
        wait_until(lambda: len(worker.children()) == 2, "both are there", seconds=SOON)
        stopped = worker.children()[0]
        freeze(stopped)
        assert all(one.wait(SOON) for one in lab.tasks.add.map([(1, 2)] * 20))
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: lab.tasks.where.delay().wait(SOON) == stopped, "it runs", seconds=SOON)


def test_a_thousand_coroutines_at_once(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2", "--coroutines", "500"):
        results = lab.tasks.ahold.map([(gate.path,)] * 1000)
        wait_until(lambda: lab.history.count("start") == 1000, "all run at once", seconds=SOON)
        gate.open()
        assert [one.wait(SOON) for one in results]


def test_as_many_sync_tasks_at_once_as_there_are_threads(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2", "--threads", "3"):
        results = lab.tasks.hold.map([(gate.path,)] * 10)
        wait_until(lambda: lab.history.count("start") == 6, "six run at once", seconds=SOON)
        assert lab.tasks.aadd.delay(1, 1).wait(SOON) == 2
        assert lab.history.count("start") == 6
        gate.open()
        assert {one.wait(SOON) for one in results} == {1}


def test_queues_in_strict_order(lab: Lab) -> None:
    low = lab.tasks.effect.options(queue="low").map([()] * 30)
    high = lab.tasks.effect.options(queue="high").map([()] * 30)
    with lab.worker("-c", "1", "-Q", "high,low"):
        assert [one.wait(SOON) for one in (*high, *low)]
    order = [event.id for event in lab.history.read("start")]
    assert order == [one.id for one in (*high, *low)]


def test_what_comes_to_a_higher_queue_goes_before_the_backlog_of_a_lower_one(lab: Lab) -> None:
    gates = [lab.gate() for _ in range(2)]
    with lab.worker("-c", "1", "-Q", "high,low"):
        hold, effect = (each.options(queue="low") for each in (lab.tasks.hold, lab.tasks.effect))
        low = lab.app.map([hold.call(gate.path) for gate in gates] + [effect.call()] * 20)
        lab.wait_for_starts(low[0])
        high = lab.tasks.effect.options(queue="high").delay()
        gates[0].open()
        wait_until(lambda: lab.history.count("start") >= 2, "the next has started", seconds=SOON)
        gates[1].open()
        assert [one.wait(SOON) for one in (high, *low)]
    order = [event.id for event in lab.history.read("start")]
    assert order.index(high.id) in (1, 2)


def test_short_runs_keep_the_weights_too(lab: Lab) -> None:
    heavy = lab.tasks.effect.options(queue="heavy").map([()] * 300)
    light = lab.tasks.effect.options(queue="light").map([()] * 300)
    with lab.worker("-c", "1", "-Q", "heavy:3,light:1"):
        assert [one.wait(SOON) for one in (*heavy, *light)]
    first = {event.id for event in lab.history.read("start")[:40]}
    assert 24 <= len(first & {one.id for one in heavy}) <= 36


def test_queues_by_weight(lab: Lab) -> None:
    # Runs long enough that few are claimed at a time.
    heavy = lab.tasks.nap.options(queue="heavy").map([(0.006,)] * 400)
    lab.tasks.nap.options(queue="light").map([(0.006,)] * 400)
    with lab.worker("-c", "1", "-Q", "heavy:3,light:1"):
        wait_until(lambda: lab.history.count("start") >= 400, "half have run", seconds=SOON)
    first = {event.id for event in lab.history.read("start")[:400]}
    # 300 of 400 are expected; the last claim of each queue may have been for more than one.
    assert 294 <= len(first & {one.id for one in heavy}) <= 306


def test_priorities(lab: Lab) -> None:
    results = [lab.tasks.effect.options(priority=p).delay() for p in (0, 5, 9, 1, 9, 5)]
    with lab.worker("-c", "1"):
        assert [one.wait(SOON) for one in results]
    order = [event.id for event in lab.history.read("start")]
    assert order == [results[i].id for i in (2, 4, 1, 5, 3, 0)]


def test_order_of_enqueuing_is_the_order_of_starting(lab: Lab) -> None:
    results = lab.tasks.effect.map([()] * 500)
    with lab.worker("-c", "1"):
        assert [one.wait(SOON) for one in results]
    assert [event.id for event in lab.history.read("start")] == [one.id for one in results]


def test_child_is_replaced_after_exactly_so_many_runs(lab: Lab) -> None:
    with lab.worker("-c", "1", "--max-tasks-per-child", "3"):
        runs = [one.wait(SOON) for one in lab.tasks.where.map([()] * 10)]
    assert sorted(Counter(runs).values()) == [1, 3, 3, 3]


def test_replacement_waits_for_the_last_run_of_the_one_before(lab: Lab) -> None:
    with lab.worker("-c", "1", "--max-tasks-per-child", "1"):
        results = lab.tasks.nap.map([(0.2,)] * 5)
        records = [lab.ended(one) for one in results]
    for before, after in pairwise(records):
        assert before.processing_ended_at <= after.processing_started_at


def test_what_is_taken_back_from_a_child_is_no_run_of_it(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--max-tasks-per-child", "30"):
        lab.tasks.noop.map([()] * 10)  # so short that more is sent ahead
        lab.wait_for_drain()
        # What was sent ahead of the long run, and taken back from behind it, is yet to run.
        results = lab.app.map([lab.tasks.hold.call(gate.path)] + [lab.tasks.effect.call()] * 20)
        lab.wait_for_starts(results[0])
        wait_until(lambda: lab.status().queued == 20, "given back", seconds=SOON)
        gate.open()
        assert [one.wait(SOON) for one in results]
    runs = Counter(event.process for event in lab.history.read("start"))
    assert sorted(runs.values()) == [1, 20]


def test_child_is_replaced_after_exactly_so_many_coroutines(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--max-tasks-per-child", "50"):
        results = lab.tasks.ahold.map([(gate.path,)] * 51)
        wait_until(lambda: lab.history.count("start") == 51, "all run", seconds=SOON)
        gate.open()
        assert [one.wait(SOON) for one in results]
    runs = Counter(event.process for event in lab.history.read("start"))
    assert sorted(runs.values()) == [1, 50]


def test_child_that_grew_is_replaced(lab: Lab) -> None:
    with lab.worker("-c", "1", "--max-memory-per-child", "150M"):
        fat = lab.tasks.hoard.delay(200 * 1_048_576).wait(SOON)
        assert lab.tasks.where.delay().wait(SOON) != fat


def test_burst_ends_when_the_queues_are_empty(lab: Lab) -> None:
    results = lab.tasks.add.map([(1, n) for n in range(150)])
    results += lab.tasks.aadd.options(queue="other").map([(1, n) for n in range(150)])
    scheduled = lab.tasks.add.schedule(1, 1, after=3600)
    with lab.worker("-c", "2", "-Q", "default,other", "--burst", up=False) as worker:
        assert worker.wait() == 0
    assert {one.status for one in results} == {TaskStatus.SUCCESS}
    assert scheduled.status is TaskStatus.SCHEDULED


def test_burst_of_an_app_without_async_tasks_ends(lab: Lab) -> None:
    results = lab.tasks.add.map([(1, n) for n in range(10)])
    with lab.worker("-c", "1", "--burst", tasks="add,noop", up=False) as worker:
        assert worker.wait() == 0
    assert {one.status for one in results} == {TaskStatus.SUCCESS}


def test_burst_finishes_what_its_last_task_has_sent(lab: Lab) -> None:
    lab.tasks.pass_on.delay(5)
    with lab.worker("-c", "1", "--burst", up=False) as worker:
        assert worker.wait() == 0
    assert (lab.status().success, lab.status().queued) == (6, 0)


def test_burst_finishes_what_a_failed_run_left_to_be_retried_at_once(lab: Lab) -> None:
    result = lab.tasks.hold.delay(lab.gate().path)
    with lab.worker("-c", "1") as worker:
        lab.wait_for_starts(result)
        worker.kill()
    result.cancel()
    with lab.worker("-c", "1", "--burst", up=False) as worker:
        assert worker.wait() == 0


@pytest.mark.parametrize("task", ["add", "aadd"])
def test_unknown_task_is_parked_until_a_worker_that_knows_it_starts(lab: Lab, task: str) -> None:
    result = getattr(lab.tasks, task).delay(20, 1)
    with lab.worker("-c", "1", tasks="noop") as worker:
        wait_until(lambda: lab.status().parked == 1, "parked", seconds=SOON)
        assert result.status is TaskStatus.QUEUED
        ((parked, reason),) = lab.status().parked_reasons.items()
        assert parked.decode() == result.id
        assert task in reason.decode()
        assert lab.tasks.noop.delay().wait(SOON) is None
        assert task in worker.output
        worker.stop()
    with lab.worker("-c", "1"):
        assert result.wait(SOON) == 21
    record = result.task()
    assert (record.retries, record.interruptions) == (0, 0)


@pytest.mark.parametrize("task", ["add", "aadd"])
def test_parked_task_is_run_beside_a_worker_that_does_not_know_it(lab: Lab, task: str) -> None:
    result = getattr(lab.tasks, task).delay(20, 1)
    with lab.worker("-c", "1", tasks="noop"):
        wait_until(lambda: lab.status().parked == 1, "parked", seconds=SOON)
        with lab.worker("-c", "1"):
            assert result.wait(SOON) == 21
            later = [getattr(lab.tasks, task).delay(20, number) for number in range(50)]
            assert [one.wait(SOON) for one in later] == [20 + number for number in range(50)]
    assert lab.status().parked == 0


def test_parked_tasks_stay_so_while_those_who_know_them_are_busy(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1") as knows:
        lab.wait_for_starts(lab.tasks.hold.delay(gate.path))
        with lab.worker("-c", "1", tasks="noop") as other:
            results = lab.tasks.add.map([(1, number) for number in range(200)])
            wait_until(lambda: lab.status().parked == 200, "all are parked", seconds=SOON)
            assert other.output.count("is parked until") == 200
            gate.open()
            assert [one.wait(SOON) for one in results] == [1 + n for n in range(200)]
            assert knows.alive


def commands_in(lab: Lab, seconds: float) -> int:
    """How many commands the server does meanwhile, those inside scripts too."""
    before = lab.client.info("stats")["total_commands_processed"]
    time.sleep(seconds)
    return lab.client.info("stats")["total_commands_processed"] - before


def test_what_nobody_knows_keeps_no_worker_from_what_it_knows(lab: Lab) -> None:
    with lab.worker("-c", "1", tasks="noop"), lab.worker("-c", "1", tasks="noop,effect"):
        lab.tasks.add.map([(1, 2)] * 150)
        wait_until(lambda: lab.status().parked == 150, "all are parked", seconds=SOON)
        assert all(one.wait(SOON) for one in lab.tasks.effect.map([()] * 20))
        wait_until(lambda: commands_in(lab, 0.1) < 50, "the workers rest", seconds=SOON)
    assert lab.status().parked == 150


def test_unknown_task_fails_after_its_grace(lab: Lab) -> None:
    result = lab.tasks.add.delay(20, 1)
    with lab.worker("-c", "1", tasks="noop", CONVEYOR_UNKNOWN_TASK_GRACE="0.3"):
        assert "UnknownTask" in str(lab.ended(result).error)


def test_retention_deletes(lab: Lab) -> None:
    kept = lab.tasks.add.delay(1, 1)
    tasks = (
        lab.tasks.add.options(retain_success=0.2),
        lab.tasks.interrupt.options(retain_failed=0.2),
    )
    with lab.worker("-c", "1"):
        results = [tasks[0].delay(1, 2), tasks[1].delay()]
        gate = lab.gate()
        dropped = lab.tasks.hold.options(remove_on_success=True).delay(gate.path)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(dropped.wait, SOON)
            broker = lab.app.client.broker
            waiters = ("HEXISTS", f"{broker.keys('default').prefix}x:{dropped.id}", "w")
            wait_until(lambda: broker.execute(waiters), "waited for", seconds=SOON)
            gate.open()
            waiting.result(SOON)
        wait_until(lambda: all(one.task() is None for one in results), "gone", seconds=SOON)
    contents = lab.contents()
    assert set(contents.records) == set(contents.places) == {kept.id}
    assert not any(key.startswith("x:") for key in contents.keys)
