"""Measures each stage of a task's way: enqueue, drain, round trip, idle, waiting behind a long
task; and how long one script holds the server.

    python -m benchmarks                    everything, on the embedded server's binary
    python -m benchmarks drain -n 100000    one of: enqueue drain round_trip idle fairness
    coroutines takeover bounds

Every figure is printed with what it was measured on; compare figures of one run only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CONVEYOR_BROKER", f"embedded://{tempfile.gettempdir()}/conveyor-benchmarks")

from typing import TYPE_CHECKING

from benchmarks.app import add, anap, anoop, app, compute, hang, nap, noop
from benchmarks.bounds import bounds
from conveyor.broker import commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

    from conveyor import TaskResult
    from conveyor.broker.commands import QueueStatus


def status() -> QueueStatus:
    """What the queue holds now."""
    return app.client.broker.run(commands.status(app.client.broker.keys(app.queue)))


@contextlib.contextmanager
def worker(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker process, ready when the block begins."""
    command = [sys.executable, "-m", "conveyor", "-A", "benchmarks.app", "worker", "-l", "WARNING"]
    process = subprocess.Popen([*command, *options], cwd=Path(__file__).parent.parent)
    try:
        add.delay(1, 1).wait(timeout=20)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def rate(key: str, count: int) -> float:
    """Tasks per second between 5 % and 95 % of the last `count` ended, by the server's clock."""
    broker = app.client.broker
    name = broker.keys(app.queue).prefix + key
    total = int(broker.execute(("ZCARD", name)))
    ranks = [total - count + int(count * share) for share in (0.05, 0.95)]
    moments = [float(broker.execute(("ZRANGE", name, r, r, "WITHSCORES"))[1]) for r in ranks]
    return (ranks[1] - ranks[0]) / ((moments[1] - moments[0]) / 1000)


def wait_until_empty() -> None:
    """Polls, from outside: the worker does not notice."""
    while (now := status()).queued or now.processing:
        time.sleep(0.05)


def drain(count: int) -> None:
    """Workers only: what was enqueued before, sync and async."""
    for task in (noop, anoop):
        task.map([()] * count)
        with worker("-c", "2"):
            wait_until_empty()
            print(f"drain {task.name}, -c 2: {rate('ok', count):,.0f}/s of {count:,}, 5 % to 95 %")


def enqueue(count: int) -> None:
    """Callers only."""
    begun = time.perf_counter()
    for _ in range(count // 10):
        noop.delay()
    print(f"enqueue one by one: {count / 10 / (time.perf_counter() - begun):,.0f}/s")
    begun = time.perf_counter()
    noop.map([()] * count)
    print(f"enqueue with map: {count / (time.perf_counter() - begun):,.0f}/s")
    with worker("-c", "2"):
        wait_until_empty()


def round_trip(count: int) -> None:
    """One call at a time, from `delay` to its result."""
    with worker("-c", "2"):
        times: list[float] = []
        for number in range(min(count, 2000)):
            begun = time.perf_counter()
            add.delay(number, 1).wait(timeout=10)
            times.append((time.perf_counter() - begun) * 1000)
        cuts = statistics.quantiles(times, n=100)
        print(f"round trip: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms of {len(times):,}")


def idle(_: int) -> None:
    """What a worker that waits sends and burns."""
    with worker("-c", "2") as process:
        time.sleep(3)
        before, cpu = _commands(), _cpu(process.pid)
        begun = time.monotonic()
        time.sleep(60)
        seconds = time.monotonic() - begun
        calls = _commands() - before - 1
        burnt = _cpu(process.pid) - cpu
        print(f"idle: {calls / seconds:.2f} commands/s, {burnt:.2f} CPU s in {seconds:.0f} s")


def fairness(_: int) -> None:
    """Short tasks behind a long one, after the window has grown."""
    with worker("-c", "2"):
        for result in noop.map([()] * 2000):
            result.wait(timeout=20)
        long = compute.delay(3.0)
        results = nap.map([(0.001,)] * 50)
        for result in results:
            result.wait(timeout=20)
        records = [result.task() for result in results]
        waits = [
            r.processing_started_at - r.queued_at
            for r in records
            if r and r.processing_started_at and r.queued_at
        ]
        ends = [
            r.processing_ended_at - r.queued_at
            for r in records
            if r and r.processing_ended_at and r.queued_at
        ]
        print(
            f"50 short behind a long one: the last was claimed after {_ms(max(waits))}"
            f" and ended after {_ms(max(ends))}"
        )
        long.wait(timeout=20)


def coroutines(_: int) -> None:
    """Coroutines beside a computing task, and more of them than slots."""
    with worker("-c", "1", "--coroutines", "100"):
        anap.delay(0).wait(timeout=10)
        busy = compute.delay(2.0)
        results = anap.map([(0.5,)] * 100)
        for result in results:
            result.wait(timeout=20)
        print(f"100 sleeps of 0.5 s beside a computing task: {_span(results):.2f} s")
        busy.wait(timeout=20)
        results = anap.map([(0.01,)] * 1000)
        for result in results:
            result.wait(timeout=20)
        print(f"1,000 sleeps of 10 ms, 100 at once: {_span(results):.2f} s, enqueuing included")


def takeover(_: int) -> None:
    """How soon a task runs again whose child was killed, and one whose whole worker was."""
    with worker("-c", "2"):
        for who, name in ((0, "child"), (1, "worker, stall_timeout 15 s")):
            with worker("-c", "1"):
                times = [_kill_and_time(who) for _ in range(1 if who else 10)]
            print(f"{name} killed: running again after {max(times):.3f} s at most of {len(times)}")


def _kill_and_time(who: int) -> float:
    result = hang.delay()
    while not (processes := result.progress):
        time.sleep(0.01)
    killed_at = time.time()
    os.kill(processes[who], signal.SIGKILL)
    result.wait(timeout=60)
    record = result.task()
    assert record is not None
    assert record.processing_started_at is not None
    return record.processing_started_at.timestamp() - killed_at


def _span(results: Iterable[TaskResult[None]]) -> float:
    """Seconds from the first task's enqueuing to the last one's end, by the server's clock."""
    records = [record for result in results if (record := result.task())]
    ends = [record.processing_ended_at for record in records if record.processing_ended_at]
    return (max(ends) - min(record.created_at for record in records)).total_seconds()


def _ms(duration: timedelta) -> str:
    return f"{duration.total_seconds() * 1000:.0f} ms"


def _commands() -> int:
    info = app.client.broker.server.client().info("commandstats")
    return sum(int(value["calls"]) for value in info.values())


def _cpu(pid: int) -> float:
    def ticks(one: int) -> int:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(ticks(int(one)) for one in (pid, *children)) / os.sysconf("SC_CLK_TCK")


STAGES: dict[str, Callable[[int], None]] = {
    stage.__name__: stage
    for stage in (enqueue, drain, round_trip, fairness, coroutines, takeover, bounds, idle)
}


def main() -> None:
    """Runs the stages that were named, or all."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], default=[])
    parser.add_argument("-n", type=int, default=100_000, help="tasks where a stage counts them")
    options = parser.parse_args()
    address = app.client.broker.server.address
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {address}")
    for name in options.stages or STAGES:
        STAGES[name](options.n)
    app.close()


if __name__ == "__main__":
    main()
