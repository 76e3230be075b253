"""Faults 7, 20 and 24: tasks that kill, scripts that are forgotten, records that are wrong."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from servers import Server, wait_until

from conveyor import REDACTED, TaskFailed, TaskStatus

from .lab import SOON, Lab

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_7_only_the_poison_pays(lab: Lab) -> None:
    limited = {"stall_retry_limit": 2}
    poison = [
        lab.tasks.exit_process.options(**limited).call(),
        lab.tasks.crash.options(**limited).call(),
    ]
    good = lab.tasks.effect.call()
    calls = [good] * 300 + poison[:1] + [good] * 400 + poison[1:] + [good] * 300
    results = lab.app.map(calls)
    bad = [results[300], results[701]]
    with lab.worker("-c", "2"):
        for one, reason in zip(bad, ("exited with code 3", "was killed by SIGSEGV"), strict=True):
            with pytest.raises(TaskFailed, match=f"TaskStalled: child .* {reason}"):
                one.wait(SOON)
        lab.wait_for_drain()
    for one in results:
        record = one.task()
        if one in bad:
            assert (record.status, record.stall_retries) == (TaskStatus.FAILED, 2)
            assert lab.history.count("start", task_id=one.id) == 3
        else:
            assert (record.status, record.stall_retries) == (TaskStatus.SUCCESS, 0)


def test_20_scripts_that_are_flushed_reach_nobody(tmp_path: Path) -> None:
    with Server() as server, Lab(server.url, tmp_path) as lab:
        over = threading.Event()

        def flush() -> None:
            with server.client() as client:
                while not over.wait(0.1):
                    client.script_flush()

        flusher = threading.Thread(target=flush)
        with lab.worker("-c", "2") as worker:
            flusher.start()
            results = []
            for _ in range(60):
                results += lab.tasks.effect.map([()] * 50)
                assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
                assert lab.tasks.aadd.schedule(1, 1, after=0.01).wait(SOON) == 2
                assert results[-1].wait(SOON)  # its fence: 2 where a claim was handed back
            cancelled = lab.tasks.hold.delay(lab.gate().path)
            lab.wait_for_starts(cancelled)
            assert cancelled.cancel()
            over.set()
            flusher.join()
            lab.wait_for_drain()
            assert {one.status for one in results} == {TaskStatus.SUCCESS}
            assert worker.stop() == 0
            assert not {"WARNING", "ERROR"} & set(worker.output.split())
    assert lab.history.count("effect") == 3000


class Saboteur:
    """Puts into a queue what should not be there.

    Args:
        engine: Of the queue.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # No worker must meet a record before it is spoilt.
        self._unserved = Engine(engine.app, "unserved", stopped=False)

    def put(self, task_id: str | bytes, change: Callable[[bytes], bytes | None]) -> None:
        """A task that is waiting, its record changed; None leaves it without one."""
        engine, unserved = self._engine, self._unserved
        unserved.put("model", name="noop")
        key = unserved.key("t:model")
        record = change(unserved.call("GET", key))
        unserved.call("DEL", key, unserved.key("r:5"))
        if record is not None:
            engine.call("SET", self._key(task_id), record)
        engine.call("RPUSH", engine.key("r:5"), task_id)

    def put_hash(self, task_id: str) -> None:
        """A task that is waiting and has a hash for a record."""
        self._engine.call("HSET", self._engine.key(f"t:{task_id}"), "a", "b")
        self._engine.call("RPUSH", self._engine.key("r:5"), task_id)

    def _key(self, task_id: str | bytes) -> Any:
        raw = task_id.encode() if isinstance(task_id, str) else task_id
        return self._engine.key("t:").encode() + raw


