"""The app of the scenarios in `worker_in_code.py`: its tasks, and what its server tells of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor import Conveyor, constant
from conveyor.broker import commands
from conveyor.queues import read_announcement

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 30.0
LOOK = 0.005

app = Conveyor(
    os.environ.get("TEST_NAMESPACE", "nowhere"), broker=os.environ.get("CONVEYOR_BROKER")
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def aadd(x: int, y: int) -> int:
    return x + y


@app.task(error_retry_limit=1, backoff=constant(0.05))
def boom(text: str) -> None:
    raise ValueError(text)


@app.task(execution_timeout=0.1)
def late() -> None:
    time.sleep(60)


@app.task(stall_retry_limit=0)
def die() -> None:
    os._exit(3)


@app.task
def effect(number: int) -> int:
    with open("effects", "a") as file:
        file.write(f"{number}\n")
    time.sleep(0.002)
    return number


@app.task
def where() -> int:
    return os.getpid()


@app.task
def hold(gate: str) -> str:
    Path(f"{gate}.begun").touch()
    while not Path(gate).exists():
        time.sleep(LOOK)
    return "held"


@app.task
def wait_for_hold(gate: str) -> str:
    return f"waited: {hold.delay(gate).wait()}"


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(LOOK)


def status() -> Any:
    broker = app.client.broker
    return broker.run(commands.status(broker.keys("default")))


def paused() -> list[bool]:
    return [read_announcement(about)["paused"] for about in status().workers.values()]


def effects() -> list[int]:
    path = Path("effects")
    return [int(line) for line in path.read_text().split()] if path.exists() else []
