"""A server out of memory takes no new work and lets what it has end; SCRIPT FLUSH is not felt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine import ERROR, Engine, Worker, ids, leases, settlement

from conveyor import Conveyor, QueueFull, TaskStatus
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server


@pytest.fixture
def full(engine: Engine, server: Server) -> Iterator[None]:
    """Within the test the server may be filled by `fill`; afterwards it has room again."""
    yield
    server.call("CONFIG", "SET", "maxmemory", "0")


def fill(server: Server) -> None:
    server.call("CONFIG", "SET", "maxmemory", "1")


@pytest.mark.usefixtures("full")
def test_new_work_is_refused_whole(app: Conveyor, engine: Engine, server: Server) -> None:
    @app.task
    def add(x: int) -> int:
        return x

    add.delay(1)
    fill(server)
    with pytest.raises(QueueFull, match="out of memory"):
        add.delay(2)
    with pytest.raises(QueueFull):
        engine.enqueue(*(engine.new(one) for one in "abc"))
    assert engine.counts() == {"queued": 1}
    assert [engine.exists(one) for one in "abc"] == [0, 0, 0]
    assert engine.call("ZCARD", engine.key("e")) == 0


@pytest.mark.usefixtures("full")
def test_running_work_ends_and_the_queue_drains(
    engine: Engine, worker: Worker, server: Server
) -> None:
    engine.put(*"abcdefgh", error_retry_limit=1)
    engine.put("scheduled", due="+1000")
    engine.put("expired", expires="+1000", priority=0)
    held = worker.claim(8)
    engine.advance(1)
    fill(server)
    assert worker.renew(*held) == [1] * 8
    outcomes = ["success", "error", "fatal", "stall", "interrupted", "cancelled", "release", "park"]
    assert [worker.end(a, b, ERROR) for a, b in zip(held, outcomes, strict=True)] == [1] * 8
    assert engine.cancel("b") == 1
    assert engine.maintain().moved == 2
    assert engine.run(commands.unpark(engine.keys, 0, ["app.add"])).following == -1
    assert engine.run(commands.wait(engine.keys, "me", ["h"])) == [True]
    assert engine.run(commands.hello(engine.keys, "77777777", 1000, b"")) == engine.now_ms
    while claimed := worker.claim(10):
        settled = worker.send(*(settlement(lease, "success", b"\x07") for lease in claimed))
        assert set(settled.verdicts) == {1}
    assert engine.counts() == {"success": 6, "failed": 2, "cancelled": 2}
    assert engine.task("scheduled").status is TaskStatus.SUCCESS


@pytest.mark.usefixtures("full")
def test_progress_is_refused_and_harms_nothing(
    engine: Engine, worker: Worker, server: Server
) -> None:
    engine.put("a")
    (lease,) = worker.claim()
    fill(server)
    with pytest.raises(QueueFull):
        engine.run(commands.progress(engine.keys, "a", lease.token, "p", b"\x07"))
    assert worker.end(lease, "success", b"\x07") == 1


def test_scripts_that_the_server_forgot_are_sent_again(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", "c", due="+1000")
    engine.advance(1)
    steps: tuple[Callable[[], bool], ...] = (
        lambda: engine.maintain().moved == 3,
        lambda: engine.enqueue(engine.new("d")) == [None],
        lambda: ids(leases(worker.send(sync=9))) == list("abcd"),
        lambda: worker.renew(*worker.claim(9, again=True)) == [1] * 4,
        lambda: engine.cancel("a") == 1,
        lambda: engine.run(commands.unpark(engine.keys, 0, [])).following == -1,
        lambda: engine.counts() == {"processing": 4},
        lambda: engine.task("a").status is TaskStatus.PROCESSING,
        lambda: engine.run(commands.wait(engine.keys, "me", ["a"])) == [True],
        lambda: engine.run(commands.hello(engine.keys, "", 0, b"")) == engine.now_ms,
        lambda: not engine.run(commands.progress(engine.keys, "a", b"", "p", b"")),
    )
    for step in steps:
        engine.call("SCRIPT", "FLUSH")
        assert step()
