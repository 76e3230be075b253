"""Programs that run a worker in code: each scenario is a process of its own.

    python worker_in_code.py pause_hands_back_what_has_not_begun

`test_worker_in_code.py` runs each of them, with a server in CONVEYOR_BROKER, a namespace of its own
in TEST_NAMESPACE and an empty current directory; a scenario that fails ends with a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor import Conveyor, TaskStatus, Worker, constant
from conveyor.broker import commands
from conveyor.queues import read_announcement

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor import TaskRecord

SOON = 30.0
LOOK = 0.005

app = Conveyor(
    os.environ.get("TEST_NAMESPACE", "nowhere"), broker=os.environ.get("CONVEYOR_BROKER")
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def aadd(x: int, y: int) -> int:
    return x + y


@app.task(error_retry_limit=1, backoff=constant(0.05))
def boom(text: str) -> None:
    raise ValueError(text)


@app.task(execution_timeout=0.1)
def late() -> None:
    time.sleep(60)


@app.task(stall_retry_limit=0)
def die() -> None:
    os._exit(3)


@app.task
def effect(number: int) -> int:
    with open("effects", "a") as file:
        file.write(f"{number}\n")
    time.sleep(0.002)
    return number


@app.task
def where() -> int:
    return os.getpid()


@app.task
def hold(gate: str) -> str:
    Path(f"{gate}.begun").touch()
    while not Path(gate).exists():
        time.sleep(LOOK)
    return "held"


@app.task
def wait_for_hold(gate: str) -> str:
    return f"waited: {hold.delay(gate).wait()}"


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(LOOK)


def status() -> Any:
    broker = app.client.broker
    return broker.run(commands.status(broker.keys("default")))


def paused() -> list[bool]:
    return [read_announcement(about)["paused"] for about in status().workers.values()]


def effects() -> list[int]:
    path = Path("effects")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


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
        # Earlier attempts lie beside the record that a worker claims.
        assert said.attempts == record.attempts[-1:]
        for field in record.__slots__:
            if field != "attempts":
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


def pause_and_resume_under_load() -> None:
    worker = Worker(app, concurrency=2)
    worker.start()
    results = effect.map([(number,) for number in range(600)])
    for _ in range(3):
        before = len(effects())
        until(lambda n=before: len(effects()) >= n + 30, "some have run")  # type: ignore[misc]
        worker.pause()
        until(lambda: paused() == [True] and not status().processing, "nothing runs")
        done = len(effects())
        assert 0 < done < 600
        assert status().queued == 600 - done
        time.sleep(0.1)
        assert len(effects()) == done
        worker.resume()
    assert [result.wait(SOON) for result in results] == list(range(600))
    assert paused() == [False]
    worker.shutdown()
    assert sorted(effects()) == list(range(600))
    records = [result.task() for result in results]
    assert all(record is not None and not record.interruptions for record in records)


def pause_hands_back_what_has_not_begun() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    for result in add.map([(1, 2)] * 1000):  # so short that the worker claims far ahead
        result.wait(SOON)
    long = hold.delay("gate")
    until(Path("gate.begun").exists, "it runs")
    worker.pause()
    short = effect.map([(number,) for number in range(50)])
    until(lambda: paused() == [True], "it is paused")
    until(lambda: (status().processing, status().queued) == (1, 50), "handed back")
    Path("gate").touch()
    assert long.wait(SOON) == "held"
    time.sleep(0.1)
    assert effects() == []
    worker.resume()
    assert [result.wait(SOON) for result in short] == list(range(50))
    assert effects() == list(range(50))
    worker.shutdown()


def pause_takes_back_what_a_child_has_not_read() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    child = where.delay().wait(SOON)
    os.kill(child, signal.SIGSTOP)
    result = effect.delay(1)
    until(lambda: status().processing == 1, "it is claimed")
    worker.pause()
    until(lambda: (status().processing, status().queued) == (0, 1), "handed back")
    os.kill(child, signal.SIGCONT)
    worker.resume()
    assert result.wait(SOON) == 1
    worker.shutdown()
    record = result.task()
    assert record is not None
    assert not record.interruptions
    assert not record.retries


def pause_lets_a_run_go_on_that_waited() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    waiting = wait_for_hold.delay("gate")
    until(Path("gate.begun").exists, "what it waits for runs")
    worker.pause()
    until(lambda: paused() == [True], "it is paused")
    Path("gate").touch()
    assert waiting.wait(SOON) == "waited: held"
    worker.shutdown()


def callbacks_may_pause_resume_and_shut_down() -> None:
    seen: list[int] = []

    def success(task: TaskRecord) -> None:
        seen.append(task.result)
        if task.result == 1:
            worker.pause()
        elif task.result == 3:
            worker.shutdown()

    worker = Worker(app, concurrency=1, on_task_success=success)
    worker.start()
    add.delay(1, 0).wait(SOON)
    until(lambda: paused() == [True], "it is paused")
    two = add.delay(2, 0)
    time.sleep(0.1)
    assert two.status is TaskStatus.QUEUED
    worker.resume()
    two.wait(SOON)
    add.delay(3, 0).wait(SOON)
    worker.shutdown(timeout=SOON)
    assert seen == [1, 2, 3]
    assert not status().workers


def shutdown_waits_wherever_the_worker_runs() -> None:
    worker = Worker(app, concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    result = hold.delay("gate")
    until(Path("gate.begun").exists, "it runs")
    worker.shutdown(timeout=0.1)
    assert result.status is TaskStatus.PROCESSING
    Path("gate").touch()
    worker.shutdown()
    assert result.status is TaskStatus.SUCCESS
    thread.join(SOON)


def shutdown_that_kills_gives_back_what_runs() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    result = hold.delay("gate")
    until(Path("gate.begun").exists, "it runs")
    worker.shutdown(True)
    record = result.task()
    assert record is not None
    assert (record.status, record.interruptions, record.retries) == (TaskStatus.QUEUED, 1, 0)
    assert worker.killed


def any_thread_may_ask_any_number_of_times() -> None:
    worker = Worker(app, concurrency=1)

    def ask() -> None:
        for _ in range(2000):  # far more than what the wake-up's socket holds
            worker.pause()
            worker.resume()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    worker.start()
    assert add.delay(1, 2).wait(SOON) == 3
    worker.shutdown()
    worker.pause()  # it has ended: nothing happens


def a_burst_tells_all_before_it_ends() -> None:
    told: list[int] = []
    results = add.map([(number, 0) for number in range(50)])
    Worker(
        app, concurrency=1, burst=True, on_task_success=lambda task: told.append(task.result)
    ).run()
    assert told == list(range(50))
    assert all(result.status is TaskStatus.SUCCESS for result in results)


SCENARIOS = [
    callbacks_are_told_of_tasks,
    what_is_told_is_what_the_server_has,
    ready_is_told_once,
    idle_is_told_once_in_each_idle_period,
    a_worker_with_work_before_it_is_not_idle,
    a_callback_that_raises_is_reported,
    a_callback_that_raises_is_logged,
    async_callbacks_are_awaited_in_order,
    a_slow_callback_holds_nothing_up_and_nothing_is_lost,
    a_callback_that_hangs_is_left_behind,
    pause_and_resume_under_load,
    pause_hands_back_what_has_not_begun,
    pause_takes_back_what_a_child_has_not_read,
    pause_lets_a_run_go_on_that_waited,
    callbacks_may_pause_resume_and_shut_down,
    shutdown_waits_wherever_the_worker_runs,
    shutdown_that_kills_gives_back_what_runs,
    any_thread_may_ask_any_number_of_times,
    a_burst_tells_all_before_it_ends,
]

if __name__ == "__main__":
    with app:
        next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()
