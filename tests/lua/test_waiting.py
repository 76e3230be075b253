"""Who waits for a task's end is told of it by the server, whatever becomes of the record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from engine import Engine, Worker, ids
from servers import wait_until

from conveyor import TaskCancelled, TaskFailed, TaskNotFound, WaitTimeout
from conveyor.broker import commands
from conveyor.broker.commands import Snapshot
from conveyor.packing import pack_error
from conveyor.records import Flag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 20.0
ERROR = pack_error("ValueError", "no", "line 1")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


class Listener:
    """A process that subscribed to its own channel, as its raw messages."""

    def __init__(self, engine: Engine, name: str) -> None:
        server: Any = engine.broker.server
        self.connection = server.connection(engine.keys.memory)
        self.connection.send_command("SSUBSCRIBE", engine.keys.outcomes(name))
        assert self.connection.read_response()[0] == b"ssubscribe"

    def hear(self) -> Any:
        """The next message, unpacked."""
        return msgpack.unpackb(self.connection.read_response()[2], raw=True)

    def heard_nothing(self) -> bool:
        """Whether nothing was published before a PING was answered."""
        self.connection.send_command("PING")
        return bool(self.connection.read_response()[0] == b"pong")


def waiting(engine: Engine, task_id: str) -> Callable[[], bool]:
    return lambda: bool(engine.call("HEXISTS", engine.key(f"x:{task_id}"), "w"))


def test_a_wait_returns_the_result(
    engine: Engine, worker: Worker, threads: ThreadPoolExecutor
) -> None:
    engine.put("a")
    waits = [threads.submit(engine.app.result("a").wait, LONG) for _ in range(3)]
    wait_until(waiting(engine, "a"), "the wait is registered")
    worker.run("a", "success", b"\x07")
    assert [wait.result(LONG) for wait in waits] == [7, 7, 7]
    assert engine.app.result("a").wait(0.1) == 7


@pytest.mark.parametrize("size", [0, 60_000, 70_000, 2_000_000])
@pytest.mark.parametrize("flags", [0, Flag.REMOVE_ON_SUCCESS])
def test_an_outcome_of_any_size_arrives_though_its_record_is_removed(
    engine: Engine, worker: Worker, threads: ThreadPoolExecutor, size: int, flags: int
) -> None:
    engine.put("a", flags=flags)
    value = b"x" * size
    wait = threads.submit(engine.app.result("a").wait, LONG)
    wait_until(waiting(engine, "a"), "the wait is registered")
    worker.run("a", "success", engine.app.client.codec.encode(value, "result"))
    assert wait.result(LONG) == value
    assert engine.exists("a") == (0 if flags else 1)


def test_a_failure_that_is_not_kept_arrives_with_its_story(
    engine: Engine, worker: Worker, threads: ThreadPoolExecutor
) -> None:
    engine.put("a", flags=Flag.REMOVE_ON_FAILED, error_retry_limit=1)
    wait = threads.submit(engine.app.result("a").wait, LONG)
    wait_until(waiting(engine, "a"), "the wait is registered")
    worker.run("a", "error", ERROR)
    worker.run("a", "error", ERROR)
    with pytest.raises(TaskFailed, match="ValueError: no") as raised:
        wait.result(LONG)
    assert raised.value.record.traceback == "line 1"
    assert raised.value.record.error_retries == 1
    assert len(raised.value.record.attempts) == 2
    assert engine.exists("a") == 0


def test_a_cancellation_is_told(engine: Engine, threads: ThreadPoolExecutor) -> None:
    engine.put("a", retain_failed_ms=0)
    wait = threads.submit(engine.app.result("a").wait, LONG)
    wait_until(waiting(engine, "a"), "the wait is registered")
    engine.cancel("a")
    with pytest.raises(TaskCancelled):
        wait.result(LONG)


@pytest.mark.parametrize("move", ["expire", "stall"])
def test_an_end_that_no_worker_brought_is_told(
    engine: Engine, worker: Worker, threads: ThreadPoolExecutor, move: str
) -> None:
    engine.put("a", expires="+1000", stall_ms=1000, stall_retry_limit=0)
    wait = threads.submit(engine.app.result("a").wait, LONG)
    wait_until(waiting(engine, "a"), "the wait is registered")
    if move == "stall":
        worker.claim()
    engine.run_out(1)
    with pytest.raises(TaskFailed, match="TaskExpired" if move == "expire" else "TaskStalled"):
        wait.result(LONG)


def test_a_task_that_has_ended_or_never_was_is_answered_at_once(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a", "b", "c")
    worker.run("a", "success", b"\x07")
    worker.run("b", "fatal", ERROR)
    engine.cancel("c")
    assert engine.app.result("a").wait(LONG) == 7
    with pytest.raises(TaskFailed, match="ValueError: no"):
        engine.app.result("b").wait(LONG)
    with pytest.raises(TaskCancelled):
        engine.app.result("c").wait(LONG)
    with pytest.raises(TaskNotFound):
        engine.app.result("d").wait(LONG)


def test_a_wait_that_is_over_says_whether_anyone_works(engine: Engine) -> None:
    engine.put("a")
    with pytest.raises(WaitTimeout, match="no worker listens"):
        engine.app.result("a").wait(0.01)
    engine.run(commands.hello(engine.keys, "77777777", 60_000, b"about"))
    with pytest.raises(WaitTimeout, match=r"has not ended after 0\.01 s$"):
        engine.app.result("a").wait(0.01)


def test_every_process_that_waits_is_told_once(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    listeners = {name: Listener(engine, name) for name in ("one", "two", "three")}
    for name in ("one", "two", "one"):
        assert engine.run(commands.wait(engine.keys, name, ["a", "b"])) == [True, True]
    worker.run("a", "success", b"\x07")
    record = engine.call("GET", engine.key("t:a"))
    for name in ("one", "two"):
        task_id, told, extras = listeners[name].hear()
        assert (task_id, told) == (b"a", record)
        assert extras == []  # nor does it name all who wait
        assert listeners[name].heard_nothing()
    assert listeners["three"].heard_nothing()
    assert engine.exists("a") == 1


def test_a_large_outcome_that_is_kept_is_told_by_its_id_alone(
    engine: Engine, worker: Worker
) -> None:
    engine.put("a")
    listener = Listener(engine, "one")
    engine.run(commands.wait(engine.keys, "one", ["a"]))
    worker.run("a", "success", b"\xc6\x00\x01\x00\x00" + b"x" * 65_536)
    assert listener.hear() == [b"a"]
    (reply,) = engine.run(commands.wait(engine.keys, "one", ["a"]))
    assert isinstance(reply, Snapshot)
    assert reply.record.endswith(b"x" * 65_536)


def test_a_retry_is_no_end_and_keeps_who_waits(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=9, stall_retry_limit=9)
    listener = Listener(engine, "one")
    engine.run(commands.wait(engine.keys, "one", ["a"]))
    for outcome in ("error", "release", "interrupted", "stall"):
        worker.run("a", outcome, ERROR)
    assert listener.heard_nothing()
    assert ids(worker.claim()) == ["a"]
    assert engine.run(commands.wait(engine.keys, "one", ["a"])) == [True]
    engine.run_out(15)
    assert listener.heard_nothing()
    engine.cancel("a")
    assert listener.hear()[0] == b"a"


def test_a_task_that_nobody_waits_for_has_no_second_key(engine: Engine, worker: Worker) -> None:
    engine.put("a")
    worker.run("a", "success", b"\x07")
    assert engine.exists("a") == 1


def hurry(engine: Engine, *ids: str) -> list[Snapshot | bool]:
    return engine.run(commands.wait(engine.keys, "process", ids, hurry=True))


def test_what_is_hurried_goes_before_every_priority(engine: Engine, worker: Worker) -> None:
    engine.put("high", priority=9)
    engine.put("a", "b", "c")
    assert hurry(engine, "c") == [True]
    assert hurry(engine, "c", "nobody", "a") == [True, False, True]
    assert engine.counts() == {"queued": 4}
    assert engine.ready("r:9") == ["a", "c", "high"]
    assert ids(worker.claim(10)) == ["a", "c", "high", "b"]
    assert worker.claim(10) == []
    assert (engine.broken(), engine.memory()["tombstones"]) == ({}, 0)


def test_what_is_hurried_stays_so_when_it_is_queued_again(engine: Engine, worker: Worker) -> None:
    engine.put("a", error_retry_limit=1)
    (lease,) = worker.claim()
    engine.put("b", "c", due=str(engine.now_ms + 1000))
    assert hurry(engine, "a", "c") == [True, True]
    assert worker.end(lease, "error", ERROR) == commands.Verdict.ACCEPTED
    engine.put("d", priority=9)
    engine.advance(1)
    engine.maintain()
    assert ids(worker.claim(10)) == ["c", "a", "d", "b"]


def test_async_tasks_are_not_hurried(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b", flags=Flag.ASYNC)
    assert hurry(engine, "b") == [True]
    assert ids(worker.claim(0, 10)) == ["a", "b"]


def test_a_wait_hurries_nothing_unless_it_is_asked_to(engine: Engine, worker: Worker) -> None:
    engine.put("a", "b")
    assert engine.run(commands.wait(engine.keys, "process", ["b"])) == [True]
    assert ids(worker.claim(10)) == ["a", "b"]
