"""A server for the whole run, and on it an app of its own for each test."""

from __future__ import annotations

import compileall
import signal
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from managing import Driven
from servers import Server

import conveyor
from conveyor import Conveyor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Prepares what all the processes share that tests will start.

    What hundreds of them import is compiled: Python itself keeps what it has compiled, but not
    where PYTHONDONTWRITEBYTECODE is set. And Ctrl-C ends them even where a shell runs pytest in the
    background and has it ignored, which they would inherit.
    """
    if not hasattr(config, "workerinput"):  # once, and not in each of xdist's processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for directory in (Path(conveyor.__file__).parent, Path(__file__).parent):
            compileall.compile_dir(directory, quiet=2)


@pytest.fixture(scope="session", autouse=True)
def _long_is_no_setting() -> Iterator[None]:
    """CONVEYOR_LONG was read when the tests were collected; an app would warn of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CONVEYOR_LONG", raising=False)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A Valkey that all tests share; one that harms its server starts its own."""
    with Server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of its own, to pause, kill or look at."""
    with Server() as server:
        yield server


@pytest.fixture
def app(server: Server) -> Iterator[Conveyor]:
    """An app that meets no other test's on the shared server."""
    with Conveyor(f"test-{next(_numbers)}", broker=server.url) as app:
        yield app


@pytest.fixture(params=["sync", "async"])
def manage(app: Conveyor, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes managers of the app's queues, once of each kind."""
    if request.param == "sync":
        return app.manager
    return lambda queue=None: Driven(app, queue)


@pytest.fixture
def manager(manage: Callable[..., Any]) -> Any:
    """A manager of the default queue."""
    return manage()
