"""`conveyor status`: the same facts as a table, as plain columns and as JSON."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from servers import wait_until
from workers import Project, environment

from conveyor.cli.status import _COUNTS, _WORKER, Status, render


def read(project: Project) -> dict[str, Any]:
    done = project.conveyor("-A", "myapp", "status", "--json")
    assert (done.code, done.err) == (0, "")
    return dict(json.loads(done.out))


def test_before_anything_was_sent(project: Project) -> None:
    found = read(project)
    assert (found["app"], found["namespace"]) == (project.name, project.name)
    assert found["workers"] == found["parked"] == []
    assert found["queues"] == [
        {"name": "default", "scheduled": 0, "queued": 0, "processing": 0, "success": 0}
        | {"failed": 0, "cancelled": 0, "parked": 0, "rate": 0.0}
    ]


def test_counts_workers_and_what_is_parked(project: Project) -> None:
    project.write("newer.py", "from myapp import app\n@app.task\ndef fresh(): ...\n")
    with project.worker("-c", "1", "--threads", "2", "-Q", "default,low") as worker:
        for name in ("moment", "boom"):
            project.conveyor("-A", "myapp", "call", name, "--wait")
        project.conveyor("-A", "newer", "call", "fresh", "--id", "early")
        project.conveyor("-A", "myapp", "call", "moment", "--after", "3600")
        worker.wait_for("is parked until a worker knows it")
        found = read(project)
        plain = project.conveyor("-A", "myapp", "status")
    default, low = found["queues"]
    assert (default.pop("name"), low["name"]) == ("default", "low")
    assert (default.pop("rate") > 0, low["rate"]) == (True, 0.0)
    assert default == {"scheduled": 1, "queued": 1, "processing": 0, "success": 1} | {
        "failed": 1, "cancelled": 0, "parked": 1}  # fmt: skip
    (one,) = found["workers"]
    assert (one["pid"], one["paused"]) == (worker.pid, False)
    assert (one["queues"], one["concurrency"], one["threads"]) == (["default", "low"], 1, 2)
    assert found["parked"] == [
        {"queue": "default", "id": "early", "reason": "this worker does not know newer.fresh"}
    ]
    assert "early  this worker does not know newer.fresh" in plain.out
    assert f"  {worker.pid}  default, low  " in plain.out


def test_headings_stay_whole_on_a_narrow_terminal() -> None:
    queue = dict.fromkeys(("name", *_COUNTS, "rate"), 0) | {"name": "default"}
    worker = dict.fromkeys(("id", *_WORKER), "yes") | {"id": "0123abcd", "host": "machine-1"}
    status = Status("app", "app", "redis://localhost", [queue], [worker], [])
    with StringIO() as screen:
        console = Console(width=80, file=screen, force_terminal=True, color_system=None)
        console.print(render(status, console))
        shown = screen.getvalue()
    assert all(heading in shown.split() for heading in ("queue", *_COUNTS, "runs/s", *_WORKER))


def test_plain_columns_in_a_pipe(project: Project) -> None:
    done = project.conveyor("-A", "myapp", "status", COLUMNS="20")
    heading, counts, workers = done.out.splitlines()[1:]
    assert heading.split() == [
        *("queue", "scheduled", "queued", "processing", "success", "failed", "cancelled", "parked"),
        "runs/s",
    ]
    assert counts.split() == ["default", *["0"] * 7, "0.0"]
    assert workers == "no worker is running: start one with `conveyor worker`"
    assert done.out.isascii()


@pytest.mark.parametrize(("arguments", "text"), [(["--json"], '"queued": '), ([], "no worker is")])
def test_it_is_watched_until_it_is_interrupted(
    project: Project, arguments: list[str], text: str
) -> None:
    with project.start("-A", "myapp", "status", "--watch", "0.05", *arguments) as watching:
        wait_until(lambda: watching.output.count(text) > 2, "shown again and again")
        project.conveyor("-A", "myapp", "call", "moment")
        watching.wait_for('"queued": 1' if arguments else "  1  ")
        watching.signal(signal.SIGINT)
        assert watching.wait() == 0


def test_a_table_on_a_terminal(project: Project) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "conveyor", "-A", "myapp", "status"]
    env = environment(project.env | {"TERM": "xterm"})
    subprocess.run(command, cwd=project.directory, env=env, stdout=theirs, check=True)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert "───" in shown.decode()
