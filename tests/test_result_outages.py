"""Waits across outages: of a server that is down or says nothing, and of threads."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from playing import SOON, end, no_threads, run, wait_in_thread
from servers import Proxy, Server, wait_until
from sharing import add

from conveyor import Conveyor, TaskResult
from conveyor.errors import WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator


def sent(app: Conveyor) -> TaskResult[int]:
    return app.task(add).delay(1, 2)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server to pause, kill and restart; it keeps its data."""
    with Server(appendonly=True, config={"appendfsync": "always"}) as server:
        yield server


def test_a_wait_survives_a_restart_of_the_server(own_server: Server) -> None:
    with Conveyor("restarted", broker=own_server.url) as app:
        result, other = sent(app), sent(app)
        future = wait_in_thread(app, result)
        late = wait_in_thread(app, other)
        own_server.kill()
        own_server.restart()
        with Conveyor("restarted", broker=own_server.url) as another:
            # The first may end before the wait is registered again, the second after.
            assert end(another, "success", 3) == result.id
            assert future.result(SOON) == 3
            assert end(another, "success", 4) == other.id
            assert late.result(SOON) == 4


def test_a_wait_may_begin_while_the_server_is_down(own_server: Server) -> None:
    with Conveyor("down", broker=own_server.url) as app, ThreadPoolExecutor(2) as pool:
        result = sent(app)
        own_server.kill()
        waits = [
            pool.submit(result.wait, SOON),
            pool.submit(lambda: asyncio.run(result._await_end())),
        ]
        with pytest.raises(WaitTimeout, match=r"has not ended after 0\.3 s; cannot reach redis://"):
            result.wait(0.3)
        assert not any(wait.done() for wait in waits)
        own_server.restart()
        with Conveyor("down", broker=own_server.url) as another:
            end(another, "success", 3)
        assert [wait.result(SOON) for wait in waits] == [3, 3]


def test_a_wait_for_a_hanging_server_ends_in_time(own_server: Server) -> None:
    with Conveyor("hanging", broker=own_server.url) as app:
        result = sent(app)
        future = wait_in_thread(app, result, timeout=1)
        own_server.pause()
        with pytest.raises(WaitTimeout, match=r"has not ended after 1 s; cannot reach redis://"):
            future.result(SOON)
        own_server.resume()


@pytest.mark.parametrize("heard", [True, False])
def test_a_wait_ends_in_time_whatever_the_server_does(own_server: Server, heard: bool) -> None:
    with Conveyor("silent", broker=own_server.url) as app:
        task = app.task(add)
        other = task.options(queue="other").delay(1, 2)
        result = other if heard else task.delay(1, 2)
        with pytest.raises(WaitTimeout):
            other.wait(0.1)  # now its queue is heard
        own_server.pause()
        try:
            for ask in (
                lambda: result.wait(0.5),
                lambda: app.manager(result.queue).on_task_complete(result.id, 0.5),
                lambda: run(app, app.amanager(result.queue).on_task_complete(result.id, 0.5)),
            ):
                began = time.monotonic()
                with pytest.raises(WaitTimeout, match=r"0\.5 s; cannot reach redis://"):
                    ask()
                assert time.monotonic() - began < 2
        finally:
            own_server.resume()


def test_a_server_that_went_away_is_named_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("conveyor.broker.connect.TIMEOUT", 0.2)
    with Proxy(server.port) as proxy, Conveyor("named-once", broker=proxy.url) as app:
        future = wait_in_thread(app, sent(app))
        proxy.blackhole(True)
        app.client.outcomes.hurry(on=True)  # the waits are registered again: in vain
        wait_until(lambda: "waits go on" in caplog.text, "it noticed")
        proxy.blackhole(False)
        end(app, "success", 3)
        assert future.result(SOON) == 3
    (line,) = [one.getMessage() for one in caplog.records if "waits go on" in one.getMessage()]
    assert line.count("cannot reach") == 1


def test_a_wait_whose_thread_cannot_start_leaves_no_harm(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sent(app)
    with no_threads(monkeypatch), pytest.raises(RuntimeError, match="can't start new thread"):
        result.wait(SOON)
    assert not app.client.outcomes._ear("default")._pending
    future = wait_in_thread(app, result)
    end(app, "success", 3)
    assert future.result(SOON) == 3


def test_a_wait_ends_in_time_where_no_thread_can_be_started(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sent(app)
    with pytest.raises(WaitTimeout):
        result.wait(0)  # its queue is heard now
    with (
        no_threads(monkeypatch),
        pytest.raises(WaitTimeout, match="has not ended after 0 s; can't start new thread"),
    ):
        result.wait(0)


def test_who_registers_waits_reads_what_was_told_in_between(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others begin to wait meanwhile."""
    result = sent(app)
    with pytest.raises(WaitTimeout):
        result.wait(0)
    ear = app.client.outcomes._ear("default")
    app.close()  # its thread has ended, and turns no more
    registered: list[list[str]] = []

    def register(queue: str, ids: list[str]) -> None:
        registered.append(ids)
        if len(registered) < 5:
            ear._to_register[queue, f"next-{len(registered)}"] = None

    monkeypatch.setattr(ear, "_register", register)
    ear._to_register["default", "first"] = None
    ear.turn()
    assert registered == [["first"]]
