"""A lab of its own for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Iterator[Lab]:
    """One on the shared server."""
    with Lab(server.url, tmp_path) as lab:
        yield lab
