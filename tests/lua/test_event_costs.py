"""What telling costs: nothing where nobody listens, a count a call, and little of a large task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conveyor import REDACTED
from conveyor.broker import commands
from conveyor.events import decode_event
from conveyor.packed_options import Options
from conveyor.packing import pack_error

from .ear import Ear

if TYPE_CHECKING:
    from engine import Engine, Worker

ERROR = pack_error("ValueError", "no", "line 1")
#: What does not travel with an event.
LARGE = 32_768


def calls(engine: Engine, command: str) -> int:
    """How often the server has run a command so far."""
    info = engine.app.client.broker.server.client().info("commandstats")  # type: ignore[union-attr]
    return int(info.get(f"cmdstat_{command}", {"calls": 0})["calls"])


def counted(engine: Engine) -> int:
    """How often subscriptions were counted so far."""
    return calls(engine, "pubsub|shardnumsub")


def test_nobody_listens(engine: Engine, worker: Worker) -> None:
    before, published = counted(engine), calls(engine, "spublish")
    engine.put("a", "b", error_retry_limit=1)
    assert counted(engine) == before + 1
    worker.run("a", "error", ERROR, delay_ms=1)
    worker.run("b", "success", b"\x07")
    engine.advance(1)
    engine.maintain()
    engine.cancel("a")
    assert counted(engine) == before + 1
    assert calls(engine, "spublish") == published


def test_subscriptions_are_counted_once_a_call_that_has_something_to_tell(
    engine: Engine, worker: Worker, ear: Ear
) -> None:
    before = counted(engine)
    engine.put("a", "b", "c")
    assert counted(engine) == before + 1
    held = worker.claim(3)
    assert counted(engine) == before + 2
    worker.renew(*held)
    worker.send()
    engine.maintain()
    engine.run(commands.read(engine.keys, ["a"]))
    engine.run(commands.status(engine.keys))
    engine.run(commands.hello(engine.keys, "", 0, b""))
    assert engine.cancel("a") == 1
    assert engine.run(commands.progress(engine.keys, "a", b"x" * 12, "p", b"\x09")) is False
    assert counted(engine) == before + 2
    assert len(ear.heard()) == 6


def test_a_listener_that_is_gone_costs_one_count(engine: Engine, ear: Ear) -> None:
    engine.put("a")
    assert ear.types() == ["task_queued"]
    ear.connection.disconnect()
    before, published = counted(engine), calls(engine, "spublish")
    engine.put("b")
    while calls(engine, "spublish") > published:  # the server had not noticed yet
        published = calls(engine, "spublish")
        before = counted(engine)
        engine.put(f"b{published}")
    assert counted(engine) == before + 1
    engine.put("c")
    assert counted(engine) == before + 1
    ear = Ear(engine)
    engine.put("d")
    assert ear.types() == ["task_queued"]


def test_a_queue_whose_memory_was_removed_is_still_heard(engine: Engine, ear: Ear) -> None:
    engine.put("a")
    engine.call("DEL", engine.keys.memory)
    engine.put("b")
    assert ear.types() == ["task_queued"] * 2


def test_what_is_too_large_does_not_travel(engine: Engine, worker: Worker, ear: Ear) -> None:
    options = Options(headers={"tenant": "a"}).pack()
    engine.put("a", args=(b"x" * LARGE,), options=options)
    (lease,) = worker.claim()
    large = engine.app.client.codec.encode("x" * LARGE, "progress")
    engine.run(commands.progress(engine.keys, "a", lease.token, "p", large))
    engine.run(commands.progress(engine.keys, "a", lease.token, "d", b"\x08"))
    text = "x" * LARGE
    worker.end(lease, "fatal", pack_error("ValueError", "no", text))
    heard = ear.heard()
    assert all(len(one.record) < 200 for one in heard)
    assert sum(len(one.message) for one in heard) < 4 * LARGE
    *_, progress, data, error, _, complete = (
        decode_event("default", one.message, engine.app.client.codec, reveal=True) for one in heard
    )
    assert progress.data is REDACTED
    for event in (progress, data, error, complete):
        assert event.task is not None
        assert (event.task.args, event.task.kwargs) == (REDACTED, REDACTED)
        assert event.task.progress is REDACTED
        assert event.task.headers == {"tenant": "a"}
    assert complete.task is not None
    assert (complete.task.data, complete.task.traceback) == (8, text)
    assert complete.task.attempts == ()
    # What is kept is whole.
    task = engine.task("a")
    assert (task.args, len(task.progress), len(task.attempts)) == ((b"x" * LARGE,), LARGE, 1)
