"""What a run knows, says, returns and raises, through a real worker that all tests here share."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON, Lab
from servers import wait_until

from conveyor import TaskFailed, TaskStatus, constant, exponential

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server


@pytest.fixture(scope="module")
def lab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(server.url, tmp_path_factory.mktemp("runs")) as lab, lab.worker("-c", "2"):
        yield lab


@pytest.mark.parametrize("task", ["say", "asay"])
def test_progress_and_data_can_be_read_while_it_runs(lab: Lab, task: str) -> None:
    gate = lab.gate()
    result = getattr(lab.tasks, task).delay(gate.path)
    wait_until(lambda: result.task().data is not None, "data said", seconds=SOON)

    running = result.task()
    assert (running.status, running.progress, running.data) == (
        TaskStatus.PROCESSING,
        0.5,
        {"stage": "half"},
    )
    gate.open()
    assert result.wait(SOON) == 1
    assert result.progress == 1.0
    assert result.task().data == {"stage": "half"}


def test_run_knows_its_task_its_fence_and_its_headers(lab: Lab) -> None:
    task = lab.tasks.introduce.options(headers={"trace": "17"})
    result = task.delay("hello")
    assert result.wait(SOON) == ["hello", result.id, result.id, 1, {"trace": "17"}]


def test_fence_is_higher_in_every_later_run(lab: Lab) -> None:
    result = lab.tasks.flaky.options(error_retry_limit=2, backoff=constant(0.01)).delay(1)
    assert result.wait(SOON) == 2
    assert [event.fence for event in lab.history.read("start", task_id=result.id)] == [1, 2]


def test_retry_that_a_task_asks_for(lab: Lab) -> None:
    result = lab.tasks.ask_again.options(error_retry_limit=2).delay(2)
    assert result.wait(SOON) == 3
    record = result.task()
    assert (record.error_retries, record.stall_retries) == (2, 0)
    assert [run.outcome for run in record.attempts] == ["error", "error", "success"]
    assert [run.error for run in record.attempts] == ["Retry: not yet 0", "Retry: not yet 1", None]


def test_retry_that_a_task_asks_for_is_limited(lab: Lab) -> None:
    result = lab.tasks.ask_again.options(error_retry_limit=1).delay(5)
    with pytest.raises(TaskFailed, match="not yet 1"):
        result.wait(SOON)
    assert lab.history.count("start", task_id=result.id) == 2


def test_backoff_is_asked_with_the_record_and_the_error(lab: Lab) -> None:
    task = lab.tasks.flaky_soon.options(error_retry_limit=2)
    result = task.delay(2)
    assert result.wait(SOON) == 3
    asked = [event.about for event in lab.history.read("backoff", task_id=result.id)]
    assert asked == [("0", "ValueError"), ("1", "ValueError")]


@pytest.mark.parametrize("backoff", ["nan", "broken"])
def test_backoff_that_fails_gives_way_to_the_default(lab: Lab, backoff: str) -> None:
    task = getattr(lab.tasks, f"flaky_{backoff}").options(error_retry_limit=1)
    assert task.delay(1).wait(SOON) == 2


def test_backoff_of_a_call_goes_before_the_function_of_the_task(lab: Lab) -> None:
    default = exponential(1, maximum=300, jitter=0.1)
    result = lab.tasks.flaky_never.options(error_retry_limit=1, backoff=default).delay(1)
    assert result.wait(SOON) == 2


def test_backoff_may_be_a_timedelta(lab: Lab) -> None:
    result = lab.tasks.flaky_tomorrow.options(error_retry_limit=1).delay(1)
    wait_until(lambda: result.status is TaskStatus.SCHEDULED, "scheduled", seconds=SOON)
    record = result.task()
    assert record.enqueue_after - record.created_at >= timedelta(days=1)


def test_backoff_without_end_waits_without_end(lab: Lab) -> None:
    result = lab.tasks.flaky_never.options(error_retry_limit=1).delay(1)
    wait_until(lambda: result.status is TaskStatus.SCHEDULED, "scheduled", seconds=SOON)
    assert result.task().stall_retries == 0
    assert result.cancel()


@pytest.mark.parametrize(("kind", "starts"), [("ValueError", 3), ("KeyError", 1), ("OSError", 1)])
def test_only_errors_that_are_to_be_retried_are(lab: Lab, kind: str, starts: int) -> None:
    result = lab.tasks.choosy.options(error_retry_limit=2, backoff=constant(0.01)).delay(9, kind)
    with pytest.raises(TaskFailed, match=kind):
        result.wait(SOON)
    assert lab.history.count("start", task_id=result.id) == starts


@pytest.mark.parametrize("task", ["send_more", "asend_more"])
def test_task_sends_another_and_waits_for_it(lab: Lab, task: str) -> None:
    assert getattr(lab.tasks, task).delay(41).wait(SOON) == 42


@pytest.mark.parametrize("size", [0, 1, 32_767, 32_768, 32_769, 300_000, 1_048_000])
def test_payloads_of_any_size_travel_both_ways(lab: Lab, size: int) -> None:
    value = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert lab.tasks.echo.delay(value).wait(SOON) == value


def test_result_over_the_limit_fails_its_task(lab: Lab) -> None:
    result = lab.tasks.return_much.delay(1_048_576)
    with pytest.raises(TaskFailed, match=r"PayloadTooLarge.*over max_payload"):
        result.wait(SOON)


def test_task_that_forks_and_returns_twice_ends_once(lab: Lab) -> None:
    result = lab.tasks.run_twice.delay()
    assert result.wait(SOON) == 1
    wait_until(
        lambda: lab.history.count("effect", task_id=result.id) == 2, "both ran", seconds=SOON
    )
    processes = {event.process for event in lab.history.read("effect", task_id=result.id)}
    assert len(processes) == 2
    record = result.task()
    assert (record.status, len(record.attempts)) == (TaskStatus.SUCCESS, 1)


def test_task_that_forks_and_raises_twice_ends_once(lab: Lab) -> None:
    result = lab.tasks.fail_twice.delay()
    with pytest.raises(TaskFailed, match="on both sides"):
        result.wait(SOON)
    assert len(result.task().attempts) == 1


def test_programs_that_a_task_starts_hear_signals(lab: Lab) -> None:
    assert lab.tasks.start_program.delay().wait(SOON) == [7, -15]


def test_a_later_run_knows_what_the_one_before_has_left(lab: Lab) -> None:
    with lab.worker("-c", "1"):
        result = lab.tasks.recall.options(error_retry_limit=1).delay()
        assert result.wait(SOON) == [{"done": 3}, 0.5, "Retry: to go on from there", 1]
