"""The app whose tasks the benchmarks run."""

from __future__ import annotations

import asyncio
import os
import time

from conveyor import Context, Conveyor

app = Conveyor("benchmarks")


@app.task
def noop() -> None:
    """Nothing, with its result stored."""


@app.task
async def anoop() -> None:
    """Nothing, as a coroutine."""


@app.task
def add(x: int, y: int) -> int:
    """Next to nothing."""
    return x + y


@app.task
def nap(seconds: float) -> None:
    """Takes a while and no CPU."""
    time.sleep(seconds)


@app.task
async def anap(seconds: float) -> None:
    """Takes a while, beside others."""
    await asyncio.sleep(seconds)


@app.task
def compute(seconds: float) -> int:
    """Takes a while of CPU, in Python code."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rounds += sum(range(1000))
    return rounds


@app.task(bind=True)
def hang(ctx: Context) -> None:
    """Tells who runs it and hangs; its second run ends at once."""
    if ctx.fence == 1:
        ctx.update_progress([os.getpid(), os.getppid()])
        time.sleep(600)
