"""The engine's tests run on each kind of server there is: Valkey, and Redis 7.0 of Debian."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import Engine, Worker
from servers import Binary, Server, binaries

from .ear import Ear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conveyor import Conveyor


@pytest.fixture(scope="session", params=binaries())
def binary(request: pytest.FixtureRequest) -> Binary:
    """Which server program."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def server(binary: Binary) -> Iterator[Server]:
    """A server of each kind that all tests share; one that harms its server starts its own."""
    with Server(binary) as server:
        yield server


@pytest.fixture
def engine(app: Conveyor) -> Engine:
    """The app's queue, its clock stopped."""
    return Engine(app)


@pytest.fixture
def worker(engine: Engine) -> Worker:
    """A worker of that queue."""
    return Worker(engine)


@pytest.fixture
def ear(engine: Engine) -> Ear:
    """Who listens to that queue."""
    return Ear(engine)
