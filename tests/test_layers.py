"""Dependencies between modules point down only, as pyproject.toml says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def copy_of_the_package(folder: Path, *, changed: str, line: str) -> Path:
    for source in (ROOT / "pyproject.toml", *(ROOT / "conveyor").rglob("*.py")):
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    with (folder / "conveyor" / changed).open("a") as module:
        module.write(line)
    return folder


def test_the_package_keeps_its_layers() -> None:
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_an_import_upwards_is_noticed(tmp_path: Path) -> None:
    package = copy_of_the_package(
        tmp_path, changed="moments.py", line="from conveyor.settings import Settings\n"
    )
    linted = lint_imports(package)
    assert linted.returncode == 1
    assert "conveyor.moments -> conveyor.settings" in linted.stdout


def test_the_app_is_not_imported_through_the_package_either(tmp_path: Path) -> None:
    package = copy_of_the_package(
        tmp_path, changed="task.py", line="from conveyor import Conveyor\n"
    )
    assert lint_imports(package).returncode == 1


def test_a_module_outside_the_layers_is_noticed(tmp_path: Path) -> None:
    package = copy_of_the_package(tmp_path, changed="stray.py", line="import json\n")
    linted = lint_imports(package)
    assert linted.returncode == 1
    assert "stray" in linted.stdout
