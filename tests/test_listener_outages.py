"""Listeners in an outage, and those too far behind: what is missed, and that it is said."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hearing import Heard, send, take, task_id_of
from playing import SOON
from servers import Proxy, Server, wait_until

from conveyor import BrokerUnavailable, Conveyor, Event, Listener
from conveyor import listener as module

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def own_server() -> Iterator[Server]:
    with Server(appendonly=True) as server:
        yield server


def test_a_server_that_is_down_is_named_in_time() -> None:
    began = time.monotonic()
    with (
        Conveyor("down", broker="redis://127.0.0.1:1/0") as app,
        pytest.raises(BrokerUnavailable, match=r"cannot reach redis://127\.0\.0\.1:1/0"),
    ):
        app.listener()

    async def main() -> None:
        async with Conveyor("down", broker="redis://127.0.0.1:1/0") as app:
            with pytest.raises(BrokerUnavailable, match="cannot reach"):
                await anext(aiter(app.listener()))

    asyncio.run(main())
    assert time.monotonic() - began < 10


def test_a_server_that_says_nothing_is_named_in_time(server: Server) -> None:
    with Proxy(server.port) as proxy, Conveyor("mute", broker=proxy.url) as app:
        app.queues()
        proxy.blackhole(True)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="cannot reach"):
            app.listener()
        assert time.monotonic() - began < 10
        proxy.blackhole(False)


def test_a_listener_comes_back_after_a_restart_and_says_so_once(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conveyor.listener")
    heard = Heard()
    with Conveyor("back", broker=own_server.url) as app, app.listener("a", "b") as listener:
        listener.on("task_queued", heard)
        for _ in range(2):
            caplog.clear()
            own_server.kill()
            wait_until(lambda: "Events are missed" in caplog.text, "it noticed")
            time.sleep(0.3)  # some more attempts fail
            own_server.restart()
            wait_until(lambda: "again" in caplog.text, "it is back", seconds=SOON)
            wait_until(lambda: _hears_all(listener), "both queues heard", seconds=SOON)
            for name in ("a", "b"):
                assert send(app, queue=name) == task_id_of(heard.next())
            assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]
            assert app.client.broker.server.address in caplog.records[0].getMessage()


def _hears_all(listener: Listener) -> bool:
    return all(ear._wanted == ear._heard for ear in listener._ears)


def test_a_listener_notices_a_connection_that_is_dead(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("conveyor.broker.subscription._SILENCE", 0.1)
    with Proxy(server.port) as proxy, Conveyor("dead", broker=proxy.url) as app:
        caplog.set_level(logging.INFO, "conveyor.listener")
        with app.listener() as listener:
            proxy.blackhole(True)
            wait_until(lambda: "Events are missed" in caplog.text, "it noticed")
            proxy.blackhole(False)
            wait_until(lambda: "again" in caplog.text, "it is back", seconds=SOON)
            events = iter(listener)
            task_id = send(app)
            assert task_id_of(next(events)) == task_id


def test_who_is_too_far_behind_loses_the_oldest(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BACKLOG", 3 * 1_048_576)
    gate, heard = threading.Event(), Heard()

    def slow(event: Event) -> None:
        gate.wait(SOON)
        heard(event)

    with app.listener() as listener:
        listener.on("task_queued", slow)
        ids = [send(app, b"x" * 30_000) for _ in range(200)]
        wait_until(lambda: "behind" in caplog.text, "some were dropped")
        ids.append(send(app))
        gate.set()
        kept = [heard.next()]
        while task_id_of(kept[-1]) != ids[-1]:
            kept.append(heard.next())
    assert 50 < len(kept) < 201
    told = [task_id_of(event) for event in kept[1:]]
    assert told == ids[-len(told) :]
    assert len([one for one in caplog.records if "behind" in one.getMessage()]) == 1


def test_a_loop_begins_with_what_was_heard_before(
    app: Conveyor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "EARLY", 100_000)
    heard = Heard()
    with app.listener() as listener:
        listener.on("task_queued", heard)
        ids = [send(app, b"x" * 10_000) for _ in range(20)]
        assert heard.ids(20) == ids
        events = iter(listener)
        assert [task_id_of(event) for event in take(events, 9)] == ids[-9:]
        ids = [send(app, b"x" * 10_000) for _ in range(20)]
        assert [task_id_of(event) for event in take(events, 20)] == ids
    assert "behind" not in caplog.text
