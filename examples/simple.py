"""One app, one worker, and what comes back: run it with `python examples/simple.py`.

Everything happens in one process tree here, on the embedded server; usually the worker is a process
of its own, started with `conveyor -A simple worker`.

    1 + 2 = 3
    the squares: [0, 1, 4, 9, 16]
    slept beside each other: 20 naps
    failed as it should: ValueError: not today
"""

from __future__ import annotations

import asyncio

from conveyor import Conveyor, TaskFailed, Worker, constant

app = Conveyor("simple")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def square(x: int) -> int:
    return x * x


@app.task
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@app.task(error_retry_limit=2, backoff=constant(0.1))
def fail(reason: str) -> None:
    raise ValueError(reason)


async def naps(count: int) -> int:
    async with app:
        results = await nap.amap([(0.1,)] * count)
        return len([await result for result in results])


def main() -> None:
    worker = Worker(app, concurrency=2)
    worker.start()
    print(f"1 + 2 = {add.delay(1, 2).wait(timeout=10)}")
    print(f"the squares: {[r.wait(timeout=10) for r in square.map([(n,) for n in range(5)])]}")
    print(f"slept beside each other: {asyncio.run(naps(20))} naps")
    try:
        fail.delay("not today").wait(timeout=10)
    except TaskFailed as error:
        assert len(error.record.attempts) == 3
        print(f"failed as it should: {error.record.error}")
    worker.shutdown()
    app.close()


if __name__ == "__main__":
    main()
