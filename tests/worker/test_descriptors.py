"""The limit of open files is raised as far as a worker's children need it, and no further."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import resource
from conveyor.worker.descriptors import make_room
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
make_room({children})
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "children", "after"),
    [(256, 4096, 100, 1212), (256, 600, 100, 600), (2000, 4096, 100, 2000)],
)
def test_room_for_children(soft: int, hard: int, children: int, after: int) -> None:
    script = _SCRIPT.format(soft=soft, hard=hard, children=children)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(after), str(hard)]
