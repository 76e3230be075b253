"""The README's code does what it says: its files run, and print what their comments announce."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from workers import ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")
_EXPECTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
_COMMAND = re.compile(r"^\$ conveyor (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return [text for found, text in _BLOCK.findall(README) if found == language]


FILES = {match[1]: text for text in blocks("python") if (match := _FILE.match(text))}
COMMANDS = [found for text in blocks("console") for found in _COMMAND.findall(text)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Who has typed in all files and started the worker, with no server set up."""
    project = Project(tmp_path_factory.mktemp("reader"), None)
    for name, text in FILES.items():
        project.write(name, text)
    assert COMMANDS[0] == ("-A myapp worker", "")
    with project.worker():
        yield project


def test_every_python_block_is_a_file() -> None:
    assert len(FILES) == len(blocks("python")) == 3


@pytest.mark.parametrize("name", [name for name in FILES if name != "myapp.py"])
def test_a_file_prints_what_its_comments_say(reader: Project, name: str) -> None:
    done = reader.python(name)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == _EXPECTED.findall(FILES[name])


@pytest.mark.parametrize(("command", "printed"), COMMANDS[1:])
def test_a_command_prints_what_follows_it(reader: Project, command: str, printed: str) -> None:
    assert printed
    assert reader.conveyor(*shlex.split(command)) == (0, printed, "")


def test_the_commands_of_the_table_exist(reader: Project) -> None:
    named = re.findall(r"^\| `conveyor (?:-A myapp )?(\w+)", README, re.MULTILINE)
    assert len(named) == 6
    for command in named:
        assert reader.conveyor(command, "--help").code == 0


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_lines_that_install_are_what_ci_expects() -> None:
    demo, tests = (text.strip() for text in blocks("sh"))
    start = "python3 -m venv .venv && .venv/bin/pip install -q -e "
    assert demo == f"{start}'.[embedded,fast]' && .venv/bin/conveyor demo"
    assert tests == f"{start}'.[dev,embedded,fast]' && .venv/bin/pytest"
