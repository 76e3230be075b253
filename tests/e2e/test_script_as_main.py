"""A script that is run as a program sends tasks that a worker of its module knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers import Project

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

SCRIPT = """
from dataclasses import dataclass

from conveyor import Conveyor

app = Conveyor("NAME")

@dataclass
class Point:
    x: int
    y: int

@app.task
def mirrored(point: Point) -> Point:
    return Point(point.y, point.x)

if __name__ == "__main__":
    result = mirrored.delay(Point(1, 2))
    print(result.task().name, result.wait(30))
"""


def test_a_script_reaches_a_worker_of_its_module(server: Server, tmp_path: Path) -> None:
    project = Project(tmp_path, server.url, SCRIPT)
    with project.worker("-c", "1"):
        assert project.python("myapp.py") == (0, "myapp.mirrored Point(x=2, y=1)\n", "")


def test_a_module_of_a_package_reaches_it_too(server: Server, tmp_path: Path) -> None:
    project = Project(tmp_path, server.url, "from shop.tasks import app\n")
    (tmp_path / "shop").mkdir()
    project.write("shop/__init__.py", "")
    project.write("shop/tasks.py", SCRIPT)
    with project.worker("-c", "1"):
        done = project.python("-m", "shop.tasks")
        assert done == (0, "shop.tasks.mirrored Point(x=2, y=1)\n", "")


def test_on_the_embedded_server_they_meet_wherever_they_were_started(tmp_path: Path) -> None:
    project = Project(tmp_path, None, SCRIPT)
    (tmp_path / "elsewhere").mkdir()
    with project.worker("-c", "1"):
        project.directory = tmp_path / "elsewhere"
        assert project.python("../myapp.py") == (0, "myapp.mirrored Point(x=2, y=1)\n", "")
    assert (tmp_path / ".conveyor").is_dir()
    assert not (tmp_path / "elsewhere" / ".conveyor").exists()
