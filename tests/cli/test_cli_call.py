"""`conveyor call`: what is sent, what is printed, and what is said when it cannot be."""

from __future__ import annotations

import json

import pytest
from workers import Project

pytestmark = pytest.mark.usefixtures("working")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["add", "1", "2", "--wait"], "3"),
        (["--wait", "add", "1", "y=2"], "3"),
        (["--wait", "30", "myapp.add", "-1", "2"], "1"),
        (["add", "--wait=30", "1", "2"], "3"),
        (["double", "21", "--wait", "--after", "0.01"], "42"),
        (["double", "21", "--wait", "--at", "2020-01-01T00:00Z"], "42"),
        (["moment", "--wait"], '"2027-01-01T00:00:00+00:00"'),
        (["echo", "--wait", "one", "[2]", "three=3"], '[["one", [2]], {"three": 3}]'),
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


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["boom", "no luck", "--wait"], 1, "failed: ValueError: no luck"),
        (["add", "1", "2", "--wait", "0.1", "-Q", "nobody"], 1, "no worker listens to 'nobody'"),
        (["ad", "1"], 2, "has no task 'ad': did you mean myapp.add?"),
        (["myapp.boo"], 2, "has no task 'myapp.boo': did you mean myapp.boom?"),
        (["add", "1"], 2, "myapp.add(x: int, y: int) -> int: missing a required argument: 'y'"),
        (["add", "1", "2", "3"], 2, "too many positional arguments"),
        (["add", "x=1", "2"], 2, "'2' comes after NAME=ARG"),
        (["add", "x=1", "x=2"], 2, "x= is given twice"),
        (["add", "1", "2", "-Q", "a queue"], 2, "queue 'a queue' is not valid"),
        (["add", "1", "2", "--at", "2027-01-01T08:00"], 2, "has no time zone: add one, 2027-"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    working: Project, arguments: list[str], code: int, said: str
) -> None:
    done = working.conveyor("-A", "myapp", "call", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_last_part_that_two_tasks_have(working: Project) -> None:
    working.write(
        "twins.py",
        """
        from conveyor import Conveyor
        app = Conveyor("NAME")
        for name in ("a.add", "b.add"):
            app.task(name=name)(lambda: None)
        """,
    )
    done = working.conveyor("-A", "twins", "call", "add")
    assert done.code == 2
    assert "'add' may be any of a.add, b.add: say which" in done.err


def test_an_app_without_tasks(working: Project) -> None:
    working.write("bare.py", "from conveyor import Conveyor\napp = Conveyor('bare')\n")
    done = working.conveyor("-A", "bare", "call", "add")
    assert done.code == 2
    assert "bare has no tasks: its module must import" in done.err


def test_an_unreachable_server(working: Project) -> None:
    done = working.conveyor(
        "-A", "myapp", "call", "moment", CONVEYOR_BROKER="redis://:pw@127.0.0.1:1"
    )
    assert (done.code, done.out) == (3, "")
    assert "cannot reach redis://127.0.0.1:1" in done.err
    assert "pw" not in done.err
    assert done.err.count("\n") == 1
