"""Fault 1: tasks flow while workers and their children are killed and stopped, seed by seed.

    python -m tests.faults.soak --tasks 100000 --seed 7

runs it by hand, on a server of its own. A producer sends tasks in batches; two workers run them;
every interval the nemesis does one harm: it kills a child or a worker, which is then replaced, or
stops one with SIGSTOP for up to two leases. In the end everything must have been done, and the
checker agree.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from servers import Server

from faults.checker import check, repeated_effects
from faults.lab import Lab

if TYPE_CHECKING:
    from workers import RunningWorker

#: Seconds of a lease: short, so that a worker which is stopped loses some.
LEASE = 1.0
#: Most tasks that wait at a time, so that neither memory nor the server sets the pace.
BACKLOG = 5_000


class Soak:
    """One run.

    Args:
        lab: Where.
        tasks: How many.
        seed: Of the nemesis's choices.
        rate: Most tasks a second.
        interval: Seconds between harms.
    """

    def __init__(
        self, lab: Lab, tasks: int, seed: int, *, rate: float = math.inf, interval: float = 1.0
    ) -> None:
        self.lab = lab
        self.harms: Counter[str] = Counter()
        self._tasks = tasks
        self._rate = rate
        self._interval = interval
        self._chance = random.Random(seed)
        self._workers: list[RunningWorker] = []
        self._stopped: dict[int, float] = {}
        self._produced = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> list[str]:
        """Does it; returns what the checker found."""
        with ExitStack() as stack:
            self._workers = [stack.enter_context(self._start()) for _ in range(2)]
            producer = threading.Thread(target=self._produce, daemon=True)
            producer.start()
            while not self._produced.wait(self._interval):
                stack.enter_context(self._do_harm())
            self._resume(math.inf)
            if self._failure is not None:
                raise self._failure
            self.lab.wait_for_drain(seconds=120)
            outputs = [worker.output for worker in self._workers]
        found = check(self.lab.history.read(), self.lab.contents())
        found += ["a worker printed a traceback" for output in outputs if "Traceback" in output]
        return found

    def _start(self) -> RunningWorker:
        return self.lab.worker("-c", "2")

    def _produce(self) -> None:
        task = self.lab.tasks.effect.options(
            stall_timeout=LEASE, stall_retry_limit=math.inf, retain_success=math.inf
        )
        began = time.monotonic()
        try:
            for first in range(0, self._tasks, 100):
                numbers = range(first, min(first + 100, self._tasks))
                self.lab.enqueue([replace(task.call(), id=f"n{number}") for number in numbers])
                time.sleep(max(0.0, began + first / self._rate - time.monotonic()))
                while self.lab.status().queued > BACKLOG:
                    time.sleep(0.01)
        except Exception as error:
            self._failure = error
        self._produced.set()

    def _do_harm(self) -> ExitStack:
        """One harm, and the end of those that are over; gives what is to be closed in the end."""
        self._resume(time.monotonic())
        stack = ExitStack()
        harm = self._chance.choices(
            ["kill a child", "kill a worker", "stop a child", "stop a worker"], [4, 2, 2, 2]
        )[0]
        worker = self._chance.choice(self._workers)
        children = worker.children()
        self.harms[harm] += 1
        if harm == "kill a worker":
            worker.kill()
            self._workers.remove(worker)
            self._workers.append(stack.enter_context(self._start()))
        elif harm == "stop a worker":
            self._stop(worker.pid)
        elif children:
            child = self._chance.choice(children)
            if harm == "stop a child":
                self._stop(child)
            else:
                _signal(child, signal.SIGKILL)
        return stack

    def _stop(self, pid: int) -> None:
        _signal(pid, signal.SIGSTOP)
        self._stopped[pid] = time.monotonic() + self._chance.uniform(0.2, 2.0) * LEASE

    def _resume(self, now: float) -> None:
        for pid in [pid for pid, moment in self._stopped.items() if moment <= now]:
            del self._stopped[pid]
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it was killed, or replaced, meanwhile
        os.kill(pid, number)


def main() -> int:
    """Runs it as the command line says; returns 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--rate", type=float, default=math.inf, help="most tasks a second")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    began = time.monotonic()
    with (
        Server() as server,
        tempfile.TemporaryDirectory() as directory,
        Lab(server.url, Path(directory)) as lab,
    ):
        soak = Soak(lab, options.tasks, options.seed, rate=options.rate)
        found = soak.run()
        events = lab.history.read("start", "effect")
        stalls = sum(record.stalls for record in lab.contents().records.values())
    starts = sum(event.name == "start" for event in events)
    print(f"{options.tasks:,} tasks in {time.monotonic() - began:.0f} s, {starts:,} starts")
    print(f"{stalls:,} stalls, {repeated_effects(events):,} repeated effects")
    print(f"harms: {dict(soak.harms)}")
    print("\n".join(found[:50]) or "nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
