"""Tasks that wait for tasks: a worker of one child and one coroutine runs a tree and a crowd.

A task that waits for another lends its slot to others, so neither deadlocks.

It prints:

    files in the tree: 31, by at most 1 task at a time
    answered: 100 of 100 questions
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from conveyor import Conveyor, Worker

app = Conveyor("subtasks")


class Meter:
    """Counts across processes how many tasks are at work, and how many were at most."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, change: int) -> int:
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            now, most = (int(word) for word in (file.read() or "0 0").split())
            now += change
            file.truncate(0)
            file.write(f"{now} {max(most, now)}")
            return max(most, now)


meter = Meter(Path(tempfile.gettempdir()) / f"conveyor-subtasks-{os.getpid()}")


@app.task
def count(depth: int) -> int:
    """Counts the files of a tree: each folder sends a task for each of its two folders."""
    meter.add(+1)
    folders = count.map([(depth - 1,)] * 2) if depth else []
    meter.add(-1)
    # The slot is lent from here until the last of them has ended.
    found = [folder.wait() for folder in folders]
    meter.add(+1)
    total = 1 + sum(found)
    meter.add(-1)
    return total


@app.task
async def answer(question: int) -> int:
    return question + 1


@app.task
async def ask(question: int) -> int:
    return await (await answer.adelay(question))


def main() -> None:
    worker = Worker(app, concurrency=1, coroutines=1)
    worker.start()
    total = count.delay(4).wait(timeout=40)
    print(f"files in the tree: {total}, by at most {meter.add(0)} task at a time")
    answers = [result.wait(timeout=40) for result in ask.map([(n,) for n in range(100)])]
    print(f"answered: {len(answers)} of 100 questions")
    worker.shutdown()
    app.close()
    meter.path.unlink()


if __name__ == "__main__":
    main()
