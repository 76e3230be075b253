"""An app for servers that are several, what any of them must do, and a worker of it as a process.

    with FarWorker(cluster.url, "shop", ["high", "low"]) as worker, far_app(cluster.url, "shop") as app:
        assert call(app, "add", 1, 2).delay().wait(10) == 3

Run as a program, this file is the worker.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers import ROOT, Running

from conveyor import Context, Conveyor
from conveyor.broker import commands
from conveyor.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor import Call

#: Seconds that anything here may take: long enough for any failover, so only what hangs fails.
DEADLINE = 40.0
#: Seconds of silence after which the tasks here are stalled: less than a failover takes.
STALL = 2.0


def far_app(broker: Any, namespace: str) -> Conveyor:
    """The app; every test has a namespace of its own."""
    app = Conveyor("far", broker=broker, namespace=namespace, stall_timeout=STALL)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="aadd")
    async def aadd(x: int, y: int) -> int:
        return x + y

    @app.task(name="nap")
    def nap(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @app.task(name="third_time", bind=True, error_retry_limit=2, backoff="constant")
    def third_time(context: Context) -> int:
        if context.fence < 3:
            context.retry(delay=0.01)
        return context.fence

    return app


def call(app: Conveyor, task: str, *args: object) -> Call[Any]:
    """One call of one of the app's tasks."""
    return app.tasks[task].call(*args)


class FarWorker(Running):
    """A worker of the app, up once it is created.

    Args:
        url: Of the servers.
        namespace: Whose queues.
        queues: Names.
    """

    def __init__(self, url: str, namespace: str, queues: Sequence[str]) -> None:
        tests = Path(__file__).parent.parent
        path = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, tests)))}
        super().__init__(__file__, url, namespace, *queues, cwd=tests, env=path)
        try:
            with far_app(url, namespace) as app:
                self._until(lambda: self._serves(app, queues), "the worker up", DEADLINE)
        except BaseException:
            self.close()
            raise

    def _serves(self, app: Conveyor, queues: Sequence[str]) -> bool:
        if not self.alive:
            raise RuntimeError(f"the worker ended before it was up:\n{self.output}")
        broker = app.client.broker
        return all(broker.run(commands.status(broker.keys(queue))).workers for queue in queues)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("LEVEL","INFO"), format="%(asctime)s %(name)s %(message)s")
    url, namespace, *names = sys.argv[1:]
    Worker(far_app(url, namespace), names, concurrency=2).run()
