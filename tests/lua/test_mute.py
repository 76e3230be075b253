"""A server user that may not publish: nobody hears what happens, and it happens all the same.

Such is a user of `+@all ~*` alone, since Redis 7 gives a new one no channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import ERROR, Engine, Worker, ids

from conveyor import Conveyor
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

    from .ear import Ear


@pytest.fixture
def mute(app: Conveyor, server: Server) -> Iterator[Engine]:
    """The queue of `engine`, for one who may do everything but publish."""
    server.call("ACL", "SETUSER", "mute", "reset", "on", ">secret", "~*", "+@all")
    url = server.url.replace("redis://", "redis://mute:secret@")
    with Conveyor(app.name, broker=url) as other:
        yield Engine(other, stopped=False)
    server.call("ACL", "DELUSER", "mute")


def end(outcome: str) -> Callable[[Engine], None]:
    """Claims the task and ends it so."""

    def act(mute: Engine) -> None:
        Worker(mute).run("a", outcome, ERROR)

    return act


def stall(mute: Engine) -> None:
    Worker(mute).claim()
    mute.run_out(15)


def cancel(mute: Engine) -> None:
    assert mute.cancel("a") == 1


def purge(mute: Engine) -> None:
    mute.run(commands.purge(mute.keys))


@pytest.mark.parametrize(
    ("act", "place"),
    [
        (end("success"), ["ok"]),
        (end("error"), ["failed"]),
        (end("release"), ["r:5"]),
        (end("park"), ["parked"]),
        (stall, ["r:5"]),
        (cancel, ["cancelled"]),
        (purge, []),
    ],
)
def test_a_task_that_somebody_waits_for_ends(
    engine: Engine, mute: Engine, ear: Ear, act: Callable[[Engine], None], place: list[str]
) -> None:
    engine.put("a")
    engine.run(commands.wait(engine.keys, "me", ["a"]))
    ear.heard()
    act(mute)
    assert engine.places("a") == place
    assert ear.heard() == []


def test_every_task_is_claimed_where_somebody_listens(
    engine: Engine, mute: Engine, ear: Ear
) -> None:
    engine.put("a", "b")
    worker = Worker(mute)
    assert [ids(worker.claim()) for _ in range(3)] == [["a"], ["b"], []]
    mute.put("c")
    assert engine.places("c") == ["r:5"]
    assert "r" in engine.markers()
    assert {one.type for one in ear.heard()} == {"task_queued"}


def test_why_nothing_is_heard_is_said(engine: Engine, mute: Engine, ear: Ear) -> None:
    assert ear.heard() == []
    mute.put("a")
    ((place, reason),) = engine.broken().items()
    assert place == engine.keys.events
    assert "channel" in reason
