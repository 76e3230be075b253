"""Scenarios of a worker in code: what its callbacks are told, and when. See `worker_in_code.py`."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from in_code_app import (
    SOON,
    aadd,
    add,
    app,
    boom,
    die,
    effect,
    hold,
    late,
    status,
    until,
)

from conveyor import TaskStatus, Worker

if TYPE_CHECKING:
    from conveyor import TaskRecord


class Told:
    """What callbacks were told, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []
        self.threads: set[str] = set()

    def _note(self, what: str, *about: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.all.append((what, *about))  # type: ignore[arg-type]

    def ready(self) -> None:
        self._note("ready")

    def idle(self) -> None:
        self._note("idle")

    def success(self, task: TaskRecord) -> None:
        self._note("success", task)

    def error(self, task: TaskRecord, error: str) -> None:
        self._note("error", task, error)

    def failed(self, task: TaskRecord, error: str) -> None:
        self._note("failed", task, error)

    def handler_error(self, error: Exception) -> None:
        self._note("handler error", repr(error))

    def names(self) -> list[str]:
        return [note[0] for note in self.all]

    def worker(self, **options: Any) -> Worker:
        return Worker(
            app,
            concurrency=1,
            on_ready=self.ready,
            on_task_success=self.success,
            on_task_error=self.error,
            on_task_failed=self.failed,
            on_handler_error=self.handler_error,
            **options,
        )


def callbacks_are_told_of_tasks() -> None:
    told = Told()
    worker = told.worker()
    worker.start()
    add.delay(1, 2).wait(SOON)
    aadd.delay(3, 4).wait(SOON)
    results = [boom.delay("bad"), late.delay(), die.delay()]
    cancelled = add.schedule(1, 1, after=3600)
    cancelled.cancel()
    until(lambda: all(result.status.ended for result in results), "all have ended")
    worker.shutdown()
    assert told.names()[:3] == ["ready", "success", "success"]
    assert told.threads == {"conveyor-callbacks"}
    three, seven = (note[1] for note in told.all[1:3])
    assert (three.name, three.args, three.result) == (add.name, (1, 2), 3)
    assert (three.status, three.error) == (TaskStatus.SUCCESS, None)
    assert (seven.name, seven.result) == (aadd.name, 7)
    rest = {}
    for what, task, error in told.all[3:]:  # type: ignore[misc]
        assert error == task.error
        rest.setdefault(task.name.rpartition(".")[2], []).append((what, task.status, error))
    bad = "ValueError: bad"
    assert rest.pop("boom") == [
        ("error", TaskStatus.SCHEDULED, bad),
        ("error", TaskStatus.FAILED, bad),
        ("failed", TaskStatus.FAILED, bad),
    ]
    assert [what for what, *_ in rest["late"]] == ["error", "failed"]
    assert "execution_timeout of 0.1 s" in rest.pop("late")[0][2]
    ((what, state, error),) = rest.pop("die")
    assert (what, state) == ("failed", TaskStatus.FAILED)
    assert error.startswith("TaskStalled: child ")
    assert not rest


def what_is_told_is_what_the_server_has() -> None:
    told = Told()
    worker = told.worker()
    worker.start()
    results = [add.options(headers={"a": "b"}).delay(1, 2), boom.delay("bad")]
    until(lambda: all(result.status.ended for result in results), "all have ended")
    worker.shutdown()
    last = {note[1].id: note[1] for note in told.all if len(note) > 1}
    for result in results:
        record = result.task()
        assert record is not None
        said = last[result.id]
        for field in record.__slots__:
            assert getattr(said, field) == getattr(record, field), field


def ready_is_told_once() -> None:
    told = Told()
    worker = told.worker()
    worker.start()
    until(lambda: told.names() == ["ready"], "it is ready")
    admin = app.client.broker
    # Its connections are lost and made anew.
    admin.execute(("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
    assert add.delay(1, 2).wait(SOON) == 3
    until(lambda: "success" in told.names(), "it is told")
    worker.shutdown()
    assert told.names().count("ready") == 1


def idle_is_told_once_in_each_idle_period() -> None:
    told = Told()
    worker = Worker(app, concurrency=1, on_idle=told.idle, idle_timeout=0.1)
    worker.start()
    for period in range(1, 4):
        until(lambda n=period: told.names() == ["idle"] * n, "it is idle")  # type: ignore[misc]
        result = hold.delay(f"gate{period}")
        until(Path(f"gate{period}.begun").exists, "it runs")
        time.sleep(0.3)  # thrice the timeout: it must not be told while something runs
        assert told.names() == ["idle"] * period
        Path(f"gate{period}").touch()
        result.wait(SOON)
    until(lambda: told.names() == ["idle"] * 4, "it is idle")
    time.sleep(0.3)
    worker.shutdown()
    assert told.names() == ["idle"] * 4


def a_worker_with_work_before_it_is_not_idle() -> None:
    queued: list[int] = []
    results = effect.map([(number,) for number in range(20)])
    worker = Worker(
        app, concurrency=1, on_idle=lambda: queued.append(status().queued), idle_timeout=0
    )
    worker.start()
    assert [result.wait(SOON) for result in results] == list(range(20))
    until(lambda: queued, "it is idle")
    worker.shutdown()
    assert queued == [0]


def a_callback_that_raises_is_reported() -> None:
    told = Told()

    def broken(task: TaskRecord) -> None:
        raise RuntimeError(f"broken by {task.result}")

    worker = Worker(app, concurrency=1, on_task_success=broken, on_handler_error=told.handler_error)
    worker.start()
    for number in range(3):
        add.delay(number, 0).wait(SOON)
    worker.shutdown()
    assert told.all == [
        ("handler error", f"RuntimeError('broken by {number}')") for number in range(3)
    ]


def a_callback_that_raises_is_logged() -> None:
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.levelname} {record.getMessage()} {record.exc_info}")

    logging.getLogger("conveyor").addHandler(Handler())

    def broken(error: object) -> None:
        raise RuntimeError("broken")

    for options in ({}, {"on_handler_error": broken}):
        worker = Worker(app, concurrency=1, on_task_success=broken, **options)
        worker.start()
        add.delay(1, 2).wait(SOON)
        worker.shutdown()
    first, second = (record for record in records if record.startswith("ERROR"))
    assert "broken raised; the worker goes on" in first
    assert "RuntimeError('broken')" in first
    assert "on_handler_error raised, told of what" in second


def async_callbacks_are_awaited_in_order() -> None:
    told: list[Any] = []
    loops: set[int] = set()

    async def success(task: TaskRecord) -> None:
        await asyncio.sleep(0.01 if task.result == 0 else 0)
        loops.add(id(asyncio.get_running_loop()))
        told.append(task.result)

    worker = Worker(app, concurrency=1, on_task_success=success)
    worker.start()
    results = add.map([(number, 0) for number in range(20)])
    assert [result.wait(SOON) for result in results] == list(range(20))
    worker.shutdown()
    assert told == list(range(20))
    assert len(loops) == 1


def a_slow_callback_holds_nothing_up_and_nothing_is_lost() -> None:
    go_on = threading.Event()
    told: list[int] = []

    def success(task: TaskRecord) -> None:
        go_on.wait(SOON)
        told.append(task.result)

    worker = Worker(app, concurrency=1, on_task_success=success)
    worker.start()
    results = add.map([(number, 0) for number in range(500)])
    assert [result.wait(SOON) for result in results] == list(range(500))
    assert told == []
    go_on.set()
    worker.shutdown()
    assert told == list(range(500))


def a_callback_that_hangs_is_left_behind() -> None:
    worker = Worker(app, concurrency=1, grace=0.2, on_ready=lambda: time.sleep(600))
    worker.start()
    add.delay(1, 2).wait(SOON)
    began = time.monotonic()
    worker.shutdown()
    assert time.monotonic() - began < SOON


def a_burst_tells_all_before_it_ends() -> None:
    told: list[int] = []
    results = add.map([(number, 0) for number in range(50)])
    Worker(
        app, concurrency=1, burst=True, on_task_success=lambda task: told.append(task.result)
    ).run()
    assert told == list(range(50))
    assert all(result.status is TaskStatus.SUCCESS for result in results)


def a_callback_that_exits_ends_nothing() -> None:
    told: list[int] = []

    def success(task: TaskRecord) -> None:
        told.append(task.result)
        sys.exit("enough")

    async def failed(task: TaskRecord, error: str) -> None:
        told.append(-1)
        raise asyncio.CancelledError

    worker = Worker(app, concurrency=1, on_task_success=success, on_task_failed=failed)
    worker.start()
    for number in range(3):
        add.delay(number, 0).wait(SOON)
        boom.options(error_retry_limit=0).delay("bad")
        until(lambda n=number: len(told) == 2 * n + 2, "both are told")  # type: ignore[misc]
    worker.shutdown()
    assert told == [0, -1, 1, -1, 2, -1]


SCENARIOS = [
    callbacks_are_told_of_tasks,
    what_is_told_is_what_the_server_has,
    ready_is_told_once,
    idle_is_told_once_in_each_idle_period,
    a_worker_with_work_before_it_is_not_idle,
    a_callback_that_raises_is_reported,
    a_callback_that_raises_is_logged,
    a_callback_that_exits_ends_nothing,
    async_callbacks_are_awaited_in_order,
    a_slow_callback_holds_nothing_up_and_nothing_is_lost,
    a_callback_that_hangs_is_left_behind,
    a_burst_tells_all_before_it_ends,
]
