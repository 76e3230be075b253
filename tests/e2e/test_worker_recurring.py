"""Recurring tasks with real orchestrators and workers: fired, changed, removed, caught up with."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest
from faults.lab import SOON, Lab
from servers import Server, wait_until
from workers import Project

from conveyor import Conveyor, Orchestrator, TaskStatus
from conveyor.recurrence import Recurrence, moment_text
from conveyor.recurring import LAPSE_MS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conveyor import RecurringRecord

DECLARES = """
    from conveyor import Conveyor

    app = Conveyor("NAME")

    @app.task(every=0.25, retain_success=600)
    def tick() -> int:
        return 1

    @app.task(cron="* * * * * *", catch_up="all")
    async def tock() -> int:
        return 2

    @app.task(cron="0 0 1 1 *", queue="elsewhere")
    def rarely() -> None: ...
"""


@pytest.fixture
def declaring(server: Server, tmp_path: Path) -> Iterator[tuple[Project, Conveyor]]:
    """A project whose decorators declare, and an app of the test's own that looks at it."""
    project = Project(tmp_path, server.url, DECLARES)
    with Conveyor(project.name, broker=server.url) as app:
        yield project, app


@contextlib.contextmanager
def orchestrator(app: Conveyor) -> Iterator[None]:
    running = Orchestrator(app)
    running.start()
    try:
        yield
    finally:
        running.stop()


def fired(app: Conveyor, name: str, queue: str = "default") -> list[str]:
    """The ids of an entry's tasks that there are, by their moments."""
    prefix = f"{app.client.broker.keys(queue).prefix}t:"
    execute = app.client.broker.execute
    keys = execute(("KEYS", f"{prefix}{name}@*"))
    return sorted((key.decode().removeprefix(prefix) for key in keys), key=lambda one: one[:-1])


def expected(record: RecurringRecord, first_ms: int, count: int) -> list[str]:
    """The ids of so many moments in a row."""
    every = None if record.every is None else round(record.every * 1000)
    when = Recurrence(cron=record.cron, every_ms=every)
    found, moment = [], first_ms
    for _ in range(count):
        found.append(f"{record.name}@{moment_text(moment)}")
        moment = when.next_after(moment)
    return found


def entry(app: Conveyor, name: str) -> RecurringRecord:
    return next(record for record in app.recurring() if record.name == name)


def ms(record: RecurringRecord) -> int:
    return round(record.next_due_at.timestamp() * 1000)


def test_what_decorators_declare_is_fired_and_run(declaring: tuple[Project, Conveyor]) -> None:
    project, app = declaring
    with project.worker("-c", "1") as worker:
        wait_until(lambda: len(app.recurring()) == 2, "declared", seconds=SOON)
        assert {(one.name, one.declared) for one in app.recurring()} == {
            ("myapp.tick", True),
            ("myapp.tock", True),
        }
        assert app.recurring("elsewhere") == []
        wait_until(lambda: len(fired(app, "myapp.tick")) >= 8, "ticks", seconds=SOON)
        wait_until(lambda: len(fired(app, "myapp.tock")) >= 2, "tocks", seconds=SOON)
        assert worker.stop() == 0
    ticks = fired(app, "myapp.tick")
    for task_id in [*ticks[:7], *fired(app, "myapp.tock")[:1]]:
        record = app.result(task_id).task()
        assert record is not None
        assert (record.status, len(record.attempts)) == (TaskStatus.SUCCESS, 1)
        assert record.queued_at >= record.enqueue_after
        assert task_id.endswith(f"@{moment_text(round(record.enqueue_after.timestamp() * 1000))}")
    tocks = fired(app, "myapp.tock")
    assert all(app.result(task_id).wait(SOON) == 2 for task_id in tocks[:1])


def test_each_queue_has_its_entries_declared_by_those_who_serve_it(
    declaring: tuple[Project, Conveyor],
) -> None:
    project, app = declaring
    with project.start("-A", "myapp", "beat", "-Q", "elsewhere"):
        wait_until(lambda: app.recurring("elsewhere"), "declared", seconds=SOON)
    assert [one.name for one in app.recurring("elsewhere")] == ["myapp.rarely"]
    assert app.recurring() == []


def test_a_worker_without_an_orchestrator_declares_too_and_again_on_a_new_connection(
    declaring: tuple[Project, Conveyor], server: Server
) -> None:
    project, app = declaring
    execute = app.client.broker.execute
    keys = app.client.broker.keys("default")
    with project.worker("-c", "1", "--no-beat"):
        wait_until(lambda: len(app.recurring()) == 2, "declared", seconds=SOON)
        lapse = float(execute(("ZSCORE", keys.prefix + "recurring:lapse", "myapp.tick")))
        seconds, _ = execute(("TIME",))
        assert 0 < lapse - float(seconds) * 1000 <= LAPSE_MS + 1000
        # As when the server has lost everything: it is another one, or was restored.
        for name in ("", ":due", ":lapse", ":last"):
            execute(("DEL", f"{keys.prefix}recurring{name}"))
        assert app.recurring() == []
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: len(app.recurring()) == 2, "declared again", seconds=SOON)


