"""A primary that sentinels watch: callers and a worker, and another primary in mid-run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis
from core import CoreCalls
from far import (
    DEADLINE,
    FarWorker,
    Rush,
    answers,
    arefusal,
    call,
    far_app,
    refusal,
    replicate,
)
from redis.asyncio.sentinel import Sentinel as AsyncSentinelClient
from redis.sentinel import Sentinel as SentinelClient
from servers import LOOPBACK, SERVICE, Sentinel, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

    from conveyor import Conveyor


@pytest.fixture(scope="module")
def served() -> Iterator[Sentinel]:
    """Servers with a worker, for the tests that do not harm them."""
    with Sentinel() as servers, FarWorker(servers.url, "core", ["default"]):
        yield servers


class TestCalls(CoreCalls):
    """By a URL, and with a client of redis-py that follows sentinels."""

    @pytest.fixture(params=["url", "client", "async client"])
    def app(self, request: pytest.FixtureRequest, served: Sentinel) -> Iterator[Conveyor]:
        broker: Any = served.url
        hosts = [(LOOPBACK, one.port) for one in served.sentinels]
        if request.param == "client":
            broker = SentinelClient(hosts).master_for(SERVICE)
        elif request.param == "async client":
            broker = AsyncSentinelClient(hosts).master_for(SERVICE)
        with far_app(broker, "core") as app:
            yield app


def _kill(servers: Sentinel, rush: Rush) -> None:
    primary = servers.primary
    with rush.pause():
        replicate(primary, rush.app, "default")
        primary.kill()
    _await_another(servers, primary)
    rush.go_on()


def _hang(servers: Sentinel, rush: Rush) -> None:
    """No connection breaks: whoever is connected has to notice the silence."""
    primary = servers.primary
    with rush.pause():
        replicate(primary, rush.app, "default")
        primary.pause()
    _await_another(servers, primary)
    rush.go_on()
    rush.end_waits()
    primary.resume()


def _demote(servers: Sentinel, rush: Rush) -> None:
    """It lives, and keeps its connections, but is a replica that takes no calls."""
    primary = servers.primary
    promoted = next(server for server in servers.servers if server is not primary)
    with rush.pause():
        replicate(primary, rush.app, "default")
        servers.sentinels[0].call("SENTINEL", "FAILOVER", SERVICE)
        wait_until(lambda: _is_primary(promoted), "promoted", seconds=DEADLINE)
        # The sentinels would, seconds later: calls that it takes until then are lost.
        primary.call("REPLICAOF", LOOPBACK, promoted.port)
    _await_another(servers, primary)
    rush.go_on()


@pytest.mark.parametrize("harm", [_kill, _hang, _demote])
def test_another_primary_in_mid_run(harm: Callable[[Sentinel, Rush], None]) -> None:
    # A primary answers before its replica has the call: the last calls may die with it. So callers
    # pause until all has arrived there, and only those that meet a primary that is gone may raise.
    with Sentinel() as servers, FarWorker(servers.url, "another", ["default"]):
        with Rush(servers.url, "another") as rush:
            harm(servers, rush)
        rush.check()


@pytest.mark.parametrize("kind", [SentinelClient, AsyncSentinelClient])
def test_another_primary_for_a_shared_client(kind: Any) -> None:
    with Sentinel() as servers, FarWorker(servers.url, "another", ["default"]):
        manager = kind([(LOOPBACK, one.port) for one in servers.sentinels])
        client = manager.master_for(SERVICE)
        with Rush(client, "another") as rush:
            _kill(servers, rush)
        rush.check()
        if kind is AsyncSentinelClient:
            asyncio.run(client.aclose())
            return
        client.close()
        for one in manager.sentinels:
            one.close()


def test_all_servers_are_down() -> None:
    with (
        Sentinel() as servers,
        FarWorker(servers.url, "down", ["default"]) as worker,
        far_app(servers.url, "down") as app,
    ):
        assert call(app, "add", 1, 2).delay().wait(DEADLINE) == 3
        everything = [*servers.servers, *servers.sentinels]
        for server in everything:
            server.kill()
        assert "No master found" in refusal(app)
        assert "No master found" in arefusal(far_app(servers.url, "down"))
        for server in everything:
            server.restart()
        wait_until(lambda: answers(app), "the worker and its caller back", seconds=DEADLINE)
        assert "is back" in worker.output


def _await_another(servers: Sentinel, primary: Server) -> None:
    wait_until(lambda: servers.primary is not primary, "another primary", seconds=DEADLINE)


def _is_primary(server: Server) -> bool:
    try:
        return bool(server.call("ROLE")[0] == "master")
    except redis.ConnectionError:  # a sentinel has cut it
        return False
