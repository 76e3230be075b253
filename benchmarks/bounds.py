"""How long one script holds the server at most, when very much comes due at one instant.

What counts is the time that the server's own thread worked: the wall clock also counts what other
programs on the machine took from it. Where the machine itself is shared, even that time counts what
its neighbours took, so the longest call says more about them than the 99th percentile does.
"""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.app import app, noop
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE = "bounds"
STALL_TIMEOUT = 15


class Timed:
    """Calls of one kind, and how long the server's thread worked on each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def call(self, command: commands.Command[Any]) -> Any:
        """Runs a command."""
        before = _worked()
        answer = app.client.broker.run(command)
        self.seconds.append(_worked() - before)
        return answer

    def report(self, what: str) -> None:
        """Prints the figures."""
        cuts = [cut * 1000 for cut in statistics.quantiles(self.seconds, n=100)]
        longest = max(self.seconds) * 1000
        print(f"{what}: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms, longest {longest:.2f} ms")


def bounds(count: int) -> None:
    """Scripts while so many tasks are due at one instant, and their leases run out at another."""
    manager = app.manager(QUEUE)
    keys = app.client.broker.keys(QUEUE)
    manager.schedule_tasks([{"task": noop, "after": 3600}] * count)
    for steps in ({"promoted": 7200}, {"given notice": STALL_TIMEOUT + 1, "reaped": 1}):
        for what, seconds in steps.items():
            _advance(keys.memory, seconds)
            _until_done(lambda timed: timed.call(commands.maintain(keys)).more, f"{count:,} {what}")
        worker = os.urandom(4)
        calls = iter(range(1, count))

        def claim(timed: Timed, worker: bytes = worker, calls: Any = calls) -> bool:
            call = commands.settle(
                keys, worker, next(calls), [], sync=commands.BATCH, asynchronous=0,
                keep_success=0, park_ms=0,
            )  # fmt: skip
            return bool(timed.call(call).claimed)

        _until_done(claim, f"{count:,} claimed once {what}")
    manager.destroy_queue()


def _until_done(step: Callable[[Timed], bool], what: str) -> None:
    timed = Timed()
    while step(timed):
        pass
    timed.report(what)


def _advance(memory: str, seconds: int) -> None:
    """Moves the queue's clock, which never runs backwards, ahead of the server's."""
    now, _ = app.client.broker.execute(("TIME",))
    seen = int(app.client.broker.execute(("HGET", memory, "seen")) or 0)
    later = max(int(now) * 1000, seen) + seconds * 1000
    app.client.broker.execute(("HSET", memory, "seen", later))


def _worked() -> float:
    info = app.client.broker.server.client().info("cpu")
    return float(info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"])
