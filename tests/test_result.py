"""Handles of tasks: state, outcome, cancelling; in threads and in event loops."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from engine import Engine
from playing import ERROR, SOON, Player, claim, end, in_thread, run, wait_in_thread
from servers import Server, wait_until

from conveyor import Conveyor, TaskResult, TaskStatus
from conveyor.broker import commands
from conveyor.errors import (
    ConfigurationError,
    ConveyorError,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)

MISSING = (
    "there is no task 'gone' on queue 'default': it never existed, was removed,"
    " or its retention has passed"
)


def add(x: int, y: int) -> int:
    return x + y


def sent(app: Conveyor, **options: Any) -> TaskResult[int]:
    return app.task(add).options(**options).delay(1, 2)


# Handles


def test_a_handle_is_its_queue_and_id(app: Conveyor) -> None:
    result = sent(app, queue="side")
    again = app.result(result.id, "side")
    assert (again.id, again.queue, again.created) == (result.id, "side", False)
    assert again == result
    assert hash(again) == hash(result)
    assert app.result(result.id) != result
    assert result != result.id
    assert repr(result) == f"TaskResult(id={result.id!r}, queue='side')"
    assert app.tasks["test_result.add"].result("x") == app.result("x")


def test_a_handle_says_where_its_task_is(app: Conveyor) -> None:
    result = app.task(add).schedule(1, 2, after=60)
    assert result.status is TaskStatus.SCHEDULED
    result = sent(app)
    assert result.status == "queued"
    worker, lease = claim(app)
    assert result.status == "processing"
    engine = worker.engine
    assert result.progress is None
    encoded = app.client.codec.encode([0.5], "progress")
    assert engine.run(commands.progress(engine.keys, result.id, lease.token, "p", encoded))
    assert result.progress == [0.5]
    worker.end(lease, "success", app.client.codec.encode(3, "result"))
    assert result.status is TaskStatus.SUCCESS
    record = result.task()
    assert record is not None
    assert (record.id, record.result, record.error) == (result.id, 3, None)


def test_so_do_the_async_twins(app: Conveyor) -> None:
    async def use() -> None:
        result = await app.task(add).adelay(1, 2)
        assert await result.astatus() is TaskStatus.QUEUED
        record = await result.atask()
        assert record is not None
        assert record.args == (1, 2)
        assert await result.acancel() is True
        assert await result.acancel() is False
        assert await result.astatus() is TaskStatus.CANCELLED

    run(app, use())


def test_a_task_that_is_not_there_is_not_found(app: Conveyor) -> None:
    result = app.result("gone")
    assert result.task() is None
    for ask in (lambda: result.status, lambda: result.progress, result.cancel):
        with pytest.raises(TaskNotFound) as caught:
            ask()
        assert str(caught.value) == MISSING
    for timeout in (None, 5, 0):
        with pytest.raises(TaskNotFound) as caught:
            result.wait(timeout)
        assert str(caught.value) == MISSING


def test_nor_is_it_by_the_async_twins(app: Conveyor) -> None:
    async def use() -> None:
        result = app.result("gone")
        assert await result.atask() is None
        for ask in (result.astatus, result.acancel, result._await_end):
            with pytest.raises(TaskNotFound) as caught:
                await ask()
            assert str(caught.value) == MISSING

    run(app, use())


# Cancelling


def test_what_waits_is_cancelled_at_once(app: Conveyor) -> None:
    for result in (sent(app), app.task(add).schedule(1, 2, after=60)):
        assert result.cancel() is True
        assert result.status is TaskStatus.CANCELLED
        assert result.cancel() is False
        with pytest.raises(TaskCancelled) as caught:
            result.wait(SOON)
        assert str(caught.value) == f"test_result.add[{result.id}] was cancelled"
    assert Engine(app, stopped=False).counts() == {"cancelled": 2}


def test_what_runs_is_asked_to_stop(app: Conveyor) -> None:
    result = sent(app)
    worker, lease = claim(app)
    assert result.cancel() is True
    assert result.status is TaskStatus.PROCESSING
    assert worker.renew(lease) == [commands.Verdict.CANCEL_ASKED]
    worker.end(lease, "cancelled")
    assert result.cancel() is False
    with pytest.raises(TaskCancelled):
        result.wait(SOON)


def test_what_has_ended_is_not_cancelled(app: Conveyor) -> None:
    result = sent(app)
    end(app, "success", 3)
    assert result.cancel() is False
    assert result.wait(SOON) == 3


# Waiting


def test_a_wait_returns_what_the_task_returned(app: Conveyor) -> None:
    task = app.task(add)
    with Player(app):
        assert task.delay(1, 2).wait() == 3
        assert task.delay(1, 2).wait(SOON) == 3
        assert task.delay(1, 2).wait(timedelta(seconds=SOON)) == 3
        assert task.delay(1, 2).wait(float("inf")) == 3
        assert [result.wait(SOON) for result in task.map([(n, n) for n in range(50)])] == [
            2 * n for n in range(50)
        ]


def test_a_wait_for_what_has_ended_needs_no_time(app: Conveyor) -> None:
    result = sent(app)
    end(app, "success", 3)
    assert result.wait(0) == 3


def test_a_result_may_be_large_and_of_any_type(app: Conveyor) -> None:
    for value in (b"x" * 100_000, {"a": (1, {2})}, None):
        result = sent(app)
        future = wait_in_thread(app, result)
        end(app, "success", value)
        assert future.result(SOON) == value


def test_a_failure_tells_the_error(app: Conveyor) -> None:
    result = sent(app)
    end(app, "fatal", ERROR)
    with pytest.raises(TaskFailed) as caught:
        result.wait(SOON)
    assert str(caught.value) == f"test_result.add[{result.id}] failed: ValueError: no"
    record = caught.value.record
    assert (record.id, record.status) == (result.id, TaskStatus.FAILED)
    assert (record.error, record.traceback) == ("ValueError: no", "Traceback: line 1")


def test_an_await_raises_the_same(app: Conveyor) -> None:
    failed, cancelled, fine = sent(app), sent(app), sent(app)
    end(app, "fatal", ERROR)
    cancelled.cancel()
    end(app, "success", 3)

    async def use() -> None:
        with pytest.raises(TaskFailed, match=r"failed: ValueError: no$"):
            await failed
        with pytest.raises(TaskCancelled, match="was cancelled"):
            await cancelled
        assert await fine == 3

    run(app, use())


@pytest.mark.parametrize("outcome", ["success", "fatal", "cancelled"])
def test_who_waits_learns_the_end_of_a_record_that_goes_with_it(
    app: Conveyor, outcome: str
) -> None:
    result = sent(app, remove_on_success=True, remove_on_failed=True)
    future = wait_in_thread(app, result)
    worker, lease = claim(app)
    data = {"success": app.client.codec.encode(3, "result"), "fatal": ERROR}.get(outcome, b"")
    worker.end(lease, outcome, data)
    if outcome == "success":
        assert future.result(SOON) == 3
    else:
        with pytest.raises(TaskFailed if outcome == "fatal" else TaskCancelled):
            future.result(SOON)
    assert result.task() is None or outcome == "cancelled"


def test_a_wait_times_out(app: Conveyor) -> None:
    result = sent(app)
    for timeout, seconds in ((0.2, "0.2"), (0, "0"), (timedelta(milliseconds=200), "0.2")):
        with pytest.raises(TimeoutError) as caught:
            result.wait(timeout)
        assert isinstance(caught.value, WaitTimeout)
        assert str(caught.value) == (
            f"task {result.id!r} on queue 'default' has not ended after {seconds} s;"
            " no worker listens to 'default': start one with `conveyor worker`"
        )
    engine = Engine(app, stopped=False)
    engine.run(commands.hello(engine.keys, "00000001", 60_000, b""))
    with pytest.raises(WaitTimeout) as caught_again:
        result.wait(0.1)
    assert str(caught_again.value) == (
        f"task {result.id!r} on queue 'default' has not ended after 0.1 s"
    )
    assert result.status is TaskStatus.QUEUED


def test_a_timeout_is_a_duration(app: Conveyor) -> None:
    with pytest.raises(ConfigurationError, match="timeout cannot be -1"):
        sent(app).wait(-1)
    with pytest.raises(TypeError, match="timeout must be seconds or a timedelta"):
        sent(app).wait("1")  # type: ignore[arg-type]


def test_an_await_can_be_given_up(app: Conveyor) -> None:
    async def use() -> None:
        result = await app.task(add).adelay(1, 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(result._await_end(), 0.1)
        await asyncio.to_thread(end, app, "success", 3)
        assert await result == 3

    run(app, use())


def test_many_may_wait_for_one_and_one_for_many(app: Conveyor) -> None:
    task = app.task(add)
    one = task.delay(0, 0)

    async def gather() -> list[int]:
        async def each(result: TaskResult[int]) -> int:
            return await result

        many = await task.amap([(n, n) for n in range(200)])
        return await asyncio.gather(*(each(result) for result in [one] * 20 + many))

    with ThreadPoolExecutor(16) as pool:
        waits = [pool.submit(one.wait, SOON) for _ in range(16)]
        with Player(app):
            assert run(app, gather()) == [0] * 20 + [2 * n for n in range(200)]
        assert [wait.result(SOON) for wait in waits] == [0] * 16


def test_waiting_asks_the_server_nothing(own_server: Server) -> None:
    with Conveyor("idle", broker=own_server.url) as app, own_server.client() as client:
        result = sent(app)
        future = wait_in_thread(app, result)
        counts: list[Any] = [client.info("stats")["total_commands_processed"]]
        time.sleep(0.5)
        counts.append(client.info("stats")["total_commands_processed"])
        assert counts[1] - counts[0] == 1  # the first INFO
        end(app, "success", 3)
        assert future.result(SOON) == 3


def test_an_end_that_was_not_told_is_found_when_the_time_is_up(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [sent(app) for _ in range(2)]
    for _ in results:
        end(app, "success", 3)
    monkeypatch.setattr("conveyor.broker.outcomes._Ear._resolve", lambda *_: None)
    assert results[0].wait(0.2) == 3
    assert run(app, results[1]._aended(0.2)).record


def test_short_waits_of_many_are_registered_each_once(app: Conveyor) -> None:
    results = app.task(add).map([(n, n) for n in range(200)])
    with ThreadPoolExecutor(200) as pool:
        waits = [pool.submit(result.wait, 4) for result in results]
        engine = Engine(app, stopped=False)
        for result in results:
            key = engine.key(f"x:{result.id}")
            wait_until(lambda key=key: engine.call("HEXISTS", key, "w") == 1, "waiting")  # type: ignore[misc]
        with Player(app):
            assert [wait.result(SOON) for wait in waits] == [2 * n for n in range(200)]


@pytest.mark.parametrize("timeout", [1e10, timedelta(days=300 * 365), 3e10])
def test_a_wait_may_be_longer_than_any_clock(app: Conveyor, timeout: Any) -> None:
    results = [sent(app) for _ in range(3)]
    waits = [
        wait_in_thread(app, results[0], timeout),
        in_thread(lambda: app.manager().on_task_complete(results[1].id, timeout).result),
        in_thread(lambda: run(app, app.amanager().on_task_complete(results[2].id, timeout)).result),
    ]
    with Player(app):
        assert [wait.result(SOON) for wait in waits] == [3, 3, 3]


def test_a_closed_app_lets_nobody_wait(app: Conveyor) -> None:
    result = sent(app)
    future = wait_in_thread(app, result)

    async def use() -> None:
        waiting = asyncio.create_task(result._await_end())
        await asyncio.sleep(0.05)
        await app.aclose()
        with pytest.raises(ConveyorError, match="the app was closed during this wait"):
            await waiting

    run(app, use())
    with pytest.raises(ConveyorError, match="the app was closed during this wait"):
        future.result(SOON)
    assert result.status is TaskStatus.QUEUED
