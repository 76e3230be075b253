"""Every example runs and prints what its docstring says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def expected_output(source: str) -> str:
    """The indented lines that an example's docstring ends with."""
    text = (ast.get_docstring(ast.parse(source), clean=False) or "").rstrip()
    block = re.search(r"(?:^    .*\n?)+\Z", text, re.MULTILINE)
    assert block, "the docstring ends with what the example prints, indented by four"
    return "\n".join(line[4:] for line in block[0].splitlines())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(path: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if "CONVEYOR" not in name}
    environ["CONVEYOR_BROKER"] = f"embedded://{tmp_path}/server"
    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.stdout.strip() == expected_output(path.read_text()), run.stderr
    assert run.returncode == 0
