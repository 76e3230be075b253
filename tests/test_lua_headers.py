"""Every Lua script tells what it does, its keys, arguments, reply and invariants, in one form.

A script begins with its ``#!lua`` line, a sentence or two of what it does, and these sections::

    -- USES      record clock              (optional: the libraries put before its body, in order)
    -- KEYS
    --   KEYS[1]  type   what it holds
    -- ARGV
    --   ARGV[1]  unit   what it is         (or ``none``)
    -- RETURNS
    --   the reply
    -- KEEPS
    --   the invariants, by their numbers

A library, in ``lib/``, has no such line and no sections: its header says what it is for, which
libraries it needs (``-- Needs: record, clock.``) and which functions it gives to others
(``-- Gives: finish, fail.``).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import conveyor

FOLDER = Path(conveyor.__file__).parent / "broker" / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.lua"))
LIBRARIES = sorted((FOLDER / "lib").glob("*.lua"))
SECTIONS = ("KEYS", "ARGV", "RETURNS", "KEEPS")

GOOD = """\
#!lua flags=allow-oom
-- Moves what has come due.
--
-- USES      clock
-- KEYS
--   KEYS[1]  hash    the queue's memory
--   KEYS[2]  zset    what is scheduled
-- ARGV
--   ARGV[1]  number  most ids to move;
--                    0 is none
-- RETURNS
--   ids moved
-- KEEPS
--   5 bounded

return move(KEYS[1], KEYS[2], ARGV[1])
"""


def split(source: str) -> tuple[list[str], str]:
    """Return the lines of the comment that the source begins with, bare, and what follows."""
    lines = source.splitlines()
    length = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return [line[2:].rstrip() for line in lines[:length]], "\n".join(lines[length:])


def code_of(body: str) -> str:
    """Return a body without its comments and strings."""
    return re.sub(r"--.*|'[^'\n]*'|\"[^\"\n]*\"", "", body)


def sections_of(header: list[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in header:
        if heading := re.fullmatch(r" ([A-Z]{4,})", line):
            name = heading[1]
            sections[name] = []
        elif not line.startswith(" USES "):
            sections[name].append(line)
    return sections


def faults_of_table(name: str, lines: list[str], code: str) -> list[str]:
    entries = [re.fullmatch(rf"   {name}\[(\d+)\]  (\S+)\s+(\S.*)", line) for line in lines]
    faults = [
        f"{name}: {line!r} is no entry and no continuation"
        for line, entry in zip(lines, entries, strict=True)
        if entry is None and line != "   none" and not line.startswith(" " * 10)
    ]
    documented = [int(entry[1]) for entry in entries if entry]
    if documented != list(range(1, len(documented) + 1)):
        faults.append(f"{name}: the entries are numbered {documented}")
    used = max((int(n) for n in re.findall(rf"\b{name}\[(\d+)\]", code)), default=0)
    if used > len(documented):
        faults.append(f"{name}[{used}] is used and not described")
    if not documented and re.search(rf"\b{name}\b", code):
        faults.append(f"{name} is used and not described")
    return faults


def faults_of_script(source: str) -> list[str]:
    shebang, _, rest = source.partition("\n")
    header, body = split(rest)
    sections = sections_of(header)
    faults: list[str] = []
    if not re.fullmatch(r"#!lua( flags=[a-z,-]*)?", shebang):
        faults.append(f"it begins with {shebang!r}")
    if not re.match(r" [A-Z].*", (sections[""] or [""])[0]):
        faults.append("it does not say what it does")
    if tuple(sections)[1:] != SECTIONS:
        faults.append(f"its sections are {list(sections)[1:]}")
    faults += [f"{name} is empty" for name in SECTIONS if not any(sections.get(name, []))]
    for name in ("KEYS", "ARGV"):
        faults += faults_of_table(name, sections.get(name, []), code_of(body))
    return faults


def functions_of(source: str) -> set[str]:
    return set(re.findall(r"^local function (\w+)", source, re.MULTILINE))


def faults_of_library(source: str, others: str) -> list[str]:
    header = "\n".join(split(source)[0])
    faults: list[str] = []
    if not re.match(r" [A-Z]", header):
        faults.append("it does not say what it is for")
    if re.search(r"^ KEYS$", header, re.MULTILINE):
        faults.append("it has KEYS, which only a script can have")
    called = (name for name in functions_of(source) if re.search(rf"\b{name}\b", others))
    unnamed = sorted(name for name in called if not re.search(rf"\b{name}\b", header))
    if unnamed:
        faults.append(f"it gives, and does not say so: {', '.join(unnamed)}")
    return faults


def needs_of(library: str) -> list[str]:
    header = "\n".join(split((FOLDER / "lib" / f"{library}.lua").read_text())[0])
    needs = re.search(r"^ Needs: (.+)\.$", header, re.MULTILINE)
    return needs[1].split(", ") if needs else []


def test_there_are_scripts() -> None:
    assert SCRIPTS
    assert LIBRARIES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_header_of_a_script(path: Path) -> None:
    assert faults_of_script(path.read_text()) == []


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_the_header_of_a_library(path: Path) -> None:
    others = [other for other in (*SCRIPTS, *LIBRARIES) if other != path]
    code = "\n".join(code_of(other.read_text()) for other in others)
    assert faults_of_library(path.read_text(), code) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_uses_what_its_libraries_need_before_them(path: Path) -> None:
    uses = re.search(r"^-- USES +(.+)$", path.read_text(), re.MULTILINE)
    present: list[str] = []
    for library in uses[1].split() if uses else []:
        assert set(needs_of(library)) <= set(present), f"{library} comes too early"
        present.append(library)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_function_hides_another(path: Path) -> None:
    uses = re.search(r"^-- USES +(.+)$", path.read_text(), re.MULTILINE)
    parts = [FOLDER / "lib" / f"{library}.lua" for library in uses[1].split()] if uses else []
    names = [name for part in (*parts, path) for name in functions_of(part.read_text())]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize("path", [*SCRIPTS, *LIBRARIES], ids=lambda path: path.stem)
def test_no_script_searches_for_keys(path: Path) -> None:
    assert not re.search(r"'(KEYS|SCAN|RANDOMKEY)'", path.read_text())


def test_a_good_header_has_no_faults() -> None:
    assert faults_of_script(GOOD) == []


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_a_fault(section: str) -> None:
    assert faults_of_script(GOOD.replace(f"-- {section}\n", ""))


@pytest.mark.parametrize(
    ("removed", "put", "fault"),
    [
        ("#!lua flags=allow-oom\n", "", "begins with"),
        ("-- Moves what has come due.\n", "", "what it does"),
        ("--   ids moved\n", "", "RETURNS is empty"),
        ("--   KEYS[2]  zset    what is scheduled\n", "", "KEYS[2] is used"),
        ("ARGV[1])", "ARGV[2])", "ARGV[2] is used"),
        ("KEYS[2]  zset ", "KEYS[3]  zset ", "numbered [1, 3]"),
        ("KEYS[1]  hash    the", "KEYS[1] the", "no entry"),
    ],
)
def test_a_fault_is_found(removed: str, put: str, fault: str) -> None:
    assert removed in GOOD
    assert fault in "; ".join(faults_of_script(GOOD.replace(removed, put)))


def test_an_unnamed_function_of_a_library_is_a_fault() -> None:
    library = "-- Ends a task.\n\nlocal function finish() end\nlocal function private() end\n"
    assert faults_of_library(library, "finish()") == ["it gives, and does not say so: finish"]
    assert faults_of_library("-- Ends a task: finish.\n\n" + library, "finish()") == []
