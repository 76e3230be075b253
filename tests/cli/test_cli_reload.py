"""`conveyor worker --reload`: its worker follows the files."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from servers import wait_until
from workers import Running

from conveyor import ConfigurationError
from conveyor.cli.reload import Reloader

if TYPE_CHECKING:
    from pathlib import Path

    from workers import Project

SOURCE = """\
from conveyor import Conveyor

app = Conveyor("NAME")


@app.task
def tell() -> str:
    return "{}"
"""


def start(project: Project, *arguments: str) -> Running:
    return project.start("-A", "myapp", "worker", "-c", "1", "--reload", *arguments)


def told(project: Project) -> str:
    return project.conveyor("-A", "myapp", "call", "tell", "--wait=20").out


def test_a_worker_starts_again_when_a_file_changes(project: Project) -> None:
    project.write("myapp.py", SOURCE.format("one"))
    with start(project) as process:
        assert told(project) == '"one"\n'
        (first,) = process.children()
        project.write("myapp.py", SOURCE.format("another"))
        process.wait_for("myapp.py has changed: starting again")
        wait_until(lambda: first not in process.children() and process.children(), "another runs")
        assert told(project) == '"another"\n'
        assert process.stop() == 0
        assert "waiting for a change" not in process.output


def test_a_file_that_is_wrong_waits_to_be_mended(project: Project) -> None:
    project.write("myapp.py", "def half(")
    with start(project) as process:
        process.wait_for("the worker ended with 2; waiting for a change")
        project.write("myapp.py", SOURCE.format("whole"))
        process.wait_for("starting again")
        assert told(project) == '"whole"\n'
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGQUIT, 1)]
)
def test_signals_reach_the_worker(project: Project, number: signal.Signals, code: int) -> None:
    project.write("myapp.py", SOURCE.format("one"))
    with start(project) as process:
        assert told(project)
        process.signal(signal.SIGUSR1)
        process.wait_for("most recent call first")
        assert told(project)
        process.signal(number)
        assert process.wait() == code


def test_a_signal_ends_the_wait_for_a_change(project: Project) -> None:
    project.write("myapp.py", "nonsense")
    with start(project) as process:
        process.wait_for("waiting for a change")
        process.signal(signal.SIGTERM)
        assert process.wait() == 2


def test_a_worker_that_is_done_is_the_end(project: Project) -> None:
    with start(project, "--burst") as process:
        assert process.wait() == 0


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'conveyor-mq\[reload\]'"):
        Reloader(["worker", "--reload"], tmp_path)


def test_a_file_named_like_an_installed_module_does_not_stand_in_for_it(project: Project) -> None:
    project.write("myapp.py", SOURCE.format("one"))
    project.write("redis.py", "raise RuntimeError('not this one')")
    arguments = ("-P", "-m", "conveyor", "-A", "myapp", "worker", "-c", "1", "--reload")
    with Running(*arguments, cwd=project.directory, env=project.env) as process:
        process.wait_for("to stop")
        assert process.stop() == 0
