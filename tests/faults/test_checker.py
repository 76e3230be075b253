"""The checker finds every kind of fault, planted in a history or in what a real server holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest
import redis
from engine import ERROR, Engine, Worker

from .checker import check, leftovers, read_contents, repeated_effects
from .history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers import Server

    from conveyor import Conveyor


class Scene:
    """A queue where one task each succeeded, was retried, handed back, failed and cancelled."""

    def __init__(self, app: Conveyor, directory: Path, url: str) -> None:
        self.engine = Engine(app)
        self.worker = Worker(self.engine)
        self.history = History(directory)
        self._client = redis.Redis.from_url(url)
        self._namespace = app.namespace
        self.put("plain")
        self.succeed("plain", 1)
        self.put("retried", error_retry_limit=1)
        self.history.note("start", "retried", 1)
        self.worker.run("retried", "error", ERROR)
        self.engine.advance(1)
        self.succeed("retried", 2)
        self.put("released")
        self.worker.run("released", "release")
        self.succeed("released", 2)
        self.put("failed")
        self.history.note("start", "failed", 1)
        self.worker.run("failed", "fatal", ERROR)
        self.put("cancelled")
        self.engine.cancel("cancelled")

    def put(self, task_id: str, **about: object) -> None:
        self.history.note("enq-try", task_id)
        self.engine.put(task_id, **about)
        self.history.note("enq-ok", task_id)

    def succeed(self, task_id: str, fence: int) -> None:
        self.history.note("start", task_id, fence)
        self.history.note("effect", task_id, fence)
        self.worker.run(task_id, "success", msgpack.packb(fence))

    def call(self, command: str, key: str, *args: object) -> None:
        self.engine.call(command, self.engine.key(key), *args)

    def check(self, **about: bool) -> list[str]:
        return check(self.history.read(), read_contents(self._client, self._namespace), **about)

    def leftovers(self) -> set[str]:
        return leftovers(read_contents(self._client, self._namespace))

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def scene(app: Conveyor, tmp_path: Path, server: Server) -> Iterator[Scene]:
    scene = Scene(app, tmp_path, server.url)
    yield scene
    scene.close()


def test_nothing_is_found_where_all_is_well(scene: Scene) -> None:
    assert scene.check(in_order=True) == []


def lose(scene: Scene) -> None:
    scene.call("DEL", "t:plain")
    scene.call("ZREM", "ok", "plain")


def leave_unfinished(scene: Scene) -> None:
    scene.put("unfinished")


def leave_unfinished_what_was_uncertain(scene: Scene) -> None:
    scene.history.note("enq-try", "unsure")
    scene.engine.put("unsure")
    scene.history.note("enq-unknown", "unsure")


def succeed_without_effect(scene: Scene) -> None:
    scene.put("idle")
    scene.history.note("start", "idle", 1)
    scene.worker.run("idle", "success", msgpack.packb(1))


def accept_twice(scene: Scene) -> None:
    scene.call("HINCRBY", "m", "ok", 1)


def record_an_older_run(scene: Scene) -> None:
    scene.history.note("start", "plain", 2)


def keep_the_result_of_another_run(scene: Scene) -> None:
    length = scene.engine.call("STRLEN", scene.engine.key("t:retried"))
    scene.call("SETRANGE", "t:retried", length - 1, b"\1")


def begin_a_lease_twice(scene: Scene) -> None:
    scene.history.note("start", "plain", 1)


def overlap_leases(scene: Scene) -> None:
    run = bytearray(scene.engine.call("HGET", scene.engine.key("x:retried"), "a0"))
    run[6:12] = (int.from_bytes(run[6:12], "little") + 60_000).to_bytes(6, "little")
    scene.call("HSET", "x:retried", "a0", bytes(run))


def begin_what_was_handed_back(scene: Scene) -> None:
    scene.history.note("start", "released", 1)


def jump_the_queue(scene: Scene) -> None:
    for task_id in ("first", "second"):
        scene.put(task_id)
    for task_id in ("second", "first"):
        scene.history.note("start", task_id, 1)
        scene.history.note("effect", task_id, 1)
    for task_id in ("first", "second"):
        scene.worker.run(task_id, "success", msgpack.packb(1))


def be_in_two_places(scene: Scene) -> None:
    scene.call("RPUSH", "r:5", "plain")


def be_in_no_place(scene: Scene) -> None:
    scene.call("ZREM", "ok", "plain")


def be_in_the_wrong_place(scene: Scene) -> None:
    scene.call("ZREM", "ok", "plain")
    scene.call("ZADD", "failed", 1, "plain")


def have_no_record(scene: Scene) -> None:
    scene.history.note("enq-try", "ghost")
    scene.call("ZADD", "l", 1, "ghost")


def miscount_tombstones(scene: Scene) -> None:
    scene.call("HINCRBY", "m", "tombstones", 1)


def set_aside(scene: Scene) -> None:
    scene.call("HSET", "broken", "plain", "truncated")


def leave_extras(scene: Scene) -> None:
    scene.call("HSET", "x:gone", "e", "")


def start_early(scene: Scene) -> None:
    scene.put("early", due="+1000")
    scene.engine.advance(1)
    scene.engine.maintain()
    scene.succeed("early", 1)


def run_what_nobody_enqueued(scene: Scene) -> None:
    scene.engine.put("stranger")
    scene.succeed("stranger", 1)


@pytest.mark.parametrize(
    ("plant", "rules"),
    [
        (lose, {"C1", "C3"}),
        (leave_unfinished, {"C1"}),
        (leave_unfinished_what_was_uncertain, {"C1"}),
        (succeed_without_effect, {"C2"}),
        (accept_twice, {"C3"}),
        (record_an_older_run, {"C3", "C5"}),
        (keep_the_result_of_another_run, {"C3"}),
        (begin_a_lease_twice, {"C4", "C5"}),
        (overlap_leases, {"C4"}),
        (begin_what_was_handed_back, {"C5"}),
        (jump_the_queue, {"C6"}),
        (be_in_two_places, {"C7"}),
        (be_in_no_place, {"C7"}),
        (be_in_the_wrong_place, {"C7"}),
        (have_no_record, {"C7"}),
        (miscount_tombstones, {"C7"}),
        (set_aside, {"C7"}),
        (leave_extras, {"C7"}),
        (start_early, {"C8"}),
        (run_what_nobody_enqueued, {"C9"}),
    ],
)
def test_fault_is_found(scene: Scene, plant: Callable[[Scene], None], rules: set[str]) -> None:
    plant(scene)
    found = scene.check(in_order=True)
    assert {violation.partition(":")[0] for violation in found} == rules, found


def test_repeated_effects_are_counted(scene: Scene) -> None:
    assert repeated_effects(scene.history.read()) == 0
    scene.history.note("effect", "plain", 2)
    scene.history.note("effect", "plain", 3)
    scene.history.note("effect", "retried", 3)
    assert repeated_effects(scene.history.read()) == 2


def test_leftovers_are_found(scene: Scene) -> None:
    for task_id in ("plain", "retried", "released", "failed", "cancelled"):
        scene.call("DEL", f"t:{task_id}")
        scene.call("DEL", f"x:{task_id}")
    for name in ("ok", "failed", "cancelled", "r:5"):
        scene.call("DEL", name)
    assert scene.leftovers() <= {"tombstones"}
    scene.call("HSET", "x:plain", "e", "")
    scene.call("RPUSH", "r:3", "plain")
    assert scene.leftovers() >= {"x:plain", "r:3"}
