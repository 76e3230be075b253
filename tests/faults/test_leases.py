"""Faults 3, 5, 12 to 15 and 22: leases that are lost, kept, repeated and handed back."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from servers import Proxy, Server, freeze, wait_until

from conveyor import Conveyor, TaskStatus
from conveyor.broker.scripts import load_script
from conveyor.worker.bell import STAND

from . import tasks
from .lab import SOON, Lab

#: Seconds of a lease in these tests.
LEASE = 1.0


@pytest.mark.parametrize("task", ["hold_then_speak", "ahold"])
def test_3_stopped_worker_that_goes_on_changes_nothing(lab: Lab, task: str) -> None:
    gates = [lab.gate() for _ in range(2)]
    held = getattr(lab.tasks, task).options(stall_timeout=LEASE)
    with lab.worker("-c", "2", "-Q", "default,first") as first:
        ended, running = (held.delay(gate.path) for gate in gates)
        lab.wait_for_starts(ended, running)
        first.pause()
        paused_at = time.monotonic()
        with lab.worker("-c", "2") as second:
            lab.wait_for_starts(ended, running, runs=2)
            wait_until(lambda: time.monotonic() > paused_at + 2 * LEASE, "two leases")
            gates[0].open()
            assert ended.wait(SOON) == 2
            before = [_record(lab, one.id) for one in (ended, running)]
            # Both runs of the stopped worker come to their end; one of them meets the new run.
            _wait_for_effects(lab, ended.id, 2)
            first.resume()
            # What it claims next is settled after all it had to say of before.
            assert lab.tasks.add.options(queue="first").delay(1, 1).wait(SOON) == 2
            first.wait_for("came too late")
            assert [_record(lab, one.id) for one in (ended, running)] == before
            gates[1].open()
            assert running.wait(SOON) == 2
            assert second.alive
    assert lab.history.count("start") == lab.history.count("effect") == 4
    for one in (ended, running):
        record = one.task()
        assert [run.outcome for run in record.attempts] == ["stall", "success"]
        assert (record.stall_retries, record.result) == (1, 2)
    if task == "hold_then_speak":
        # What the late runs said of themselves was refused as well.
        assert {e.fence for e in lab.history.read("refused")} == {1}
        assert {e.fence for e in lab.history.read("kept")} == {2}


def test_3_stopped_worker_does_not_begin_what_it_has_lost(lab: Lab) -> None:
    with lab.worker("-c", "1") as first:
        lab.tasks.noop.map([()] * 1000)  # so short that more is sent ahead
        lab.wait_for_drain()
        (child,) = first.children()
        freeze(child)
        results = lab.tasks.effect.options(stall_timeout=LEASE).map([()] * 30)
        wait_until(lambda: lab.status().processing > 0, "claimed", seconds=SOON)
        first.pause()
        with lab.worker("-c", "1"):
            assert [one.wait(SOON) for one in results]
            os.kill(child, signal.SIGCONT)
            first.resume()
            assert lab.tasks.add.map([(1, 1)] * 10)[-1].wait(SOON) == 2
            first.stop()
    # The stopped child goes on before its parent has learnt what it lost; it looks at the clock.
    assert [lab.history.count("start", task_id=one.id) for one in results] == [1] * 30


def test_5_call_of_c_that_holds_the_interpreter_loses_no_lease(lab: Lab) -> None:
    deaf = lab.tasks.hold_interpreter.options(stall_timeout=LEASE)
    with lab.worker("-c", "1"), lab.worker("-c", "1"):
        result = deaf.delay(3 * LEASE)
        assert result.wait(SOON) == 1
    assert lab.history.count("start", task_id=result.id) == 1
    assert (result.task().retries, result.task().interruptions) == (0, 0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_13_enqueue_whose_reply_is_lost_runs_once(
    lab: Lab, server: Server, asynchronous: bool
) -> None:
    """Even where it has ended and is gone before it is sent again."""

    async def send_all(proxy: Proxy) -> None:
        async with Conveyor(lab.namespace, broker=proxy.url) as caller:
            effect = caller.task(name=lab.tasks.effect.name, remove_on_success=True)(tasks.effect)
            for number in range(10):
                lost = proxy.drop_reply(f"lost-{number}".encode())
                call = effect.options(id=f"lost-{number}")
                result = (await call.adelay()) if asynchronous else call.delay()
                assert lost.is_set()
                assert result.created

    with Proxy(server.port) as proxy, lab.worker("-c", "1"):
        lab.tasks.effect.delay().wait(SOON)
        asyncio.run(send_all(proxy))
        lab.wait_for_drain()
    assert lab.history.count("start") == 11


@pytest.mark.parametrize("task", ["effect", "aeffect"])
def test_14_claim_whose_reply_is_lost_is_run(lab: Lab, server: Server, task: str) -> None:
    effect = getattr(lab.tasks, task)
    queues = ("-Q", "default,other")  # with several no claim stands behind the bell
    with Proxy(server.port) as proxy, lab.worker("-c", "1", *queues, url=proxy.url) as worker:
        assert effect.delay().wait(SOON) == 1
        _wait_until_idle(lab)
        lost = proxy.drop_reply(load_script("settle").sha.encode())
        result = effect.delay()
        assert result.wait(SOON) == 1
        assert lost.is_set()
        assert worker.stop() == 0
    # The repeated call has the same lease: nothing was claimed twice, and nothing stalled.
    assert result.task().stall_retries == 0
    assert lab.history.count("start", task_id=result.id) == 1


@pytest.mark.parametrize("task", ["effect", "aeffect"])
def test_14_claim_behind_the_bell_whose_reply_is_lost_is_run(
    lab: Lab, server: Server, task: str
) -> None:
    effect = getattr(lab.tasks, task)
    with Proxy(server.port) as proxy, lab.worker("-c", "1", url=proxy.url) as worker:
        # Of its two connections only the bell's has such a request; a claim follows it there.
        lost = proxy.drop_reply(f"\r\n{STAND}\r\n".encode())
        first = effect.delay()
        assert first.wait(SOON) == 1
        result = effect.delay()
        assert result.wait(SOON) == 1
        assert lost.wait(SOON)
        assert worker.stop() == 0
    for one in (first, result):
        assert one.task().stall_retries == 0
        assert lab.history.count("start", task_id=one.id) == 1


def test_15_settlement_whose_reply_is_lost_counts_once(lab: Lab, server: Server) -> None:
    with Proxy(server.port) as proxy, lab.worker("-c", "1", url=proxy.url) as worker:
        gate = lab.gate()
        result = lab.tasks.hold.delay(gate.path)
        lab.wait_for_starts(result)
        # Not always 1: a child that begins slowly has what it was given taken back.
        (start,) = lab.history.read("start", task_id=result.id)
        lost = proxy.drop_reply(result.id.encode())
        gate.open()
        assert result.wait(SOON) == start.fence
        assert lost.wait(SOON)
        assert lab.tasks.add.delay(1, 1).wait(SOON) == 2
        assert worker.stop() == 0
    assert lab.history.count("effect", task_id=result.id) == 1
    contents = lab.contents()
    assert contents.counters["ok"] == 2
    assert contents.records[result.id].starts == start.fence


def test_12_connections_that_are_cut_cost_nothing(lab: Lab, server: Server) -> None:
    with Proxy(server.port) as proxy, lab.worker("-c", "2", url=proxy.url) as worker:
        results = lab.tasks.effect.map([()] * 2000)
        deadline = time.monotonic() + SOON
        while lab.status().success < 2000 and time.monotonic() < deadline:
            proxy.cut()
            time.sleep(0.1)  # that often connections are cut
        assert {one.status for one in results} == {TaskStatus.SUCCESS}
        assert worker.stop() == 0
    assert lab.history.count("start") == 2000
    assert {record.stalls for record in lab.contents().records.values()} == {0}


def test_22_shutdown_hands_back_at_once_what_has_not_begun(lab: Lab) -> None:
    gate = lab.gate()
    with lab.worker("-c", "2", "--threads", "25") as worker:
        lab.tasks.noop.map([()] * 4000)  # so short that the worker claims far ahead
        lab.wait_for_drain()
        held = lab.tasks.hold.map([(gate.path,)] * 50)
        rest = lab.tasks.effect.map([()] * 200)
        wait_until(lambda: lab.history.count("start") == 50, "fifty run", seconds=SOON)
        worker.signal(signal.SIGTERM)
        told_at = time.monotonic()
        wait_until(
            lambda: (lab.status().queued, lab.status().processing) == (200, 50),
            "the rest is back",
            seconds=SOON,
        )
        assert time.monotonic() - told_at < 5
        assert lab.history.count("start") == 50
        for one in rest:
            record = one.task()
            assert (record.retries, record.interruptions, record.attempts) == (0, 0, ())
        gate.open()
        assert worker.wait() == 0
    assert {one.status for one in held} == {TaskStatus.SUCCESS}


def _record(lab: Lab, task_id: str) -> bytes | None:
    return lab.client.get(f"conveyor:{{{lab.namespace}:default}}:t:{task_id}")


def _wait_for_effects(lab: Lab, task_id: str, count: int) -> None:
    wait_until(
        lambda: lab.history.count("effect", task_id=task_id) == count, "had effects", seconds=SOON
    )


def _wait_until_idle(lab: Lab) -> None:
    """Until the worker has found its queue empty, and listens to both lanes."""
    markers = [f"conveyor:{{{lab.namespace}:default}}:k:{lane}" for lane in "ra"]

    def blocked() -> bool:
        return not lab.client.exists(*markers) and lab.client.info("clients")["blocked_clients"] > 0

    wait_until(blocked, "idle", seconds=SOON)
