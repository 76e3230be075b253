"""`conveyor server`: the embedded one, by app and by directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from workers import Project

from conveyor.broker import embedded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def alone(tmp_path: Path) -> Project:
    """A directory whose app uses the embedded server."""
    return Project(tmp_path, None)


def test_from_start_to_stop(alone: Project) -> None:
    directory = alone.directory / ".conveyor"
    by_app = ("-A", "myapp", "server")
    assert alone.conveyor(*by_app, "status") == (3, f"not running: {directory}\n", "")
    assert not directory.exists()
    try:
        started = alone.conveyor(*by_app, "start")
        found = alone.conveyor("server", "status", "--dir", str(directory), "--json")
        sent = alone.conveyor("-A", "myapp", "call", "add", "1", "2")
    finally:
        stopped = alone.conveyor("server", "stop", "--dir", str(directory))
    assert (started.code, started.err, sent.code) == (0, "", 0)
    assert f"unix://{directory}/server.sock" in started.out
    assert "until `conveyor server stop`" in started.out
    assert found.code == 0
    assert json.loads(found.out)["running"] is True
    assert stopped == (0, f"stopped: {directory}\n", "")
    assert not embedded.status(directory).running
    assert alone.conveyor(*by_app, "stop") == (0, f"not running: {directory}\n", "")


def test_a_server_that_is_not_ours(project: Project) -> None:
    done = project.conveyor("-A", "myapp", "server", "stop")
    assert done.code == 2
    assert "uses redis://127.0.0.1:" in done.err
    assert "not ours to start or stop" in done.err
    assert done.err.count("\n") == 1


def test_a_directory_that_is_none(alone: Project) -> None:
    done = alone.conveyor("server", "start", "--dir", "myapp.py")
    assert done.code == 2
    assert "myapp.py is no directory" in done.err
