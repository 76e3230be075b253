"""The documentation's code does what it says: programs run, commands exist.

Each ```python block is a program, run by itself on a server of its own, as ``myapp.py`` in an empty
directory; with ``# with a worker`` in its first line a worker of it runs beside it. What it prints
has the text of each comment behind a ``print(…)``, in their order; in it ``…`` is any text. A block
marked ``no-run`` is only compiled. The README's blocks belong together: see test_readme.py.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

import pytest
from servers import Server
from workers import DEADLINE, ROOT, RunningWorker, environment

from conveyor.cli import load_command
from conveyor.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if not {"_build", "reference"} & set(path.relative_to(DOCS).parts)
]
WITH_WORKER = "# with a worker\n"
#: What the fences of code that no test runs may say.
PLAIN = {"", "text", "toml", "lua", "json", "sh", "dockerfile", "ini"}

_BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_EXPECTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
_VARIABLE = re.compile(r"CONVEYOR_([A-Z_]+)=.*")

_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Block(NamedTuple):
    """A fenced block of a page."""

    name: str
    info: str
    text: str


def blocks(page: Path) -> Iterable[Block]:
    """The blocks of a page, named by page and line."""
    source = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        yield Block(f"{page.relative_to(DOCS)}:{line}", match[2].strip(), match[3])


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_kind(info: str) -> list[Block]:
    """The blocks whose fence says so."""
    return [block for block in BLOCKS if block.info == info]


def named(block: Block) -> str:
    """A test's id."""
    return block.name


@pytest.mark.parametrize("block", of_kind("python"), ids=named)
def test_a_program_runs_and_prints_what_its_comments_say(block: Block, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(block.text, encoding="utf-8")
    with ExitStack() as stack:
        env = {"CONVEYOR_BROKER": stack.enter_context(Server()).url}
        said = ""
        if block.text.startswith(WITH_WORKER):
            worker = stack.enter_context(RunningWorker("myapp", tmp_path, "-c", "2", env=env))
        run = subprocess.run(
            [sys.executable, "-W", "error", "myapp.py"],
            cwd=tmp_path,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if block.text.startswith(WITH_WORKER):
            said = worker.output
    assert run.returncode == 0, run.stderr + said
    missing = missing_lines(run.stdout.splitlines(), _EXPECTED.findall(block.text))
    assert not missing, f"{missing} not in:\n{run.stdout}{said}"


def missing_lines(printed: list[str], expected: list[str]) -> list[str]:
    """Which expected lines were not printed, or not in this order."""
    rest = iter(printed)
    patterns = {line: re.escape(line).replace("…", ".*") for line in expected}
    return [line for line in expected if not any(re.fullmatch(patterns[line], x) for x in rest)]


def test_what_was_not_printed_is_missing() -> None:
    assert missing_lines(["1", "2", "a3b"], ["1", "a…b"]) == []
    assert missing_lines(["1", "2"], ["2", "1"]) == ["1"]


def test_fragments_compile() -> None:
    for block in of_kind("python no-run"):
        compile(block.text, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", of_kind("console"), ids=named)
def test_commands_and_their_options_exist(block: Block) -> None:
    lines = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    assert lines, "a console block has lines that begin with `$ `"
    for line in lines:
        check_line(shlex.split(line, comments=True))


def check_line(words: list[str]) -> None:
    """Fails unless `conveyor` would understand it; lines of other programs are none of ours."""
    words = words[words[0] in ("export", "watch") :]
    settings = {field.name for field in fields(Settings)} | {"broker", "app", "debug"}
    while words and (variable := _VARIABLE.fullmatch(words[0])):
        assert variable[1].lower() in settings, words[0]
        del words[0]
    if not words or words.pop(0) != "conveyor":
        return
    if words[0] in ("-A", "--app"):
        del words[:2]
    command = words.pop(0)
    if command not in ("--help", "--version"):
        load_command(command).make_parser().read([word for word in words if word != "--help"])


def test_every_block_says_what_it_is() -> None:
    run = {"python", "python no-run", "console"}
    others = [one for one in BLOCKS if one.info not in run | PLAIN and one.info[0] != "{"]
    assert others == []


def test_every_guide_is_listed() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [path for path in DOCS.glob("guides/*.md") if f"guides/{path.stem}\n" not in index] == []


def test_the_tests_that_are_named_exist() -> None:
    named = {match.groups() for page in PAGES for match in _TEST.finditer(page.read_text("utf-8"))}
    assert named
    missing = {
        (path, name) for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text()
    }
    assert missing == set()
