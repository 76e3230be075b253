"""Apps that share a client of redis-py, and how many connections that costs.

with sharing(client) as (app, task), working(app):
    assert task.delay(1, 2).wait(SOON) == 3
    assert held(client.connection_pool) == 2
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
from playing import SOON

from conveyor import BrokerUnavailable, Conveyor, Worker
from conveyor.orchestrator import Orchestrator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

    from conveyor import Task

#: Seconds within which a caller whose server is down hears of it.
PROMPT = 5.0
#: A client that would rather wait than tell.
PATIENT: dict[str, Any] = {"socket_timeout": 60, "socket_connect_timeout": 60}
#: For tests that start a worker or fork.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

_apps: list[Conveyor] = []


def add(x: int, y: int = 0) -> int:
    return x + y


@contextmanager
def sharing(client: Any, name: str = "shared") -> Iterator[tuple[Conveyor, Task[..., int]]]:
    with Conveyor(name, broker=client) as app:
        yield app, app.task(add)


def ids(server: Server) -> set[str]:
    """The connections that a server has, but for the one that asks."""
    listed = server.call("CLIENT", "LIST").splitlines()
    found = [dict(field.split("=", 1) for field in line.split()) for line in listed]
    return {one["id"] for one in found if one["cmd"] != "client|list"}


def pool_size(client: Any) -> int:
    """How many connections a client has."""
    pool = client.connection_pool
    if isinstance(pool, redis.BlockingConnectionPool):
        return len(pool._connections)
    return len(pool._available_connections) + len(pool._in_use_connections)


def refusal(call: Callable[[], object]) -> str:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        call()
    assert time.monotonic() - began < PROMPT
    assert "\n" not in str(caught.value)
    return str(caught.value)


def relay() -> str:
    app = _apps[-1]
    return app.tasks[f"{__name__}.add"].call(1, 2).delay().id


def held(pool: Any) -> int:
    """How many of a pool's connections are lent."""
    if isinstance(pool, redis.BlockingConnectionPool):
        return len(set(pool._connections) - {one for one in pool.pool.queue if one})
    return len(pool._in_use_connections)


@contextmanager
def working(app: Conveyor) -> Iterator[None]:
    """A worker and an orchestrator of this very app, in this very process."""
    app.task(relay)
    _apps.append(app)
    worker, orchestrator = Worker(app, concurrency=2), Orchestrator(app)
    worker.start()
    try:
        orchestrator.start()
        yield
    finally:
        worker.shutdown(timeout=SOON)
        orchestrator.stop()


async def arefusal(task: Task[..., int]) -> str:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        await task.adelay(1)
    assert time.monotonic() - began < PROMPT
    return str(caught.value)
