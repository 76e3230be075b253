"""Faults 29 and 30: a rate limit under kills; pausing, resuming and cancelling while tasks flow."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from servers import wait_until

from .lab import LONG, SOON, Lab
from .windows import most_in_a_window, starts_of

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

    from conveyor import Manager


@pytest.mark.timeout(3600 if LONG else 120)
def test_29_rate_limit_under_kills(server: Server, tmp_path: Path) -> None:
    points, duration = 10, 0.25
    many = 10_000 if LONG else 300
    chance = random.Random(29)
    with Lab(server.url, tmp_path) as lab, ExitStack() as stack:
        lab.app.manager().set_queue_rate_limit(points, duration)
        task = lab.tasks.effect.options(stall_timeout=1.0, stall_retry_limit=float("inf"))
        lab.enqueue([replace(task.call(), id=f"n{number}") for number in range(many)])
        workers = [stack.enter_context(lab.worker("-c", "2")) for _ in range(2)]
        kills = 0
        while lab.status().success < many:
            time.sleep(0.5)
            worker = chance.choice(workers)
            children = worker.children()
            kills += 1
            if kills % 3 == 0:
                worker.kill()
                workers.remove(worker)
                workers.append(stack.enter_context(lab.worker("-c", "2")))
            elif children:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(children), signal.SIGKILL)
        contents = lab.contents()
        starts = starts_of(contents)
        assert kills >= 3
        assert len(starts) >= many
        assert most_in_a_window(starts, duration) <= points
        lab.check()


class Flow:
    """Tasks that are sent while their queue is paused, resumed, and some of them cancelled."""

    def __init__(self, lab: Lab, many: int) -> None:
        self.lab = lab
        self.many = many
        self.sent: list[str] = []
        self.cancelled = 0
        self.rounds = 0
        self.failure: Exception | None = None
        self.done = threading.Event()

    def produce(self) -> None:
        try:
            for first in range(0, self.many, 50):
                self.send([f"n{number}" for number in range(first, first + 50)])
                time.sleep(0.02)
        except Exception as error:
            self.failure = error
        self.done.set()

    def send(self, ids: list[str]) -> None:
        task = self.lab.tasks.effect.options(retain_success=float("inf"))
        self.lab.enqueue([replace(task.call(), id=task_id) for task_id in ids])
        self.sent += ids

    def disturb(self, manager: Manager, chance: random.Random) -> None:
        self.rounds += 1
        manager.pause_queue()
        # What is sent now waits, so it is sure to be cancelled before it runs.
        waiting = f"paused-{self.rounds}"
        self.send([waiting])
        assert manager.cancel_task_by_id(waiting)
        self.cancelled += 1
        for task_id in self.sent[-100:]:
            if chance.randrange(10) == 0 and manager.cancel_task_by_id(task_id):
                self.cancelled += 1
        manager.resume_queue()


@pytest.mark.timeout(3600 if LONG else 120)
def test_30_pausing_resuming_and_cancelling_while_thousands_flow(
    server: Server, tmp_path: Path
) -> None:
    with Lab(server.url, tmp_path) as lab, lab.worker("-c", "2"), lab.worker("-c", "2"):
        manager = lab.app.manager()
        flow = Flow(lab, 100_000 if LONG else 5_000)
        chance = random.Random(30)
        producer = threading.Thread(target=flow.produce, daemon=True)
        producer.start()
        while not flow.done.wait(0.1) or flow.rounds < 10:
            flow.disturb(manager, chance)
        if flow.failure is not None:
            raise flow.failure
        lab.wait_for_drain(seconds=4 * SOON)
        producer.join()
        wait_until(lambda: lab.status().processing == 0, "nothing runs", seconds=SOON)
        contents = lab.contents()
        states = Counter(record.state for record in contents.records.values())
        counts = manager.get_task_counts()
        assert (counts.success, counts.cancelled) == (states["success"], states["cancelled"])
        # A run that ended before it could be stopped has succeeded.
        assert flow.rounds <= counts.cancelled <= flow.cancelled
        assert counts.success + counts.cancelled == flow.many + flow.rounds
        assert counts.failed == counts.queued == 0
        lab.check()
