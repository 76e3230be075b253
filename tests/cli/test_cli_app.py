"""Which app ``-A`` finds, and what is said when it finds none."""

from __future__ import annotations

import pytest
from workers import Project

ONE = "from conveyor import Conveyor\n{} = Conveyor('NAME')\n"
TWO = "from conveyor import Conveyor\nfirst = Conveyor('NAME')\nsecond = Conveyor('NAME-2')\n"


@pytest.mark.parametrize(
    ("arguments", "env", "pyproject"),
    [
        ("-A myapp status", {}, ""),
        ("status -A myapp", {}, ""),
        ("status --app=myapp:app", {}, ""),
        ("-A wrong status -A myapp", {}, ""),
        ("status", {"CONVEYOR_APP": "myapp"}, ""),
        ("status", {}, '[tool.conveyor]\napp = "myapp"\n'),
        ("status -A myapp", {"CONVEYOR_APP": "wrong"}, ""),
        ("status", {"CONVEYOR_APP": "myapp"}, '[tool.conveyor]\napp = "wrong"\n'),
    ],
)
def test_ways_to_name_it(
    project: Project, arguments: str, env: dict[str, str], pyproject: str
) -> None:
    if pyproject:
        project.write("pyproject.toml", pyproject)
    done = project.conveyor(*arguments.split(), **env)
    assert done.err == ""
    assert done.out.startswith(f"{project.name} on redis://")


def test_a_pyproject_above_is_found_and_its_directory_importable(project: Project) -> None:
    project.write("pyproject.toml", '[tool.conveyor]\napp = "myapp"\n')
    project.directory = project.directory / "deeper"
    project.directory.mkdir()
    assert project.conveyor("status").code == 0


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (ONE.format("anything"), "other"),
        (TWO + "app = second\n", "other"),
        (TWO, "other:second"),
        (ONE.format("app") + "again = app\n", "other"),
        (
            "import types\n" + ONE.format("app") + "box = types.SimpleNamespace(app=app)",
            "other:box.app",
        ),
    ],
)
def test_which_attribute_it_takes(project: Project, source: str, spec: str) -> None:
    project.write("other.py", source)
    done = project.conveyor("-A", spec, "status")
    second = spec.endswith("second") or "app = second" in source
    assert done.err == ""
    assert done.out.startswith(f"{project.name}{'-2' if second else ''} on ")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("myap", "there is no module 'myap' in {here}, nor among the installed ones: did you mean 'myapp'?"),
        ("zzz", "there is no module 'zzz' in {here}, nor among the installed ones: go where it is"),
        ("myapp.py:app", "there is no module 'myapp.py'"),
        ("./myapp.py:app", "it takes a module, not a file; say -A myapp:app"),
        ("my app", "app 'my app' is not MODULE or MODULE:ATTRIBUTE"),
        ("myapp:ap", "module 'myapp' has no 'ap': did you mean 'app'?"),
        ("myapp:os", "myapp:os is no Conveyor but <module 'os'"),
        ("empty", "there is no app in {here}/empty.py: create one there, app = Conveyor('empty')"),
        ("two", "module 'two' has several apps (first, second): say -A two:first or -A two:second"),
        ("wrong", "{here}/wrong.py, line 2: there is no setting 'retry_limt'"),
        ("script", "module 'script' ended while it was imported (SystemExit: usage: …)"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_a_usage_error_of_one_line(project: Project, spec: str, said: str) -> None:
    project.write("empty.py", "")
    project.write("two.py", TWO)
    project.write("wrong.py", "from conveyor import Conveyor\napp = Conveyor('x', retry_limt=1)\n")
    project.write("script.py", "import sys\nsys.exit('usage: …')\n")
    done = project.conveyor("-A", spec, "status")
    assert (done.code, done.out) == (2, "")
    assert said.format(here=project.directory) in done.err
    assert done.err.count("\n") == 1


def test_without_one_all_ways_to_name_it_are_said(project: Project) -> None:
    done = project.conveyor("worker")
    assert done.code == 2
    assert all(way in done.err for way in ("-A MODULE", "CONVEYOR_APP", "[tool.conveyor]"))
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "headline", "shown"),
    [
        ("def f():\n    return 1 / 0\nf()\n", "(ZeroDivisionError: division by zero)", "return 1 / 0"),
        ("import nothing_there\n", "(ModuleNotFoundError: No module named", "import nothing_there"),
        ("def f(:\n", "(SyntaxError: ", "def f(:"),
    ],
)  # fmt: skip
def test_an_exception_of_the_module_is_shown_with_its_place(
    project: Project, source: str, headline: str, shown: str
) -> None:
    project.write("broken.py", source)
    done = project.conveyor("-A", "broken", "status")
    assert done.code == 2
    assert done.err.startswith(f"conveyor: module 'broken' cannot be imported {headline}")
    assert shown in done.err
    assert "conveyor/cli" not in done.err  # their frames, none of ours


def test_what_is_installed_comes_before_the_current_directory(project: Project) -> None:
    project.write("rich.py", "raise SystemExit('the wrong rich')\n")
    project.write("other.py", "import rich.console\n" + ONE.format("app"))
    assert project.conveyor("-A", "other", "status").code == 0


def test_a_wrong_broker_is_a_usage_error(project: Project) -> None:
    done = project.conveyor("-A", "myapp", "worker", CONVEYOR_BROKER="http://localhost")
    assert done.code == 2
    assert "myapp.py, line 8: broker 'http://localhost' is not a URL" in done.err
    assert done.err.count("\n") == 1
