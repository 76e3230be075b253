"""Children that begin slowly, that end unheard, and what they inherit of their parent."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON
from workers import Project

from conveyor import Conveyor

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

SOURCE = """
import os, signal, time
from conveyor import Conveyor, Plugin

print("imported once")
signal.signal(signal.SIGCHLD, signal.SIG_IGN if os.environ.get("DEAF") else signal.SIG_DFL)

class Slow(Plugin):
    def on_child_start(self):
        time.sleep(float(os.environ.get("SLOW", 0)))

app = Conveyor("NAME", plugins=[Slow()])

@app.task(stall_retry_limit=1)
def where(dies: bool = False) -> int:
    if dies:
        os._exit(1)
    return os.getpid()

@app.task
async def awhere() -> int:
    return os.getpid()
"""


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Project:
    return Project(tmp_path, server.url, SOURCE)


@pytest.mark.parametrize(("task", "most"), [("where", 1), ("awhere", 5)])
def test_children_that_begin_slowly_run_what_they_may_before_they_are_replaced(
    project: Project, server: Server, task: str, most: int
) -> None:
    project.env["SLOW"] = "0.3"
    options = ("-c", "1", "--max-tasks-per-child", str(most))
    with Conveyor(project.name, broker=server.url) as app, project.worker(*options) as worker:
        results = app.manager().enqueue_tasks([{"task": f"myapp.{task}"}] * 3 * most)
        runs = Counter(one.wait(SOON) for one in results)
        assert list(runs.values()) == [most] * 3
        assert worker.stop() == 0


def test_output_that_is_buffered_is_written_once(project: Project, server: Server) -> None:
    project.env["PYTHONUNBUFFERED"] = ""
    options = ("-c", "1", "--max-tasks-per-child", "1")
    with Conveyor(project.name, broker=server.url) as app, project.worker(*options) as worker:
        for _ in range(3):
            app.manager().enqueue_task("myapp.where").wait(SOON)
        assert worker.stop() == 0
        assert worker.output.count("imported once") == 1


def test_a_child_dies_while_sigchld_is_ignored(project: Project, server: Server) -> None:
    project.env["DEAF"] = "1"
    with Conveyor(project.name, broker=server.url) as app, project.worker("-c", "1") as worker:
        dying = app.manager().enqueue_task("myapp.where", (True,), retry_limit=0)
        record = app.manager().on_task_complete(dying.id, SOON)
        assert "TaskStalled" in (record.error or "")
        assert app.manager().enqueue_task("myapp.where").wait(SOON)
        assert worker.stop() == 0
