"""What managers do to live workers: pausing, limiting, stopping, running again, taking apart."""

from __future__ import annotations

import asyncio

import pytest
from faults.lab import SOON, Lab
from faults.windows import most_in_a_window, starts_of
from servers import wait_until

from conveyor import Conveyor, TaskNotFound, TaskStatus


def test_a_worker_runs_what_was_sent_by_name_alone(lab: Lab) -> None:
    with Conveyor(lab.namespace, broker=lab.url) as stranger, lab.worker("-c", "1"):
        manager = stranger.manager()
        results = [manager.enqueue_task(name, (1,), {"y": 2}) for name in ("add", "aadd")]
        assert [manager.on_task_complete(one.id, SOON).result for one in results] == [3, 3]

        async def ask() -> object:
            amanager = stranger.amanager()
            result = await amanager.enqueue_task("add", (3, 4))
            record = await amanager.on_task_complete(result.id, SOON)
            await amanager.quit()
            return record.result

        assert asyncio.run(ask()) == 7


def test_nothing_of_a_paused_queue_is_begun_and_what_runs_goes_on(lab: Lab) -> None:
    gate = lab.gate()
    manager = lab.app.manager()
    with lab.worker("-c", "2", "-Q", "default,side"):
        running = lab.tasks.hold.delay(gate.path)
        lab.wait_for_starts(running)
        manager.pause_queue()
        waiting = [lab.tasks.effect.delay(), lab.tasks.aeffect.delay()]
        scheduled = lab.tasks.effect.schedule(after=0.05)
        # The worker has the time and the room for another queue's.
        for _ in range(20):
            assert lab.tasks.add.options(queue="side").delay(1, 2).wait(SOON) == 3
        wait_until(lambda: scheduled.status is TaskStatus.QUEUED, "it is due", seconds=SOON)
        assert [one.status for one in waiting] == ["queued", "queued"]
        gate.open()
        assert running.wait(SOON)
        assert lab.history.count("start") == 1
        manager.resume_queue()
        assert [one.wait(SOON) for one in (*waiting, scheduled)] == [1, 1, 1]


@pytest.mark.parametrize("beat", ["--beat", "--no-beat"])
def test_a_rate_limit_holds_for_two_workers(lab: Lab, beat: str) -> None:
    points, duration, many = (5, 0.2, 40) if beat == "--beat" else (20, 0.2, 30)
    lab.app.manager().set_queue_rate_limit(points, duration)
    with lab.worker("-c", "2", beat), lab.worker("-c", "2", beat):
        half = many // 2
        results = lab.tasks.effect.map([()] * half) + lab.tasks.aeffect.map([()] * half)
        assert [one.wait(SOON) for one in results] == [1] * many
    starts = starts_of(lab.contents())
    assert len(starts) == many
    assert most_in_a_window(starts, duration) <= points


def test_what_is_limited_is_not_claimed_ahead(lab: Lab) -> None:
    gate = lab.gate()
    manager = lab.app.manager()
    with lab.worker("-c", "1"):
        lab.tasks.noop.map([()] * 2000)  # so short that the worker would claim far ahead
        lab.wait_for_drain()
        manager.set_queue_rate_limit(1000, 60)
        lab.tasks.noop.delay().wait(SOON)
        calls = [lab.tasks.hold.call(gate.path), *[lab.tasks.noop.call()] * 200]
        results = lab.app.map(calls)
        lab.wait_for_starts(results[0])
        assert manager.get_task_counts().processing == 1
        gate.open()
        for one in results:
            one.wait(SOON)
    # None was handed back, which would have used up a start.
    assert int(lab.client.llen(f"conveyor:{{{lab.namespace}:default}}:starts")) == 202


def test_a_change_of_the_limit_reaches_workers_at_once(lab: Lab) -> None:
    manager = lab.app.manager()
    manager.set_queue_rate_limit(1, 3600)
    with lab.worker("-c", "1"):
        results = lab.tasks.effect.map([()] * 6)
        assert results[0].wait(SOON) == 1
        manager.set_queue_rate_limit(3, 3600)
        assert [one.wait(SOON) for one in results[1:3]] == [1, 1]
        assert manager.get_task_counts().queued == 3
        manager.clear_queue_rate_limit()
        assert [one.wait(SOON) for one in results] == [1] * 6


def test_a_worker_that_ends_with_its_work_waits_for_the_limit_but_not_for_a_pause(
    lab: Lab,
) -> None:
    manager = lab.app.manager()
    manager.set_queue_rate_limit(2, 0.2)
    results = lab.tasks.effect.map([()] * 7)
    with lab.worker("-c", "1", "--burst", up=False) as worker:
        assert worker.wait() == 0
    assert [one.status for one in results] == ["success"] * 7
    manager.pause_queue()
    result = lab.tasks.effect.delay()
    with lab.worker("-c", "1", "--burst", up=False) as worker:
        assert worker.wait() == 0
    assert result.status is TaskStatus.QUEUED


