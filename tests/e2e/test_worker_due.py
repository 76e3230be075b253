"""What comes due: with orchestrators, with several, with none; and a server that goes away."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON, Lab
from servers import Server, wait_until

from conveyor import TaskStatus
from conveyor.orchestrator import Orchestrator

if TYPE_CHECKING:
    from pathlib import Path


def test_scheduled_task_runs_when_it_is_due_and_not_before(lab: Lab) -> None:
    with lab.worker("-c", "1"):
        results = [
            lab.tasks.effect.schedule(at=datetime.now(UTC) + timedelta(seconds=0.6)),
            lab.tasks.aeffect.schedule(after=0.4),
            lab.tasks.effect.schedule(after=timedelta(seconds=0.2)),
            lab.tasks.effect.schedule(at=datetime.now(UTC) - timedelta(seconds=60)),
        ]
        assert [one.wait(SOON) for one in results] == [1] * 4
    for one in results:
        (start,) = lab.history.read("start", task_id=one.id)
        assert one.task().enqueue_after.timestamp() <= start.moment / 1e9


def test_what_comes_due_is_run_although_there_is_no_orchestrator(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "1", "--no-beat"):
        with lab.worker("-c", "1", "--no-beat") as other:
            held = lab.tasks.hold.options(stall_timeout=0.5).map([(gate.path,)] * 2)
            lab.wait_for_starts(*held)
            other.kill()
        gate.open()
        scheduled = lab.tasks.effect.schedule(after=0.3)
        # The task of the dead worker, and the one that is due, are found within seconds.
        assert sorted(one.wait(SOON) for one in held) == [1, 2]
        assert scheduled.wait(SOON) == 1


def test_orchestrator_alone_serves_a_worker_without(lab: Lab) -> None:
    orchestrator = Orchestrator(lab.app, lab.app.queue)
    orchestrator.start()
    with lab.worker("-c", "1", "--no-beat"):
        # A worker by itself would look only every few seconds.
        results = [lab.tasks.effect.schedule(after=0.1 * n) for n in range(1, 11)]
        assert [one.wait(SOON) for one in results] == [1] * 10
        for one in results:
            (start,) = lab.history.read("start", task_id=one.id)
            assert start.moment / 1e9 - one.task().enqueue_after.timestamp() < 2
    orchestrator.stop()


def test_orchestrator_that_hears_of_a_moment_tells_another(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor.orchestrator.RECHECK", 3600.0)
    several = [Orchestrator(lab.app) for _ in range(2)]
    for one in several:
        one.start()
    clocks = [one._clocks[0] for one in several]
    wait_until(lambda: all(one._due == math.inf for one in clocks), "both idle", seconds=SOON)
    lab.tasks.add.schedule(1, 1, after=3600)
    wait_until(lambda: all(one._due < math.inf for one in clocks), "both know", seconds=SOON)
    for one in several:
        one.stop()


def test_two_orchestrators_move_each_task_once(lab: Lab) -> None:
    orchestrators = [Orchestrator(lab.app) for _ in range(2)]
    for one in orchestrators:
        one.start()
    with lab.worker("-c", "2"):
        at = datetime.now(UTC) + timedelta(seconds=0.5)
        calls = [lab.tasks.effect.call() for _ in range(300)]
        results = [call.schedule(at=at) for call in calls]
        assert {one.wait(SOON) for one in results} == {1}
    for one in orchestrators:
        one.stop()
    assert lab.history.count("start") == 300


def test_orchestrator_that_did_not_hear_the_bell_looks_in_time(lab: Lab) -> None:
    blocked = lab.client.info("clients")["blocked_clients"]
    hearing, deaf = (Orchestrator(lab.app) for _ in range(2))
    for number, one in enumerate((hearing, deaf), 1):
        one.start()
        # Whoever has been listening for longest is the one to hear.
        wait_until(
            lambda: lab.client.info("clients")["blocked_clients"] == blocked + number,  # noqa: B023
            "it listens",
        )
    result = lab.tasks.effect.schedule(after=6)
    key = f"conveyor:{{{lab.namespace}:default}}:k:o"
    wait_until(lambda: not lab.client.exists(key), "one has heard")
    hearing.stop()
    wait_until(lambda: result.status is TaskStatus.QUEUED, "queued", seconds=SOON)
    late = (datetime.now(UTC) - result.task().enqueue_after).total_seconds()
    deaf.stop()
    assert late < 10


def test_expired_task_fails_with_and_without_a_worker(lab: Lab) -> None:
    orchestrator = Orchestrator(lab.app)
    orchestrator.start()
    result = lab.tasks.effect.options(expires=0.2).delay()
    assert "Task has expired" in str(lab.ended(result).error)
    orchestrator.stop()
    late = lab.tasks.effect.options(expires=0.05).delay()
    wait_until(lambda: datetime.now(UTC) > late.task().expires_at, "too late")
    with lab.worker("-c", "1", "--no-beat"):
        assert "Task has expired" in str(lab.ended(late).error)
    assert lab.history.count("start") == 0


def test_server_that_restarts_in_mid_run_costs_nothing(tmp_path: Path) -> None:
    with (
        Server(appendonly=True, config={"appendfsync": "always"}) as server,
        Lab(server.url, tmp_path) as lab,
        lab.worker("-c", "2") as worker,
    ):
        gate = lab.gate()
        brief = {"stall_timeout": 1}
        held = lab.tasks.hold.options(**brief).delay(gate.path)
        aheld = lab.tasks.ahold.options(**brief).delay(gate.path)
        flowing = lab.tasks.nap.options(**brief).map([(0.02,)] * 60)
        later = lab.tasks.effect.options(**brief).schedule(after=1)
        lab.wait_for_starts(held, aheld, flowing[10])
        server.kill()
        time.sleep(2.5)  # that long it is away: every lease would have run out
        server.restart()
        assert [one.wait(SOON) for one in flowing] == [None] * 60
        gate.open()
        assert [one.wait(SOON) for one in (held, aheld, later)]
        records = [one.task() for one in (*flowing, held, aheld, later)]
        assert {(record.stall_retries, record.error_retries) for record in records} == {(0, 0)}
        assert lab.history.count("start", task_id=held.id) == 1
        worker.wait_for("is back")
        assert worker.stop() == 0


@pytest.mark.parametrize("seconds", [4.0, 7.5])  # the connections outlast the first
def test_server_that_hangs_in_mid_run_costs_nothing(tmp_path: Path, seconds: float) -> None:
    with (
        Server() as server,
        Lab(server.url, tmp_path) as lab,
        lab.worker("-c", "2"),
        lab.worker("-c", "2"),
    ):
        gate = lab.gate()
        held = lab.tasks.hold.options(stall_timeout=2).map([(gate.path,)] * 2)
        lab.wait_for_starts(*held)
        server.pause()
        time.sleep(seconds)  # that long it says nothing: every lease runs out
        server.resume()
        assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
        gate.open()
        assert [one.wait(SOON) for one in held] == [1, 1]
        assert [one.task().stall_retries for one in held] == [0, 0]
        assert lab.history.count("start") == 2


def test_worker_that_starts_before_its_server(tmp_path: Path) -> None:
    with Server() as server, Lab(server.url, tmp_path) as lab:
        server.kill()
        with lab.worker("-c", "1") as worker:
            worker.wait_for("cannot reach")
            server.restart()
            assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
            assert worker.output.count("cannot reach") <= 2
