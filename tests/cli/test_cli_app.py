"""Which app ``-A`` finds, and what is said when it finds none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conveyor import ConfigurationError
from conveyor.cli.apps import find_app

if TYPE_CHECKING:
    from workers import Project

ONE = "from conveyor import Conveyor\n{} = Conveyor('NAME')\n"
TWO = "from conveyor import Conveyor\nfirst = Conveyor('NAME')\nsecond = Conveyor('NAME-2')\n"


@pytest.mark.parametrize(
    "arguments",
    ["-A myapp status", "status -A myapp", "status --app=myapp:app", "-A x status -A myapp"],
)
def test_it_stands_before_or_after_the_command(project: Project, arguments: str) -> None:
    done = project.conveyor(*arguments.split())
    assert done.err == ""
    assert done.out.startswith(f"{project.name} on redis://")


@pytest.mark.parametrize(
    ("given", "variable", "pyproject"),
    [
        ("myapp", None, ""),
        ("myapp", "wrong", 'app = "wrong"'),
        (None, "myapp", 'app = "wrong"'),
        (None, "", 'app = "myapp"'),
        (None, None, 'app = "myapp:app"'),
    ],
)
def test_where_it_is_named(
    inside: Project,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    variable: str | None,
    pyproject: str,
) -> None:
    inside.write("pyproject.toml", f"[tool.conveyor]\n{pyproject}\n")
    if variable is not None:
        monkeypatch.setenv("CONVEYOR_APP", variable)
    assert find_app(given).name == inside.name


def test_a_pyproject_above_is_found_and_its_directory_importable(
    inside: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.write("pyproject.toml", '[tool.conveyor]\napp = "myapp"\n')
    (inside.directory / "deeper").mkdir()
    monkeypatch.chdir(inside.directory / "deeper")
    assert find_app(None).name == inside.name


@pytest.mark.parametrize(
    ("source", "spec", "suffix"),
    [
        (ONE.format("anything"), "other", ""),
        (TWO + "app = second\n", "other", "-2"),
        (TWO, "other:first", ""),
        (TWO, "other:second", "-2"),
        (ONE.format("one") + "again = one\n", "other", ""),
        (ONE.format("one") + "class Box: app = one\n", "other:Box.app", ""),
    ],
)
def test_which_attribute_it_takes(inside: Project, source: str, spec: str, suffix: str) -> None:
    inside.write("other.py", source)
    assert find_app(spec).name == inside.name + suffix


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("myap", "no module 'myap' in {here}, nor among the installed ones: did you mean 'myapp'?"),
        ("zzz", "no module 'zzz' in {here}, nor among the installed ones: go where it is, or"),
        ("myapp.py:app", "there is no module 'myapp.py'"),
        ("./myapp.py:app", "it takes a module, not a file; say -A myapp:app"),
        ("my app", "app 'my app' is not MODULE or MODULE:ATTRIBUTE"),
        ("myapp:ap", "module 'myapp' has no 'ap': did you mean 'app'?"),
        ("myapp:os", "myapp:os is no Conveyor but <module 'os'"),
        ("empty", "there is no app in {here}/empty.py: create one there, app = Conveyor('empty')"),
        ("two", "'two' has several apps (first, second): say -A two:first or -A two:second"),
        ("wrong", "{here}/wrong.py, line 2: there is no setting 'retry_limt'"),
        ("script", "module 'script' ended while it was imported (SystemExit: usage: …)"),
    ],
)
def test_a_wrong_one_is_answered_with_one_line(inside: Project, spec: str, said: str) -> None:
    inside.write("empty.py", "")
    inside.write("two.py", TWO)
    inside.write("wrong.py", "from conveyor import Conveyor\napp = Conveyor('x', retry_limt=1)\n")
    inside.write("script.py", "import sys\nsys.exit('usage: …')\n")
    with pytest.raises(ConfigurationError) as caught:
        find_app(spec)
    assert said.format(here=inside.directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_one_all_ways_to_name_it_are_said(project: Project) -> None:
    done = project.conveyor("worker")
    assert (done.code, done.out) == (2, "")
    assert all(way in done.err for way in ("-A MODULE", "CONVEYOR_APP", "[tool.conveyor]"))
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "headline", "line"),
    [
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError: division by zero", 2),
        ("\nimport nothing_there\n", "ModuleNotFoundError: No module", 2),
        ("\n\ndef f(:\n", "SyntaxError: ", 3),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one two", 1),
    ],
)
def test_an_exception_of_the_module_is_shown_with_its_place(
    project: Project, source: str, headline: str, line: int
) -> None:
    project.write("broken.py", source)
    done = project.conveyor("-A", "broken", "status")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"conveyor: module 'broken' cannot be imported: {headline}")
    assert f'broken.py, line {line}): see  python -c "import broken"\n' in done.err
    assert done.err.count("\n") == 1


def test_what_is_installed_comes_before_the_current_directory(project: Project) -> None:
    project.write("rich.py", "raise SystemExit('the wrong rich')\n")
    project.write("other.py", "import rich.console\n" + ONE.format("app"))
    assert project.conveyor("-A", "other", "status").code == 0


def test_a_wrong_broker_is_a_usage_error(project: Project) -> None:
    done = project.conveyor("-A", "myapp", "worker", CONVEYOR_BROKER="http://localhost")
    assert (done.code, done.out) == (2, "")
    assert "myapp.py, line 8: broker 'http://localhost' is not a URL" in done.err
    assert done.err.count("\n") == 1
