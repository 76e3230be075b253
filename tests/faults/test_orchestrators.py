"""Fault 2: of two orchestrators one is killed every two seconds; all that is due is run once.

Its short form; with CONVEYOR_LONG in the environment its long one.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from workers import Running

from conveyor.recurrence import Recurrence, moment_text

from .lab import LONG, TESTS, Lab

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

    from conveyor import RecurringRecord

#: Seconds that it lasts, and between two kills.
DURATION = 600.0 if LONG else 14.0
INTERVAL = 2.0


def start_orchestrator(lab: Lab) -> Running:
    """`conveyor beat` of the lab's app, up."""
    about = {
        "CONVEYOR_BROKER": lab.url,
        "TEST_NAMESPACE": lab.namespace,
        "TEST_HISTORY": str(lab.directory),
    }
    command = ("-m", "conveyor", "-A", "faults.application", "beat")
    return Running(*command, cwd=TESTS, env=about)


def moments(before: RecurringRecord, after: RecurringRecord) -> set[str]:
    """The ids of all firings from one look at an entry to a later one."""
    every = None if before.every is None else round(before.every * 1000)
    when = Recurrence(cron=before.cron, every_ms=every)
    moment, end = (round(one.next_due_at.timestamp() * 1000) for one in (before, after))
    found: set[str] = set()
    while moment < end:
        found.add(f"{before.name}@{moment_text(moment)}")
        moment = when.next_after(moment)
    return found


@pytest.mark.timeout(3600 if LONG else 120)
def test_what_is_due_is_run_once_while_orchestrators_die(server: Server, tmp_path: Path) -> None:
    chance = random.Random(2)
    with Lab(server.url, tmp_path) as lab, ExitStack() as stack:
        stack.enter_context(lab.worker("-c", "2", "--no-beat"))
        beats = [stack.enter_context(start_orchestrator(lab)) for _ in range(2)]
        for beat in beats:
            beat.wait_for("beat of")
        task = lab.tasks.effect
        lab.app.add_recurring("fast", task.call(), every=0.1, catch_up="all")
        lab.app.add_recurring("tick", task.call(), cron="* * * * * *", catch_up="all")
        lab.app.add_recurring("skip", task.call(), every=0.7)
        begun = {record.name: record for record in lab.app.recurring()}
        scheduled = [
            task.schedule(after=chance.uniform(0.5, DURATION)) for _ in range(int(20 * DURATION))
        ]
        kills = 0
        end = time.monotonic() + DURATION
        while time.monotonic() < end:
            time.sleep(INTERVAL)
            victim = beats.pop(0)
            victim.kill()
            kills += 1
            beats.append(stack.enter_context(start_orchestrator(lab)))
            beats[-1].wait_for("beat of")
        for result in scheduled:
            result.wait(60)
        ended = {record.name: record for record in lab.app.recurring()}
        for name in begun:
            assert lab.app.remove_recurring(name)
        lab.wait_for_drain()
        assert kills >= DURATION / INTERVAL / 2
        runs = Counter(event.id for event in lab.history.read("effect"))
        assert set(runs.values()) == {1}
        assert {result.id for result in scheduled} <= set(runs)
        for name in ("fast", "tick"):
            assert moments(begun[name], ended[name]) <= set(runs)
        # It may miss what nobody was there for in time.
        assert sum(one.startswith("skip@") for one in runs) > DURATION / 0.7 / 4
