"""The parent's loop without a server."""

from __future__ import annotations

import time

from conveyor import Conveyor, Worker
from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.callbacks import Callbacks, Teller
from conveyor.worker.supervisor import Supervisor


def test_renewals_do_not_pile_up_while_the_server_is_away() -> None:
    app = Conveyor("away", broker="redis://localhost:1")

    @app.task(name="a.task")
    def task() -> None: ...

    worker = Worker(app, concurrency=1)
    teller = Teller(app.client, worker, Callbacks())
    supervisor = Supervisor(app.client, app.tasks, worker.plan, teller)
    supervisor._lines.open()
    plan = make_plan({}, Settings(), queue="q", is_async=False, timezone=None)
    record = Template("a.task", plan.limits, b"").record(b"")
    (queue,) = supervisor._queues
    now = time.monotonic()
    supervisor._held.take(queue, b"id", record, now)
    for minute in range(1, 60):
        supervisor._renew(now + 60 * minute)
    assert len(queue.link._waiting) == 0
    assert supervisor._held.leases.next_due() == now + 59 * 60 + 5
    supervisor.selector.close()
    worker._wake_read.close()
    worker._wake_write.close()
