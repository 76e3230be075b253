"""Many kinds of tasks on one worker: each has a name, by which the worker finds its function.

It prints:

    plain: 30
    async: pong
    with its context: run 1 of billing.charge
    with data of one's own: Parcel(weight=Decimal('2.5'), size=<Size.LARGE: 2>)
    of a class: 3 of 3
    by name: 30
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum

from conveyor import Context, Conveyor, Worker

app = Conveyor("task-types")


class Size(Enum):
    SMALL = 1
    LARGE = 2


@dataclass(frozen=True)
class Parcel:
    weight: Decimal
    size: Size


@app.task
def multiply(x: int, y: int) -> int:
    return x * y


@app.task(execution_timeout=5)
async def ping() -> str:
    await asyncio.sleep(0.01)
    return "pong"


# A name of its own stays the same when the function moves to another module.
@app.task(name="billing.charge", bind=True, priority=9, error_retry_limit=3)
def charge(ctx: Context, cents: int) -> str:
    return f"run {ctx.fence} of {ctx.task.name}"


@app.task
def weigh(parcel: Parcel) -> Parcel:
    return replace(parcel, weight=parcel.weight + Decimal("0.5"))


class Mails:
    """A namespace: tasks are functions, so a method that is one is static."""

    @staticmethod
    @app.task(queue="mails")
    def send(to: list[str], *, subject: str) -> str:
        return f"{len(to)} of {len(set(to))}"


def main() -> None:
    worker = Worker(app, ["default", "mails"], concurrency=1)
    worker.start()
    print("plain:", multiply.delay(5, 6).wait(timeout=10))
    print("async:", ping.delay().wait(timeout=10))
    print("with its context:", charge.delay(500).wait(timeout=10))
    parcel = Parcel(Decimal(2), Size.LARGE)
    print("with data of one's own:", weigh.delay(parcel).wait(timeout=10))
    sent = Mails.send.delay(["ada", "bob", "cy"], subject="hello")
    print("of a class:", sent.wait(timeout=10))
    # Who does not import the code sends by name.
    by_name = app.manager().enqueue_task("task_types.multiply", (5, 6))
    print("by name:", by_name.wait(timeout=10))
    worker.shutdown()
    app.close()


if __name__ == "__main__":
    main()
