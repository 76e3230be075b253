"""CONVEYOR_DEBUG: which loggers it turns on, where their lines go, in callers and workers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from workers import ROOT, Project

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

CALLER = """
import logging, sys
from myapp import add, app
SETUP
with app:
    print(add.delay(1, 2).id)
for name in sys.argv[1:]:
    print(logging.getLogger(name).getEffectiveLevel())
"""


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Project:
    project = Project(tmp_path, server.url)
    project.write("caller.py", CALLER.replace("SETUP", ""))
    return project


def test_a_caller_shows_what_it_sends(project: Project) -> None:
    assert project.python("caller.py").err == ""
    done = project.python("caller.py", CONVEYOR_DEBUG="conveyor.*")
    assert f"DEBUG   conveyor.client sending myapp.add[{done.out[:8]}] to default" in done.err
    assert done.err.count("sending") == 1


def test_a_program_with_logging_of_its_own_shows_each_line_once(project: Project) -> None:
    setup = 'logging.basicConfig(format="own %(message)s")'
    project.write("caller.py", CALLER.replace("SETUP", setup))
    done = project.python("caller.py", CONVEYOR_DEBUG="conveyor.client")
    assert done.err == f"own sending myapp.add[{done.out[:8]}] to default\n"


@pytest.mark.parametrize(
    ("patterns", "on"),
    [
        ("conveyor.*", {"conveyor.client", "conveyor.link", "conveyor.task.myapp.add"}),
        ("conveyor", {"conveyor.client", "conveyor.link", "conveyor.task.myapp.add"}),
        ("conveyor.link", {"conveyor.link"}),
        ("conveyor.link, conveyor.client", {"conveyor.link", "conveyor.client"}),
        ("conveyor.task.*", {"conveyor.task.myapp.add"}),
        ("conveyor.task.myapp.*", {"conveyor.task.myapp.add"}),
        ("conveyor.*nt", {"conveyor.client"}),
        ("conveyor.*k", {"conveyor.link"}),
    ],
)
def test_patterns(project: Project, patterns: str, on: set[str]) -> None:
    names = ["conveyor.client", "conveyor.link", "conveyor.task.myapp.add"]
    done = project.python("caller.py", *names, CONVEYOR_DEBUG=patterns)
    levels = dict(zip(names, done.out.split()[1:], strict=True))
    assert {name for name, level in levels.items() if level == "10"} == on


def test_a_pattern_that_names_nothing_is_told(project: Project) -> None:
    done = project.python("caller.py", CONVEYOR_DEBUG="celery.*")
    assert "CONVEYOR_DEBUG=celery.* names no logger of ours: use conveyor.*" in done.err


def test_a_worker_shows_what_its_loggers_say(project: Project) -> None:
    project.python("caller.py")
    done = project.conveyor("-A", "myapp", "worker", "--burst", "-c", "1")
    assert done.code == 0
    assert "DEBUG" not in done.err
    project.python("caller.py")
    done = project.conveyor(
        "-A", "myapp", "worker", "--burst", "-c", "1", CONVEYOR_DEBUG="conveyor.worker"
    )
    assert re.search(r"DEBUG +child \d+ started", done.err)
    assert re.search(r"DEBUG +myapp.add\[\w{8}\] succeeded in", done.err)
    assert done.err.count(" succeeded in") == 1


def test_every_logger_is_in_the_guide() -> None:
    used = {
        name
        for path in (ROOT / "conveyor").rglob("*.py")
        for name in re.findall(r'getLogger\(f?"([a-z._]+?)\.?[{"]', path.read_text())
    }
    guide = (ROOT / "docs" / "guides" / "debugging.md").read_text()
    assert used
    assert [name for name in sorted(used) if f"| `{name}` |" not in guide] == []