@pytest.mark.parametrize("task", ["hold", "ahold"])
def test_the_run_of_a_removed_task_is_stopped(lab: Lab, task: str) -> None:
    gate = lab.gate()  # never opened
    manager = lab.app.manager()
    with lab.worker("-c", "1", "--coroutines", "1") as worker:
        running = getattr(lab.tasks, task).delay(gate.path)
        lab.wait_for_starts(running)
        assert manager.remove_task_by_id(running.id) is True
        assert manager.get_task_by_id(running.id) is None
        with pytest.raises(TaskNotFound):
            running.wait(SOON)
        # The only slot is free again.
        assert getattr(lab.tasks, "add" if task == "hold" else "aadd").delay(1, 2).wait(SOON) == 3
        assert worker.alive
        assert manager.get_task_by_id(running.id) is None
    assert lab.history.count("effect") == 0
    assert manager.get_task_counts().success == 1


def test_a_task_that_failed_runs_again(lab: Lab) -> None:
    manager = lab.app.manager()
    with lab.worker("-c", "1"):
        result = lab.tasks.flaky.delay(2)
        for fence in (1, 2):
            record = manager.on_task_complete(result.id, SOON)
            assert (record.status, record.error) == ("failed", f"ValueError: {fence}")
            assert manager.retry_task_by_id(result.id) is True
        record = manager.on_task_complete(result.id, SOON)
    assert (record.result, record.error, record.error_retries) == (3, None, 0)
    assert [run.outcome for run in record.attempts] == ["error", "error", "success"]


def test_a_cancelled_run_that_is_retried_is_not_stopped_again(lab: Lab) -> None:
    gate = lab.gate()
    manager = lab.app.manager()
    with lab.worker("-c", "1"):
        result = lab.tasks.hold.delay(gate.path)
        for run in range(1, 6):
            lab.wait_for_starts(result, runs=run)
            assert manager.cancel_task_by_id(result.id) is True
            assert manager.on_task_complete(result.id, SOON).status is TaskStatus.CANCELLED
            assert manager.retry_task_by_id(result.id) is True
        gate.open()
        assert result.wait(SOON) == 6


def test_live_workers_are_listed(lab: Lab) -> None:
    manager = lab.app.manager("side")
    with lab.worker("-c", "2", "-Q", "default,side", "--threads", "3", "--no-beat") as worker:
        wait_until(lambda: bool(manager.get_workers()), "it is announced", seconds=SOON)
        (record,) = manager.get_workers()
        assert (record.pid, record.queues) == (worker.pid, ("default", "side"))
        assert (record.concurrency, record.threads, record.beat) == (2, 3, False)
        result = lab.tasks.add.options(queue="side").delay(1, 2)
        assert manager.on_task_complete(result.id, SOON).worker == record.id
        worker.stop()
    assert manager.get_workers() == []


def test_runs_of_a_queue_that_is_gone_are_stopped_though_their_worker_was_not_told(
    lab: Lab,
) -> None:
    gate = lab.gate()
    hold = lab.tasks.hold.options(stall_timeout=3)
    with lab.worker("-c", "3"):
        running = hold.map([(gate.path,)] * 3)
        lab.wait_for_starts(*running)
        prefix = lab.app.client.broker.keys("default").prefix
        lab.client.delete(*(prefix + name for name in lab.contents().keys))
        lab.wait_for_starts(*hold.map([(gate.path,)] * 3))
        assert lab.history.count("start") == 6
        gate.open()


def test_a_queue_is_taken_apart_under_its_worker(lab: Lab) -> None:
    gate = lab.gate()
    manager = lab.app.manager()
    with lab.worker("-c", "3") as worker:
        running = lab.tasks.hold.map([(gate.path,)] * 3)
        lab.tasks.effect.map([()] * 250)
        lab.tasks.effect.options(queue="default").schedule(after=600)
        lab.wait_for_starts(*running)
        manager.destroy_queue()
        for one in running:
            with pytest.raises(TaskNotFound):
                one.wait(SOON)
        # It goes on with what is new there; the runs that it had are stopped, and leave room.
        lab.wait_for_starts(*lab.tasks.hold.map([(gate.path,)] * 3))
        assert lab.history.count("start") == 6
        gate.open()
        worker.stop()
    manager.destroy_queue()
    assert lab.contents().keys == set()
    assert lab.app.queues() == []
