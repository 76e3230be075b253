"""Every event, heard from a real worker; and what events cost there while nobody listens."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from faults.lab import SOON, Lab
from servers import wait_until
from workers import Running

from conveyor import EventType, Orchestrator, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor import Event, TaskResult

#: A worker that pauses and goes on, twice each, waiting for a file after either.
PAUSED = """
import sys, time
from pathlib import Path
from conveyor import Conveyor, Worker

app = Conveyor(sys.argv[1], broker=sys.argv[2])
worker = Worker(app, concurrency=1)
worker.start()
for step in (worker.pause, worker.resume):
    step()
    step()
    while not Path(step.__name__).exists():
        time.sleep(0.005)
worker.shutdown()
"""


class Story:
    """What is heard while a test goes on.

    Args:
        lab: Whose queue.
    """

    def __init__(self, lab: Lab) -> None:
        self._events = iter(lab.app.listener())
        self.events: list[Event] = []

    def until(self, kind: str) -> Event:
        """The next event of a type; hangs, until pytest ends it, when there is none."""
        for event in self._events:
            self.events.append(event)
            if event.type == kind:
                return event
        raise AssertionError

    def of(self, result: TaskResult[Any]) -> list[str]:
        """What was told of a task so far."""
        return [one.type.value for one in self.events if one.task and one.task.id == result.id]


def add(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.add.delay(1, 2)


def wait_for_an_hour(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.add.schedule(1, 2, after=3600)


def say(lab: Lab) -> TaskResult[Any]:
    gate = lab.gate()
    gate.open()
    return lab.tasks.say.delay(gate.path)


def fail(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.flaky.delay(1)


def fail_once(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.flaky.options(error_retry_limit=1, backoff="constant").delay(1)


def die_once(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.exit_process.options(stall_retry_limit=1).delay()


def cancel(lab: Lab) -> TaskResult[Any]:
    result = lab.tasks.hold.delay(lab.gate().path)
    lab.wait_for_starts(result)
    result.cancel()
    return result


def expire(lab: Lab) -> TaskResult[Any]:
    return lab.tasks.add.options(expires=0.01).delay(1, 2)


BEGUN = ["task_queued", "task_processing"]
SUCCESS = ["task_success", "task_complete"]
FAIL = ["task_fail", "task_complete"]


@pytest.mark.parametrize(
    ("provoke", "told"),
    [
        (add, [*BEGUN, *SUCCESS]),
        (wait_for_an_hour, ["task_scheduled"]),
        (
            say,
            [*BEGUN, "task_progress_updated", "task_updated", "task_progress_updated", *SUCCESS],
        ),
        (fail, [*BEGUN, "task_error", *FAIL]),
        (fail_once, [*BEGUN, "task_error", "task_scheduled", *BEGUN, *SUCCESS]),
        (die_once, [*BEGUN, "task_stalled", *BEGUN, "task_stalled", *FAIL]),
        (cancel, [*BEGUN, "task_cancelled", "task_complete"]),
    ],
)
def test_the_events_of_a_task_in_order(
    lab: Lab, provoke: Callable[[Lab], TaskResult[Any]], told: list[str]
) -> None:
    story = Story(lab)
    with lab.worker("-c", "1"):
        started = story.until("worker_started")
        result = provoke(lab)
        event = story.until(told[-1])
        assert event.task is not None
        assert event.task.id == result.id
        assert story.of(result) == told
        if "task_processing" in told:
            assert event.worker == started.worker
        if told[-1] == "task_complete":
            record = result.task()
            assert record is not None
            assert record.status is event.task.status
            assert record.error == event.task.error
            assert record.attempts == event.task.attempts


def test_a_task_that_expires_with_no_worker_is_told_by_the_orchestrator(lab: Lab) -> None:
    story = Story(lab)
    result = expire(lab)
    orchestrator = Orchestrator(lab.app)
    orchestrator.start()
    event = story.until("task_complete")
    orchestrator.stop()
    assert story.of(result) == ["task_queued", *FAIL]
    assert event.task is not None
    assert event.task.error == "TaskExpired: Task has expired"


def test_a_recurring_task_is_told_as_queued(lab: Lab) -> None:
    story = Story(lab)
    lab.app.add_recurring("often", lab.tasks.add.call(1, 2), every=0.05)
    orchestrator = Orchestrator(lab.app)
    orchestrator.start()
    event = story.until("task_queued")
    orchestrator.stop()
    assert event.task is not None
    assert event.task.id.startswith("often@")


def test_a_task_that_nobody_knows_is_updated_when_it_is_parked_and_released(lab: Lab) -> None:
    story = Story(lab)
    result = lab.tasks.add.delay(1, 2)
    with lab.worker("-c", "1", tasks="noop"):
        parked = story.until("task_updated")
        assert parked.task is not None
        assert parked.task.status is TaskStatus.QUEUED
        with lab.worker("-c", "1"):
            story.until("task_complete")
    assert story.of(result) == [
        "task_queued",
        "task_processing",
        "task_updated",
        "task_updated",
        "task_processing",
        *SUCCESS,
    ]


def test_a_run_whose_worker_is_killed_is_told_as_stalled(lab: Lab) -> None:
    story = Story(lab)
    gate = lab.gate()
    with ExitStack() as stack:
        worker = stack.enter_context(lab.worker("-c", "1"))
        result = lab.tasks.hold.options(stall_timeout=0.5).delay(gate.path)
        lab.wait_for_starts(result)
        worker.kill()
        stack.enter_context(lab.worker("-c", "1"))
        lab.wait_for_starts(result, runs=2)
        gate.open()
        story.until("task_complete")
    assert story.of(result) == [*BEGUN, "task_stalled", *BEGUN, *SUCCESS]


def test_a_run_that_a_shutdown_interrupts_is_queued_again(lab: Lab) -> None:
    story = Story(lab)
    result = lab.tasks.hold.delay(lab.gate().path)
    with lab.worker("-c", "1", "--grace", "0") as worker:
        lab.wait_for_starts(result)
        worker.stop()
    story.until("worker_shutdown")
    assert story.of(result) == [*BEGUN, "task_queued"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_is_heard_when_it_starts_and_shuts_down(lab: Lab, number: signal.Signals) -> None:
    story = Story(lab)
    heard: list[Event] = []
    listener = lab.app.listener()
    listener.on("worker_started", heard.append)
    listener.on(EventType.WORKER_SHUTDOWN, heard.append)
    with lab.worker("-c", "3") as worker:
        pid = worker.pid
        story.until("worker_started")
        worker.signal(number)
        worker.wait()
    story.until("worker_shutdown")
    wait_until(lambda: len(heard) == 2, "the callbacks were called", seconds=SOON)
    assert [one.type for one in story.events] == ["worker_started", "worker_shutdown"]
    assert heard == story.events
    for event in heard:
        assert event.task is None
        assert event.queue == "default"
        assert (event.data["pid"], event.data["concurrency"]) == (pid, 3)
    assert heard[0].worker == heard[1].worker


def test_a_worker_is_heard_when_it_pauses_and_goes_on(lab: Lab) -> None:
    story = Story(lab)
    (lab.directory / "paused.py").write_text(PAUSED)
    with Running("paused.py", lab.namespace, lab.url, cwd=lab.directory) as process:
        started = story.until("worker_started")
        paused = story.until("worker_paused")
        (lab.directory / "pause").touch()
        resumed = story.until("worker_resumed")
        (lab.directory / "resume").touch()
        story.until("worker_shutdown")
        assert process.wait() == 0, process.output
    assert started.worker == paused.worker == resumed.worker
    assert [one.type for one in story.events] == [
        "worker_started",
        "worker_paused",
        "worker_resumed",
        "worker_shutdown",
    ]


def test_events_cost_a_worker_nothing_while_nobody_listens(lab: Lab) -> None:
    def calls(command: str) -> int:
        stats: Any = lab.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    with lab.worker("-c", "2"):
        lab.tasks.add.delay(1, 2).wait(SOON)  # counted once in a queue that is new
        before = calls("pubsub|shardnumsub"), calls("spublish")
        lab.tasks.noop.map([()] * 500)
        lab.tasks.flaky.options(error_retry_limit=1, backoff="constant").delay(1)
        lab.wait_for_drain()
        assert (calls("pubsub|shardnumsub"), calls("spublish")) == before
        story = Story(lab)
        lab.tasks.noop.delay()
        story.until("task_complete")
        assert len(story.events) == 4
