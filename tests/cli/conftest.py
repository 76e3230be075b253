"""A user's directory, and for the tests that only read, one with a worker that they share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from workers import Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server


@pytest.fixture
def project(tmp_path: Path, server: Server) -> Project:
    """A directory of its own with a ``myapp.py``."""
    return Project(tmp_path, server.url)


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The same, with this process in it: for what a process of its own would only make slower."""
    monkeypatch.chdir(project.directory)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("CONVEYOR_APP", "CONVEYOR_BROKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONVEYOR_BROKER", project.env["CONVEYOR_BROKER"])
    yield project
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(str(project.directory)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Project]:
    """One whose worker runs, shared by the tests of a file."""
    project = Project(tmp_path_factory.mktemp("working"), server.url)
    with project.worker("-c", "1"):
        yield project