def test_a_changed_declaration_replaces_the_old_one_and_an_old_process_only_prolongs_it(
    declaring: tuple[Project, Conveyor], server: Server
) -> None:
    project, app = declaring
    execute = app.client.broker.execute
    lapses = app.client.broker.keys("default").prefix + "recurring:lapse"
    with project.start("-A", "myapp", "beat"):
        wait_until(lambda: len(app.recurring()) == 2, "declared", seconds=SOON)
        project.write("myapp.py", DECLARES.replace("every=0.25", "every=86400"))
        with project.start("-A", "myapp", "beat"):
            wait_until(lambda: entry(app, "myapp.tick").every == 86400, "changed", seconds=SOON)
        before = float(execute(("ZINCRBY", lapses, -LAPSE_MS / 2, "myapp.tick")))
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(
            lambda: float(execute(("ZSCORE", lapses, "myapp.tick"))) > before,
            "prolonged",
            seconds=SOON,
        )
        assert entry(app, "myapp.tick").every == 86400
        assert entry(app, "myapp.tick").declared


def test_two_orchestrators_fire_each_moment_once(lab: Lab) -> None:
    lab.app.add_recurring("tick", lab.tasks.effect.call(), every=0.1)
    first = ms(entry(lab.app, "tick"))
    with orchestrator(lab.app), orchestrator(lab.app), lab.worker("-c", "1"):
        wait_until(lambda: len(fired(lab.app, "tick")) >= 20, "fired", seconds=SOON)
        record = entry(lab.app, "tick")
        lab.app.remove_recurring("tick")
        lab.wait_for_drain()
    ids = fired(lab.app, "tick")
    assert set(ids) <= set(expected(record, first, (ms(record) - first) // 100 + 2))
    assert sorted(event.id for event in lab.history.read("effect")) == sorted(ids)


def test_live_orchestrators_follow_a_change_at_once(lab: Lab) -> None:
    with orchestrator(lab.app), lab.worker("-c", "1", "--no-beat"):
        lab.app.add_recurring("tick", lab.tasks.add.call(1, 2), every=3600)
        lab.app.add_recurring("tick", lab.tasks.add.call(3, 4), every=0.2)
        wait_until(lambda: fired(lab.app, "tick"), "fired", seconds=SOON)
        assert lab.app.result(fired(lab.app, "tick")[0]).wait(SOON) == 7
        lab.app.add_recurring("tick", lab.tasks.add.call(5, 6), every=3600)
        count = len(fired(lab.app, "tick"))
        # It would have fired by the time that another one has.
        lab.app.add_recurring("other", lab.tasks.add.call(0, 0), every=0.5)
        wait_until(lambda: len(fired(lab.app, "other")) >= 2, "fired", seconds=SOON)
        assert len(fired(lab.app, "tick")) == count
        assert lab.app.remove_recurring("other")
        assert [one.name for one in lab.app.recurring()] == ["tick"]


@pytest.mark.parametrize("catch_up", ["one", "all"])
def test_after_an_outage_of_all_orchestrators(lab: Lab, catch_up: str) -> None:
    lab.app.add_recurring("tick", lab.tasks.effect.call(), every=0.25, catch_up=catch_up)
    first = ms(entry(lab.app, "tick"))
    with orchestrator(lab.app):
        wait_until(lambda: fired(lab.app, "tick"), "fired", seconds=SOON)
    before = len(fired(lab.app, "tick"))
    time.sleep(1.5)  # the outage
    with orchestrator(lab.app):
        wait_until(lambda: len(fired(lab.app, "tick")) > before + 8, "fired", seconds=SOON)
    ids = fired(lab.app, "tick")
    if catch_up == "all":
        assert ids == expected(entry(lab.app, "tick"), first, len(ids))
    else:
        assert ids != expected(entry(lab.app, "tick"), first, len(ids))


def test_cron_with_seconds(lab: Lab) -> None:
    lab.app.add_recurring("tick", lab.tasks.effect.call(), cron="*/1 * * * * *", catch_up="all")
    first = ms(entry(lab.app, "tick"))
    with orchestrator(lab.app):
        wait_until(lambda: len(fired(lab.app, "tick")) >= 3, "fired", seconds=SOON)
    ids = fired(lab.app, "tick")
    assert ids == expected(entry(lab.app, "tick"), first, len(ids))


def test_a_firing_is_left_out_while_the_one_before_runs(lab: Lab) -> None:
    gate = lab.gate()
    call = lab.tasks.hold.call(gate.path)
    with lab.worker("-c", "2"):
        lab.app.add_recurring("tick", call, every=0.1, overlap="skip")
        first = ms(entry(lab.app, "tick"))
        wait_until(lambda: ms(entry(lab.app, "tick")) > first + 500, "moved on", seconds=SOON)
        assert len(fired(lab.app, "tick")) == 1
        gate.open()
        wait_until(lambda: len(fired(lab.app, "tick")) >= 3, "fires again", seconds=SOON)


def test_on_a_full_server_running_work_ends_and_what_is_due_fires_later(tmp_path: Path) -> None:
    with Server() as server, Lab(server.url, tmp_path) as lab, lab.worker("-c", "1") as worker:
        gate = lab.gate()
        held = lab.tasks.hold.delay(gate.path)
        lab.wait_for_starts(held)
        lab.app.add_recurring("tick", lab.tasks.effect.call(), every=0.5)
        server.call("CONFIG", "SET", "maxmemory", "1")
        due = entry(lab.app, "tick").next_due_at
        worker.wait_for("failed in fire")
        gate.open()
        assert held.wait(SOON) == 1
        count = len(fired(lab.app, "tick"))
        assert entry(lab.app, "tick").next_due_at >= due
        server.call("CONFIG", "SET", "maxmemory", "0")
        wait_until(lambda: len(fired(lab.app, "tick")) > count, "fires again", seconds=SOON)
        assert worker.stop() == 0
