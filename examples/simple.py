"""One app, one worker, and what comes back: run it with `python examples/simple.py`.

Everything happens in one process tree here, on the embedded server; usually the worker is a process
of its own, started with `conveyor -A simple worker`.

    1 + 2 = 3
    the squares: [0, 1, 4, 9, 16]
    slept beside each other: 20 naps
    failed as it should, after 3 runs: ValueError: not today
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


async def main() -> None:
    # Sync code has `delay` and `wait` for the same: see scheduled.py.
    worker = Worker(app, concurrency=2)
    worker.start()
    async with app:
        print(f"1 + 2 = {await (await add.adelay(1, 2))}")
        squares = await square.amap([(n,) for n in range(5)])
        print(f"the squares: {[await result for result in squares]}")
        naps = await nap.amap([(0.1,)] * 20)
        print(f"slept beside each other: {len([await result for result in naps])} naps")
        try:
            await (await fail.adelay("not today"))
        except TaskFailed as error:
            runs = len(error.record.attempts)
            print(f"failed as it should, after {runs} runs: {error.record.error}")
        worker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