def _with(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda record: record[:offset] + data + record[offset + len(data) :]


def _with_payload(options: bytes, call: bytes) -> Callable[[bytes], bytes]:
    """Another payload, its lengths right."""

    def change(record: bytes) -> bytes:
        name = record[102 : 102 + int.from_bytes(record[96:98], "little")]
        payload = len(options).to_bytes(2, "little") + options + call
        return record[:98] + len(payload).to_bytes(4, "little") + name + payload

    return change


def test_24_malformed_records_are_set_aside_and_the_rest_goes_on(lab: Lab) -> None:
    saboteur = Saboteur(Engine(lab.app, stopped=False))
    with lab.worker("-c", "1") as worker:
        children = worker.children()
        results = lab.tasks.effect.map([()] * 300)
        saboteur.put("missing", lambda record: None)
        saboteur.put_hash("hash")
        saboteur.put("empty", lambda record: b"")
        saboteur.put("short", lambda record: record[:50])
        saboteur.put("long-name", _with(96, b"\xff\xff"))
        saboteur.put("long-payload", _with(98, b"\xff\xff\xff\xff"))
        saboteur.put("future", _with(0, b"\x09"))
        results += lab.tasks.effect.map([()] * 300)
        assert [one.wait(SOON) for one in results]
        lab.wait_for_drain()
        assert worker.children() == children
        assert worker.stop() == 0
    broken = {key.decode(): reason.decode() for key, reason in _broken(lab).items()}
    assert broken == {
        "missing": "missing",
        "hash": "not a record",
        "empty": "truncated",
        "short": "truncated",
        "long-name": "truncated",
        "long-payload": "truncated",
        "future": "unknown version",
    }


BAD_PAYLOADS = {
    "nothing": _with_payload(b"", b""),
    "no msgpack": _with_payload(b"", b"\xc1"),
    "cut off": _with_payload(b"", b"\x92\x91\x01"),
    "no call": _with_payload(b"", b"\x2a"),
    "a bomb": _with_payload(b"", b"\x92" * 100_000),
    "four billion items": _with_payload(b"", b"\xdd\xff\xff\xff\xff"),
    "options that are cut off": _with_payload(b"\xff\xff", b""),
    "options that are a list": _with_payload(b"\x93\x01\x02\x03", b"\x92\x90\x80"),
    "a timeout that is text": _with_payload(b"\x81\xa1t\xa1x", b"\x92\x90\x80"),
    "a backoff that is empty": _with_payload(b"\x81\xa1b\x90", b"\x92\x90\x80"),
    "an argument too many": _with_payload(b"", b"\x92\x91\x05\x80"),
    "an argument nobody knows": _with_payload(b"", b"\x92\x90\x81\xa1x\x05"),
}


def test_24_payload_that_cannot_be_used_fails_its_task_alone(lab: Lab) -> None:
    saboteur = Saboteur(Engine(lab.app, stopped=False))
    for task_id, change in BAD_PAYLOADS.items():
        saboteur.put(task_id, change)
    with lab.worker("-c", "1") as worker:
        children = worker.children()
        assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
        lab.wait_for_drain()
        assert worker.children() == children
    for task_id in BAD_PAYLOADS:
        error = lab.client.hget(f"conveyor:{{{lab.namespace}:default}}:x:{task_id}", "e")
        expected = b"TypeError" if "argument" in task_id else b"SerializationError"
        assert error is not None, task_id
        assert expected in error, task_id
        with pytest.raises(TaskFailed, match=expected.decode()):
            lab.app.result(task_id).wait(SOON)
    records = lab.app.manager().get_tasks_by_id(BAD_PAYLOADS)
    assert [one and one.status for one in records] == [TaskStatus.FAILED] * len(BAD_PAYLOADS)
    assert lab.app.result("no msgpack").task().args == REDACTED
    assert lab.status().failed == len(BAD_PAYLOADS)


def test_24_unreadable_names_and_ids_stop_nobody(lab: Lab) -> None:
    saboteur = Saboteur(Engine(lab.app, stopped=False))
    saboteur.put("name", _with(102, b"\xff\xfe\xfd\xfc"))
    saboteur.put(b"\xff\xfe-id", lambda record: record)
    with lab.worker("-c", "1") as worker:
        children = worker.children()
        assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
        wait_until(
            lambda: (lab.status().parked, lab.status().processing) == (1, 0), "done", seconds=SOON
        )
        assert lab.status().success == 2
        assert worker.children() == children


def _broken(lab: Lab) -> dict[bytes, bytes]:
    return lab.client.hgetall(f"conveyor:{{{lab.namespace}:default}}:broken")  # type: ignore[return-value]
