"""Scenarios of a worker in code that is paused, resumed and shut down. See `worker_in_code.py`."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from in_code_app import (
    LOOK,
    SOON,
    add,
    app,
    effect,
    effects,
    hold,
    paused,
    status,
    until,
    wait_for_hold,
    where,
)

from conveyor import ConveyorError, Plugin, TaskStatus, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor import TaskRecord


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
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)  # until then it may read on
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
    worker.shutdown(timeout=1e10)  # longer than any lock can wait
    assert result.status is TaskStatus.SUCCESS
    thread.join(SOON)


def two_workers_end_in_the_order_of_their_start() -> None:
    workers = [Worker(app, concurrency=1, grace=timedelta(days=1)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert add.delay(1, 2).wait(SOON) == 3
    for left, worker in ((1, workers[0]), (0, workers[1])):
        worker.shutdown(timeout=timedelta(seconds=SOON))
        assert len(status().workers) == left


def a_worker_works_while_the_error_output_is_replaced() -> None:
    for replaced in (io.StringIO(), None):
        with contextlib.redirect_stderr(replaced):
            worker = Worker(app, concurrency=1)
            worker.start()
            assert add.delay(1, 2).wait(SOON) == 3
            worker.shutdown()


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
        for _ in range(300):  # far more than what the wake-up's socket holds
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


def a_worker_works_once() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    assert _refusal(worker.start) == "a worker works once: make another Worker"
    assert add.delay(1, 2).wait(SOON) == 3
    worker.shutdown()
    assert _refusal(worker.run) == "a worker works once: make another Worker"


def _refusal(begin: Callable[[], None]) -> str:
    try:
        begin()
    except ConveyorError as error:
        return str(error)
    return ""


def a_worker_that_cannot_fork_tries_again() -> None:
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logging.getLogger("conveyor").addHandler(Handler())
    worker = Worker(app, concurrency=1)
    worker.start()
    child = where.delay().wait(SOON)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no new descriptors
    os.kill(child, signal.SIGKILL)
    until(lambda: any("no child can be started" in text for text in said), "it says so")
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert where.delay().wait(SOON) != child
    worker.shutdown()


def nothing_waits_for_a_child_that_begins() -> None:
    class Slow(Plugin):
        def on_child_start(self) -> None:
            while Path("slow").exists():
                time.sleep(LOOK)

    app.register_plugins(Slow())
    worker = Worker(app, concurrency=2)
    worker.start()
    child = where.delay().wait(SOON)
    Path("slow").touch()
    os.kill(child, signal.SIGKILL)
    assert child not in [where.delay().wait(SOON) for _ in range(6)]
    long = hold.delay("gate")
    until(Path("gate.begun").exists, "the only free child is taken")
    last = where.delay()
    Path("gate").touch()
    assert (long.wait(SOON), bool(last.wait(SOON))) == ("held", True)
    Path("slow").unlink()
    worker.shutdown()


SCENARIOS = [
    pause_and_resume_under_load,
    pause_hands_back_what_has_not_begun,
    pause_takes_back_what_a_child_has_not_read,
    pause_lets_a_run_go_on_that_waited,
    callbacks_may_pause_resume_and_shut_down,
    shutdown_waits_wherever_the_worker_runs,
    two_workers_end_in_the_order_of_their_start,
    a_worker_works_while_the_error_output_is_replaced,
    shutdown_that_kills_gives_back_what_runs,
    any_thread_may_ask_any_number_of_times,
    a_worker_works_once,
    a_worker_that_cannot_fork_tries_again,
    nothing_waits_for_a_child_that_begins,
]
