"""What a worker says of itself, and says again where it was lost."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING

from conveyor.broker.link import Link
from conveyor.worker.announcement import HEARTBEAT, Announcer
from conveyor.worker.plan import make_plan
from conveyor.worker.queue import WorkerQueue

if TYPE_CHECKING:
    from conveyor import Conveyor

WORKER = "0000000a"
DEADLINE = 30.0


def turn(announcer: Announcer, queue: WorkerQueue, now: float) -> None:
    """Takes a turn of a worker's loop, until all that it sent is answered."""
    announcer.turn([queue], now)
    deadline = time.monotonic() + DEADLINE
    while not queue.link.idle:
        assert time.monotonic() < deadline
        for key, _ in queue.link._selector.select(1):
            key.data()


def test_a_worker_whose_queue_was_destroyed_says_all_of_it_again(app: Conveyor) -> None:
    app.task(name="tick", every=60)(lambda: None)
    broker, manager = app.client.broker, app.manager()
    plan = make_plan(app.settings, {}, queues=["default"], burst=False)
    announcer = Announcer(broker, WORKER, plan, app.tasks)
    queue = WorkerQueue(0, broker.keys("default"), WORKER)

    def greet(link: Link) -> None:
        announcer.greet(queue, link, lambda _: None)

    with selectors.DefaultSelector() as selector:
        queue.link = Link(broker.server, queue.keys.memory, selector, greet)
        queue.link.tick(time.monotonic())
        now = time.monotonic()
        for _ in range(2):
            turn(announcer, queue, now)
            assert app.queues() == ["default"]
            assert [worker.id for worker in manager.get_workers()] == [WORKER]
            assert [entry.name for entry in manager.get_recurring()] == ["tick"]
            manager.destroy_queue()
            now += HEARTBEAT
        queue.link.close()
