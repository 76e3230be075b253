"""One namespace on a server, with what a test needs to drive it: workers, gates and histories.

with Lab(server.url, tmp_path) as lab, lab.worker("-c", "1") as worker:
    gate = lab.gate()
    result = lab.tasks.hold.delay(gate.path)
    lab.wait_for_starts(result)
    os.kill(worker.children()[0], signal.SIGKILL)
    gate.open()
    assert result.wait(30) == 2
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from servers import wait_until
from workers import RunningWorker

from conveyor import Conveyor, TaskRecord, TaskResult
from conveyor.broker import commands

from .checker import Contents, check, read_contents
from .history import History
from .tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conveyor.broker.commands import QueueStatus

#: Seconds after which something that should happen is taken not to: generous.
SOON = 30.0
#: Whether tests that have a long form take it.
LONG = bool(os.environ.get("CONVEYOR_LONG"))
#: From where `faults.application` can be imported.
TESTS = Path(__file__).parent.parent

_numbers = count(1)


class Gate:
    """What a task waits at until the test opens it.

    Args:
        path: Of a file that does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        """Lets all who wait here go on."""
        Path(self.path).touch()


class Lab:
    """An app of a namespace of its own, and what runs its tasks.

    Args:
        url: The server.
        directory: For histories and gates.
        settings: Of the test's own app; workers have the defaults.
    """

    def __init__(self, url: str, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.url = url
        self.namespace = f"lab-{os.getpid()}-{next(_numbers)}"
        self.app = Conveyor(self.namespace, broker=url, **settings)
        self.tasks = Tasks(self.app)
        self.history = History(directory)
        self.client = redis.Redis.from_url(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.app.close()
        self.client.close()

    def worker(
        self, *args: str, url: str = "", tasks: str = "", up: bool = True, **env: str
    ) -> RunningWorker:
        """A worker of the app.

        Args:
            *args: For `conveyor worker`.
            url: Of the server, where it is not the lab's.
            tasks: Names of the only tasks that it knows, with commas between.
            up: Whether to wait until it is up.
            **env: Further variables.
        """
        about = {
            "CONVEYOR_BROKER": url or self.url,
            "TEST_NAMESPACE": self.namespace,
            "TEST_HISTORY": str(self.directory),
            "TEST_TASKS": tasks,
        }
        return RunningWorker("faults.application", TESTS, *args, env=about | env, up=up)

    def gate(self) -> Gate:
        """A new one, closed."""
        return Gate(self.directory / f"gate-{next(_numbers)}")

    def status(self, queue: str = "default") -> QueueStatus:
        """What the server counts."""
        broker = self.app.client.broker
        return broker.run(commands.status(broker.keys(queue)))

    def wait_for_starts(self, *results: TaskResult[Any], runs: int = 1) -> None:
        """Waits until each task has been started at least so many times."""
        wait_until(
            lambda: all(self.history.count("start", task_id=r.id) >= runs for r in results),
            f"{len(results)} tasks started {runs} times",
            seconds=SOON,
        )

    def wait_for_drain(self, *queues: str, seconds: float = SOON) -> None:
        """Waits until nothing is scheduled, queued or processing."""

        def drained() -> bool:
            counts = [self.status(queue) for queue in queues or ("default",)]
            return not any(one.scheduled + one.queued + one.processing for one in counts)

        wait_until(drained, "everything has ended", seconds=seconds)

    def ended(self, result: TaskResult[Any], *, seconds: float = SOON) -> TaskRecord:
        """The record of a task, once it has ended."""
        wait_until(lambda: result.status.ended, f"{result.id} has ended", seconds=seconds)
        record = result.task()
        assert record is not None
        return record

    def contents(self, queue: str = "default") -> Contents:
        """What the server has, as the checker reads it."""
        return read_contents(self.client, self.namespace, queue)

    def enqueue(self, calls: Iterable[Any], *, size: int = 100) -> list[TaskResult[Any]]:
        """Sends calls whose ids are fixed, in batches, noting what the checker must know."""
        waiting, results = list(calls), []
        while waiting:
            batch, waiting = waiting[:size], waiting[size:]
            for call in batch:
                self.history.note("enq-try", call.id)
            try:
                results += self.app.map(batch)
            except Exception:
                for call in batch:
                    self.history.note("enq-unknown", call.id)
                raise
            for call in batch:
                self.history.note("enq-ok", call.id)
        return results

    def check(self, **about: bool) -> None:
        """Fails with what the checker finds.

        Raises:
            AssertionError: There are violations.
        """
        found = check(self.history.read(), self.contents(), **about)
        assert not found, f"{len(found)} violations: " + "; ".join(found[:10])
