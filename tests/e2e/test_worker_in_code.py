"""The worker in code: its callbacks, and what may be asked of it. See `worker_in_code.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from worker_in_code import SCENARIOS
from workers import DEADLINE, environment

from conveyor import ConfigurationError, Conveyor, Worker

if TYPE_CHECKING:
    from servers import Server

_numbers = count(1)


@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_a_worker_in_code(server: Server, tmp_path: Path, scenario: str) -> None:
    about = {
        "CONVEYOR_BROKER": server.url,
        "TEST_NAMESPACE": f"in-code-{os.getpid()}-{next(_numbers)}",
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("worker_in_code.py")), scenario],
        cwd=tmp_path,
        env=environment(about),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("idle_timeout", [-1, "soon"])
def test_an_idle_timeout_that_is_none_is_refused(app: Conveyor, idle_timeout: object) -> None:
    with pytest.raises((ConfigurationError, TypeError), match="idle_timeout"):
        Worker(app, on_idle=print, idle_timeout=idle_timeout)  # type: ignore[arg-type]
