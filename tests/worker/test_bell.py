"""How an idle worker hears of work, and what it has the server do as soon as there is some."""

from __future__ import annotations

import selectors
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from conveyor import Conveyor
from conveyor.broker import commands
from conveyor.broker.link import Link
from conveyor.worker.bell import STAND, Bell
from conveyor.worker.queue import WorkerQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

    from conveyor.broker.commands import Command, Settled

BOTH = {"r": True, "a": True}


class Idle:
    """A worker's bell and no more of it."""

    def __init__(self, app: Conveyor, selector: selectors.BaseSelector) -> None:
        self.heard: list[str] = []
        self.claimed: list[list[bytes]] = []
        self._selector = selector
        broker = app.client.broker
        self.queue = WorkerQueue(0, broker.keys("default"), "01020304")
        memory = self.queue.keys.memory
        self.bell = Bell(
            [self.queue],
            several=False,
            beat=False,
            heard=lambda _, lane, __: self.heard.append(lane),
        )
        self.bell.link = Link(broker.server, memory, selector, self.bell.greet, blocking=True)
        self.queue.link = Link(broker.server, memory, selector, lambda _: None)
        self.queue.has_work = dict.fromkeys(BOTH, False)

    def _hear(self, _queue: WorkerQueue, lane: str, _member: bytes) -> None:
        self.heard.append(lane)

    def turn_until(self, done: Callable[[], bool]) -> None:
        """Runs the loop; the deadline is against hangs."""
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline
            for link in (self.bell.link, self.queue.link):
                link.tick(time.monotonic())
            self.bell.listen(BOTH, time.monotonic(), holds_nothing=True)
            for key, _ in self._selector.select(0.01):
                key.data()

    def claim(self) -> Command[Settled]:
        self.queue.calls += 1
        return commands.settle(
            self.queue.keys,
            b"\1\2\3\4",
            self.queue.calls,
            [],
            sync=5,
            asynchronous=5,
            keep_success=9,
            park_ms=9,
        )

    def stand(self) -> None:
        self.bell.stand(self.claim(), lambda answer: self.claimed.append(answer.claimed[::2]))


@contextmanager
def idle(app: Conveyor) -> Iterator[Idle]:
    with selectors.DefaultSelector() as selector:
        worker = Idle(app, selector)
        yield worker
        worker.bell.link.close()
        worker.queue.link.close()


def ring(worker: Idle, app: Conveyor, name: str) -> None:
    app.manager().enqueue_task("a.task", id=name)
    worker.turn_until(lambda: worker.heard == ["r"])
    worker.turn_until(lambda: worker.bell.may_stand(time.monotonic()))


def test_a_claim_that_stands_is_done_when_it_rings(app: Conveyor) -> None:
    with idle(app) as worker:
        ring(worker, app, "first")
        worker.stand()
        assert worker.bell.stands
        app.manager().enqueue_task("a.task", id="second")
        worker.turn_until(lambda: not worker.bell.stands)
        assert worker.claimed == [[b"first", b"second"]]
        assert worker.heard == ["r"], "the answer says all"
        app.manager().enqueue_task("a.task", id="third")
        worker.turn_until(lambda: worker.heard == ["r", "r"])


def test_where_nothing_rings_it_is_done_once_and_soon(app: Conveyor) -> None:
    with idle(app) as worker:
        ring(worker, app, "only")
        worker.stand()
        worker.turn_until(lambda: not worker.bell.stands)
        assert worker.claimed == [[b"only"]]
        assert not worker.bell.may_stand(time.monotonic() + STAND)
        assert worker.heard == ["r"]


def test_called_back_it_is_done_at_once(app: Conveyor) -> None:
    with idle(app) as worker:
        ring(worker, app, "only")
        worker.stand()
        worker.bell.call_back()
        worker.turn_until(lambda: not worker.bell.stands)
        assert worker.claimed == [[b"only"]]


def test_its_answer_is_asked_for_again_when_the_connection_is_lost(app: Conveyor) -> None:
    with idle(app) as worker:
        ring(worker, app, "only")
        worker.stand()
        worker.bell.link.renew()
        assert worker.bell.stands
        worker.turn_until(lambda: bool(worker.claimed))
        assert worker.claimed == [[b"only"]]
        assert not worker.bell.stands


def test_word_of_a_parked_task_may_have_been_lost_with_the_connection(app: Conveyor) -> None:
    with idle(app) as worker:
        worker.turn_until(lambda: worker.bell._client_id is not None)
        worker.queue._parked.clear()
        worker.bell.link.renew()
        worker.turn_until(lambda: worker.queue._parked == {"r": 0, "a": 0})


def test_a_server_that_forgot_its_scripts_is_told_it_again(own_server: Server) -> None:
    with Conveyor("forgetful", broker=own_server.url) as app, idle(app) as worker:
        ring(worker, app, "only")
        own_server.client().script_flush()
        worker.stand()
        worker.turn_until(lambda: not worker.bell.stands)
        assert worker.claimed == [[b"only"]]


def test_a_bell_that_lost_its_connection_may_have_lost_a_marker(app: Conveyor) -> None:
    broker = app.client.broker
    queues = [WorkerQueue(n, broker.keys(name), "01020304") for n, name in enumerate("ab")]
    with selectors.DefaultSelector() as selector:
        bell = Bell(queues, several=True, beat=True, heard=lambda *_: None)
        bell.link = Link(broker.server, queues[0].keys.memory, selector, bell.greet, blocking=True)
        for _ in range(2):
            for queue in queues:
                queue.has_work = dict.fromkeys(queue.has_work, False)
            while not bell.link.connected:
                bell.link.tick(time.monotonic() + 3600)
                for key, _ in selector.select(0):
                    key.data()
            assert all(all(queue.has_work.values()) for queue in queues)
            bell.link.renew()
        bell.link.close()
