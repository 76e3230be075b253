"""What type checkers say of users' code: no error but those that `tests/typing` marks.

A line with errors ends with `# error: CODES OF MYPY | RULES OF PYRIGHT`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "typing"
MARK = "  # error: "

#: By file and line, the codes of the errors there.
Errors = dict[str, set[str]]


def run(tool: str, *arguments: str) -> str:
    """What a checker prints; it fails if it finds an error, or cannot do its work at all."""
    command = [sys.executable, "-m", tool, *arguments, str(FOLDER)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def collected(found: Iterable[tuple[str, int, str]]) -> Errors:
    errors: Errors = defaultdict(set)
    for file, line, code in found:
        if FOLDER in (ROOT / file).parents:
            errors[f"{Path(file).name}:{line}"].add(code)
    return dict(errors)


def marked(column: int) -> Errors:
    errors: Errors = {}
    for file in FOLDER.glob("*.py"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if MARK in line:
                codes = line.partition(MARK)[2].split("|")[column]
                errors[f"{file.name}:{number}"] = set(codes.split())
    assert errors
    return errors


@pytest.mark.timeout(180)
def test_mypy_finds_what_is_marked() -> None:
    lines = run("mypy", "--strict", "--output=json").splitlines()
    found: list[Any] = [json.loads(line) for line in lines if line.startswith("{")]
    errors = [
        (one["file"], one["line"], one["code"]) for one in found if one["severity"] == "error"
    ]
    assert collected(errors) == marked(0)


@pytest.mark.timeout(180)
def test_pyright_finds_what_is_marked() -> None:
    found: list[Any] = json.loads(run("pyright", "--pythonpath", sys.executable, "--outputjson"))[
        "generalDiagnostics"
    ]
    errors = [(one["file"], one["range"]["start"]["line"] + 1, one["rule"]) for one in found]
    assert collected(errors) == marked(1)
