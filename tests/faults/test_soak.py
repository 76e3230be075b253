"""Fault 1 in its short form, and with CONVEYOR_LONG in the environment in its long one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from .checker import repeated_effects
from .lab import LONG, Lab
from .soak import Soak

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


@pytest.mark.timeout(3 * 3600 if LONG else 120)
def test_nothing_is_lost_while_processes_die(server: Server, tmp_path: Path) -> None:
    tasks, rate = (1_000_000, math.inf) if LONG else (30_000, 3_000)
    with Lab(server.url, tmp_path) as lab:
        soak = Soak(lab, tasks, seed=1, rate=rate)
        found = soak.run()
        assert not found, f"{len(found)} violations: " + "; ".join(found[:10])
        assert soak.harms.total() >= 5
        assert repeated_effects(lab.history.read("effect")) <= tasks / 100
