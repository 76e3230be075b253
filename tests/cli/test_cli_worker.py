"""`conveyor worker` and `conveyor beat`, as whoever starts them sees them."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from servers import Server, wait_until
from workers import TASKS

if TYPE_CHECKING:
    from workers import Project


def test_its_banner(project: Project) -> None:
    with project.worker("-c", "1", "-Q", "high:3,default:1", "--no-beat") as worker:
        banner = worker.output.partition("\n\n")[0]
        assert worker.stop() == 0
    broker = project.env["CONVEYOR_BROKER"]
    assert f"app       {project.name} ({project.directory}/myapp.py)" in banner
    assert f"server    {broker}\n" in banner
    assert "queues    high (weight 3), default (weight 1)\n" in banner
    assert "children  1, each with 1 task at once and 100 `async def` ones\n" in banner
    assert "tasks     myapp.add, myapp.boom, myapp.double, myapp.echo, myapp.hold, " in banner
    assert "beat      no" in banner
    assert "press Ctrl-C" in banner


def test_its_banner_keeps_the_password(project: Project) -> None:
    with project.start(
        *("-A", "myapp", "worker", "-c", "1"), CONVEYOR_BROKER="redis://me:secret@127.0.0.1:1/0"
    ) as worker:
        worker.wait_for("cannot reach redis://127.0.0.1:1/0")
        assert worker.stop() == 0
        assert "secret" not in worker.output


def test_embedded_it_says_so_and_how_to_use_another(project: Project) -> None:
    project.env = {}
    with project.worker("-c", "1") as worker:
        done = project.conveyor("-A", "myapp", "call", "add", "1", "2", "--wait=20")
        assert worker.stop() == 0
        assert f"embedded, in {project.directory}/.conveyor" in worker.output
        assert "CONVEYOR_BROKER=redis://" in worker.output
    assert done == (0, "3\n", "")


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 0),
        ([signal.SIGINT], 0),
        ([signal.SIGINT, signal.SIGINT], 1),
        ([signal.SIGQUIT], 1),
    ],
)
def test_signals_and_exit_codes(project: Project, signals: list[signal.Signals], code: int) -> None:
    with project.worker("-c", "1", "--grace", "0.2" if code == 0 else "30") as worker:
        done = project.conveyor("-A", "myapp", "call", "hold", "--id", "held")
        worker.wait_for("holding")
        for number in signals:
            worker.signal(number)
            worker.wait_for(number.name)
        assert worker.wait() == code
    assert done.code == 0
    status = json.loads(project.conveyor("-A", "myapp", "status", "--json").out)
    assert status["queues"][0]["queued"] == 1
    assert status["workers"] == []


def test_what_a_task_prints_is_seen_at_once(project: Project) -> None:
    project.env["PYTHONUNBUFFERED"] = ""
    project.write("myapp.py", TASKS.replace('ctx.log.info("holding")', 'print("begun")'))
    with project.worker("-c", "1") as worker:
        project.conveyor("-A", "myapp", "call", "hold")
        worker.wait_for("begun")


def test_burst_ends_when_the_queues_are_empty(project: Project) -> None:
    project.conveyor("-A", "myapp", "call", "add", "1", "2", "--id", "a")
    project.conveyor("-A", "myapp", "call", "boom", "-Q", "low", "--id", "b")
    done = project.conveyor("-A", "myapp", "worker", "-c", "1", "--burst", "-Q", "default,low")
    assert done.code == 0
    assert "myapp.boom[b] raised ValueError: bad" in done.err
    status = json.loads(project.conveyor("-A", "myapp", "status", "--json").out)
    assert [(queue["success"], queue["failed"]) for queue in status["queues"]] == [(1, 0), (0, 1)]


def test_json_logs_are_one_object_a_line(project: Project) -> None:
    project.conveyor("-A", "myapp", "call", "boom", "two\nlines", "--id", "b")
    project.conveyor("-A", "myapp", "call", "hold", "0", "--id", "h")
    done = project.conveyor(
        *("-A", "myapp", "worker", "-c", "1", "--burst", "--log-format", "json", "-l", "debug")
    )
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = {"task": "myapp.boom", "id": "b", "queue": "default"}
    assert any(line.items() >= about.items() for line in lines)
    (said,) = [line for line in lines if line["message"] == "holding"]
    assert said.items() >= {"task": "myapp.hold", "id": "h", "queue": "default"}.items()
    assert done.code == 0


def test_the_log_level_is_the_apps_unless_given(project: Project) -> None:
    project.conveyor("-A", "myapp", "call", "hold", "0")
    project.conveyor("-A", "myapp", "call", "hold", "0", "-Q", "low")
    quiet = project.conveyor(
        *("-A", "myapp", "worker", "--burst", "-c", "1"), CONVEYOR_LOG_LEVEL="ERROR"
    )
    loud = project.conveyor(
        *("-A", "myapp", "worker", "--burst", "-c", "1", "-Q", "low", "-l", "info"),
        CONVEYOR_LOG_LEVEL="ERROR",
    )
    assert "holding" not in quiet.err
    assert "INFO    holding" in loud.err


def test_a_server_that_is_down_is_waited_for(project: Project) -> None:
    with Server() as server:
        project.env = {"CONVEYOR_BROKER": server.url}
        server.kill()
        with project.worker("-c", "1") as worker:
            worker.wait_for(f"cannot reach {server.url}")
            server.restart()
            done = project.conveyor("-A", "myapp", "call", "add", "1", "2", "--wait=30")
            worker.wait_for("is back")
            assert worker.stop() == 0
            assert worker.output.count("cannot reach") == 1
    assert done == (0, "3\n", "")


def test_an_embedded_server_that_does_not_answer_yet_is_waited_for(project: Project) -> None:
    project.env = {}
    assert project.conveyor("-A", "myapp", "server", "start").code == 0
    status = json.loads(project.conveyor("-A", "myapp", "server", "status", "--json").out)
    os.kill(status["pid"], signal.SIGSTOP)
    try:
        with project.worker("-c", "1") as worker:
            worker.wait_for("does not answer after")
            os.kill(status["pid"], signal.SIGCONT)
            worker.wait_for("is back")
            done = project.conveyor("-A", "myapp", "call", "add", "1", "2", "--wait=30")
            assert worker.stop() == 0
    finally:
        os.kill(status["pid"], signal.SIGCONT)
        assert project.conveyor("-A", "myapp", "server", "stop").code == 0
    assert done == (0, "3\n", "")


def test_a_server_that_refuses_is_not_waited_for(project: Project) -> None:
    with Server(config={"databases": "1"}) as server:
        url = server.url.removesuffix("/0") + "/5"
        done = project.conveyor("-A", "myapp", "worker", CONVEYOR_BROKER=url)
    assert done.code == 3
    assert "DB index is out of range" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ("a:1,b", "only some of a:1, b have a weight"),
        ("a,a", "a queue is named twice in a, a"),
        ("a b", "queue 'a b' is not valid"),
    ],
)
def test_wrong_queues(project: Project, queues: str, said: str) -> None:
    done = project.conveyor("-A", "myapp", "worker", "-Q", queues)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_beat_looks_after_the_queues_of_the_tasks(project: Project) -> None:
    project.write("myapp.py", TASKS + "app.task(name='late', queue='later')(print)\n")
    with project.start("-A", "myapp", "beat") as beat:
        beat.wait_for(f"beat of {project.name}: default, later on redis://")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_beat_moves_what_is_due_and_ends_warmly(project: Project, number: signal.Signals) -> None:
    with project.start("-A", "myapp", "beat", "-Q", "default,low") as beat:
        beat.wait_for(f"beat of {project.name}: default, low on redis://")
        project.conveyor("-A", "myapp", "call", "add", "1", "2", "--after", "0.01", "-Q", "low")

        def queued() -> bool:
            status = json.loads(project.conveyor("-A", "myapp", "status", "--json").out)
            return bool(status["queues"][1]["queued"] == 1)

        wait_until(queued, "the task was moved")
        beat.signal(number)
        assert beat.wait() == 0
