"""The history of a task's runs, as a real worker writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from servers import wait_until
from workers import Project

from conveyor import Attempt, Conveyor, TaskStatus, constant

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

SOON = 40.0

#: Each run of a task ends in the way that its argument names for it.
SOURCE = """
import os, signal, time
from conveyor import Conveyor, current_task

app = Conveyor("NAME")

@app.task
def run(ends: list[str]) -> str:
    end = ends[current_task().fence - 1]
    if end == "error":
        raise ValueError(end)
    if end == "timeout":
        time.sleep(60)
    if end == "killed":
        sum(range(10**12))
    if end == "stall":
        os._exit(3)
    if end == "interrupted":
        os.kill(os.getppid(), signal.SIGQUIT)
        time.sleep(60)
    return end
"""


def task_of(app: Conveyor) -> Any:
    @app.task(name="myapp.run", backoff=constant(0), execution_timeout=1.0)
    def run(ends: list[str]) -> str: ...  # type: ignore[empty-body]

    return run


@pytest.mark.parametrize("args", [(), ("--threads", "2")])
def test_attempts_of_every_kind(server: Server, tmp_path: Path, args: tuple[str, ...]) -> None:
    project = Project(tmp_path, server.url, SOURCE)
    with Conveyor(project.name, broker=server.url) as app:
        run = task_of(app).options(error_retry_limit=5, stall_retry_limit=5)
        ends = ["error", "killed", "stall", "interrupted", "error", "timeout", "success"]
        result = run.delay(ends)
        with project.worker("-c", "1", *args, up=False) as worker:
            assert worker.wait() == 1  # the fourth run has it end what runs
        assert result.status is TaskStatus.QUEUED
        with project.worker("-c", "1", *args):
            assert result.wait(SOON) == "success"
        record = result.task()
    assert record is not None
    names = {"killed": "timeout"}
    assert [one.outcome for one in record.attempts] == [names.get(end, end) for end in ends]
    assert all(isinstance(one, Attempt) for one in record.attempts)
    starts = [one.started_at for one in record.attempts]
    assert starts == sorted(starts)
    assert all(one.started_at <= one.ended_at for one in record.attempts)
    workers = [one.worker for one in record.attempts]
    assert len(set(workers[:4])) == len(set(workers[4:])) == 1
    assert workers[0] != workers[4] == record.worker
    kinds = [(one.error or "None").partition(":")[0] for one in record.attempts]
    assert " ".join(kinds) == (
        "ValueError TaskTimeout TaskStalled TaskInterrupted ValueError TaskTimeout None"
    )
    assert "raise ValueError(end)" in (record.attempts[0].traceback or "")
    assert (record.error_retries, record.stall_retries, record.interruptions) == (4, 1, 1)


@pytest.mark.parametrize(
    "limits",
    [
        {"retry_limit": 0},
        {"retry_limit": 0, "stall_retry_limit": 3},
        {"error_retry_limit": 0, "stall_retry_limit": 0},
    ],
)
def test_a_run_without_a_retry_is_not_begun_again_after_an_interruption(
    server: Server, tmp_path: Path, limits: dict[str, int]
) -> None:
    project = Project(tmp_path, server.url, SOURCE)
    with Conveyor(project.name, broker=server.url) as app:
        result = task_of(app).options(**limits).delay(["interrupted", "success"])
        with project.worker("-c", "1", up=False) as worker:
            worker.wait()
        wait_until(lambda: result.status.ended, "it has ended", seconds=SOON)
        record = result.task()
    assert record is not None
    assert record.status is TaskStatus.FAILED
    assert str(record.error).startswith("TaskInterrupted")
    assert [one.outcome for one in record.attempts] == ["interrupted"]
