"""A primary that sentinels watch: callers and a worker, and another primary in mid-run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
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
    from collections.abc import Iterator

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


@pytest.mark.parametrize("harm", ["killed", "hung"])
def test_a_primary_is_gone_in_mid_run(harm: str) -> None:
    """Killed, its connections break; hung, they stay open, and it comes back as a replica."""
    with Sentinel() as servers, FarWorker(servers.url, "gone", ["default"]):
        primary = servers.primary
        with Rush(servers.url, "gone", ["default"]) as rush:
            # A primary answers before its replica has the call: the last calls may die with it.
            # So callers pause until all has arrived, and only those that meet a dead server raise.
            with rush.pause():
                replicate(primary, rush.app, "default")
                (primary.kill if harm == "killed" else primary.pause)()
            wait_until(lambda: servers.primary is not primary, "another primary", seconds=DEADLINE)
            rush.go_on()
            if harm == "hung":
                primary.resume()
                wait_until(lambda: _follows(primary), "a replica", seconds=DEADLINE)
                rush.go_on()
        rush.check()


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
        assert "No master found" in refusal(far_app(servers.url, "down"))
        assert "No master found" in arefusal(far_app(servers.url, "down"))
        for server in everything:
            server.restart()
        wait_until(lambda: answers(app), "the worker and its caller back", seconds=DEADLINE)
        assert "is back" in worker.output


def _follows(server: Server) -> bool:
    return "slave" in server.call("ROLE")
