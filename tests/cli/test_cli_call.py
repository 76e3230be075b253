"""`conveyor call`: what is sent, what is printed, and what is said when it cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from conveyor import ConfigurationError
from conveyor.cli import main
from conveyor.cli.apps import find_app
from conveyor.cli.call import find_task
from conveyor.cli.parsing import Exit

if TYPE_CHECKING:
    from workers import Project


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["add", "1", "2", "--wait"], "3"),
        (["--wait", "add", "1", "y=2"], "3"),
        (["--wait=30", "myapp.add", "-1", "2"], "1"),
        (["add", "--wait", "1", "2"], "3"),
        (["add", "--wait=30", "1", "2"], "3"),
        (["double", "21", "--wait", "--after", "0.01"], "42"),
        (["double", "21", "--wait", "--at", "2020-01-01T00:00Z"], "42"),
        (["double", "21", "--wait", "--at", "1600000000.5"], "42"),
        (["moment", "--wait"], '"2027-01-01T00:00:00+00:00"'),
        (["echo", "--wait", "one", "[2]", "three=3"], '[["one", [2]], {"three": 3}]'),
        (["echo", "--wait", "NaN", "[-Infinity]"], '[["NaN", "[-Infinity]"], {}]'),
        (["echo", "--wait", "[" * 5000], f'[["{"[" * 5000}"], {{}}]'),
        (["echo", "--wait", "--", "--wait"], '[["--wait"], {}]'),
    ],
)
def test_with_wait_the_result_alone_is_printed(
    working: Project, arguments: list[str], printed: str
) -> None:
    assert working.conveyor("-A", "myapp", "call", *arguments) == (0, f"{printed}\n", "")


def test_without_wait_it_is_the_id(working: Project) -> None:
    first = working.conveyor("-A", "myapp", "call", "add", "1", "2", "--id", "mine")
    again = working.conveyor("-A", "myapp", "call", "add", "1", "2", "--id", "mine", "--wait")
    other = working.conveyor("-A", "myapp", "call", "add", "1", "3", "--id", "mine")
    assert first == (0, "mine\n", "")
    assert again == (0, "3\n", "mine exists already: nothing was sent\n")
    assert (other.code, other.out) == (1, "")
    assert "'mine'" in other.err


def test_queue_and_priority(working: Project) -> None:
    done = working.conveyor("-A", "myapp", "call", "add", "1", "2", "-Q", "side", "--priority", "9")
    assert done.code == 0
    status = json.loads(working.conveyor("-A", "myapp", "status", "--json").out)
    assert {"name": "side", "queued": 1}.items() <= status["queues"][1].items()


def test_a_failed_task_is_one_line_on_stderr(working: Project) -> None:
    done = working.conveyor("-A", "myapp", "call", "boom", "no luck", "--wait")
    assert (done.code, done.out) == (1, "")
    assert "failed: ValueError: no luck" in done.err
    assert done.err.count("\n") == 1


def test_a_wait_that_is_over(working: Project) -> None:
    done = working.conveyor("-A", "myapp", "call", "add", "1", "2", "--wait=0.1", "-Q", "nobody")
    assert (done.code, done.out) == (1, "")
    assert "no worker listens to 'nobody'" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ad", "1"], "has no task 'ad': did you mean myapp.add?"),
        (["myapp.boo"], "has no task 'myapp.boo': did you mean myapp.boom?"),
        (["add", "1"], "myapp.add(x: int, y: int) -> int: missing a required argument: 'y'"),
        (["add", "1", "2", "3"], "too many positional arguments"),
        (["add", "x=1", "2"], "'2' comes after NAME=ARG"),
        (["add", "x=1", "x=2"], "x= is given twice"),
        (["add", "1", "2", "-Q", "a queue"], "queue 'a queue' is not valid"),
        (["add", "1", "2", "--at", "2027-01-01T08:00"], "has no time zone: add one, 2027-"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_what_cannot_be_sent_is_a_usage_error_of_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-A", "myapp", "call", *arguments]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "app.task(name='a.f')(print); app.task(name='b.f')(input)",
            "'f' may be any of a.f, b.f: say",
        ),
        ("", " has no tasks: its module must import those that have them"),
    ],
)
def test_names_that_do_not_lead_to_one_task(inside: Project, source: str, said: str) -> None:
    inside.write("other.py", f"from conveyor import Conveyor\napp = Conveyor('NAME')\n{source}\n")
    with pytest.raises(ConfigurationError) as caught:
        find_task(find_app("other"), "f")
    assert said in str(caught.value)
