"""How a process hears that tasks ended: one thread, one connection, shared by every wait.

Protocol: a wait is noted as pending; the thread subscribes to the process's channel in the task's
queue; the wait is registered on the task, which answers at once for a task that has ended; later
ends are published to the channel. There is no moment at which an end could be missed, and nothing
is polled. The thread registers the waits that began before their queue was heard, and those with no
time for a server that says nothing. Callers register the others, so that a wait costs one round
trip.

When the connection breaks, the thread connects again with growing pauses, subscribes again and
registers every pending wait again: whatever ended meanwhile is then known. So a wait outlives a
server outage, a failover, and the move of a cluster's slot to another node. A server that vanishes
closes no connection: while anything is pending, silence is answered with a PING.

On a cluster each queue has a thread and a connection of its own, since each may be on another node
and one that is away must not hold up the rest. An `Outcomes` belongs to the process that made it; a
fork makes its own.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from conveyor.broker import commands
from conveyor.broker.broker import unavailable
from conveyor.broker.commands import BATCH, Snapshot
from conveyor.broker.subscription import MOVING, Subscription
from conveyor.errors import ConveyorError
from conveyor.packing import unpack

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from conveyor.broker.broker import Broker
    from conveyor.broker.keys import QueueKeys

log = logging.getLogger("conveyor.outcomes")

#: What a wait's future gives: the ended task, or None when there is no such task.
Ended = Snapshot | None
_Key = tuple[str, str]


class Outcomes:
    """Tells this process how the tasks it waits for ended.

    Args:
        broker: Runs the registrations.

    Attributes:
        hurries: Whether sync tasks that are waited for go to the head of their queue.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._name = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._ears: dict[str, _Ear] = {}
        self._closed = False
        self.hurries = False

    @property
    def name(self) -> str:
        """What the process is called in its channels."""
        return self._name

    def expect(self, queue: str, task_id: str) -> Future[Ended]:
        """A future that the task's end resolves.

        If `hears(queue)` then, the caller runs `commands.wait` and hands the reply to `answer`;
        otherwise that is done here, as soon as the queue is heard.
        """
        return self._ear(queue).expect(queue, task_id)

    def hears(self, queue: str) -> bool:
        """Whether the queue's outcomes are heard already."""
        return self._ear(queue).hears(queue)

    def answer(self, queue: str, task_id: str, reply: Snapshot | bool) -> None:
        """Takes what registering answered."""
        self._ear(queue).answer(queue, task_id, reply)

    def register_later(self, queue: str, task_id: str) -> None:
        """Has a wait registered here, as soon as the server answers."""
        self._ear(queue).register_later(queue, task_id)

    def forget(self, queue: str, task_id: str, future: Future[Ended]) -> None:
        """Gives up a wait."""
        self._ear(queue).forget(queue, task_id, future)

    def hurry(self, *, on: bool) -> None:
        """Has what is waited for, now and from now on, go to the head of its queue; or no more."""
        self.hurries = on
        if on:
            with self._lock:
                ears = list(self._ears.values())
            for ear in ears:
                ear.register_again()

    def close(self) -> None:
        """Ends the threads, their connections, and the waits that are still pending (an error)."""
        with self._lock:
            self._closed = True
            ears = list(self._ears.values())
        for ear in ears:
            ear.stop()
        for ear in ears:
            ear.close()

    def _ear(self, queue: str) -> _Ear:
        place = queue if self._broker.server.clustered else ""
        with self._lock:
            ear = self._ears.get(place)
            if ear is None:
                if self._closed:
                    raise _closed()
                ear = self._ears[place] = _Ear(self, self._broker)
            return ear


class _Ear(Subscription):
    """A thread with one connection, and the waits it listens for."""

    def __init__(self, outcomes: Outcomes, broker: Broker) -> None:
        super().__init__(broker, "conveyor-outcomes")
        self._outcomes = outcomes
        self._process = outcomes.name
        self._pending: dict[_Key, list[Future[Ended]]] = {}
        # A dict, for they are registered in the order of the waits.
        self._to_register: dict[_Key, None] = {}

    def expect(self, queue: str, task_id: str) -> Future[Ended]:
        future: Future[Ended] = Future()
        with self._lock:
            if self._closed:
                raise _closed()
            self._want(queue)
            self._pending.setdefault((queue, task_id), []).append(future)
        return future

    def answer(self, queue: str, task_id: str, reply: Snapshot | bool) -> None:
        if reply is not True:
            self._resolve(queue, task_id, reply or None)

    def register_later(self, queue: str, task_id: str) -> None:
        with self._lock:
            self._to_register[queue, task_id] = None
        self._wake()

    def register_again(self) -> None:
        self._register_all(self._heard)
        self._wake()

    def forget(self, queue: str, task_id: str, future: Future[Ended]) -> None:
        with self._lock:
            waiting = self._pending.get((queue, task_id), [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._pending.pop((queue, task_id), None)
                self._to_register.pop((queue, task_id), None)

    def close(self) -> None:
        self.join()
        with self._lock:
            left = [future for futures in self._pending.values() for future in futures]
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(_closed())

    def channel(self, keys: QueueKeys) -> str:
        return keys.outcomes(self._process)

    def take(self, queue: str, message: bytes) -> None:
        told: list[Any] = unpack(message, "an outcome", raw=True)
        task_id, ended = told[0].decode(), told[1:]
        if ended:
            self._resolve(queue, task_id, commands.snapshot(ended))
        else:
            self._register(queue, [task_id])

    def confirmed(self, queue: str) -> None:
        """Waits that began before may have missed their end: they are registered now."""
        self._register_all({queue})

    def lost(self, error: Exception) -> None:
        if not self._heard:
            return
        if isinstance(error, MOVING):
            log.info("%s has moved a slot; waits go on", self.broker.server.address)
        else:
            log.warning("%s; waits go on", unavailable(self.broker.server, error))

    def expects_word(self) -> bool:
        return bool(self._pending)

    def turn(self) -> None:
        with self._lock:
            keys, self._to_register = self._to_register, {}
        by_queue: dict[str, list[str]] = {}
        for queue, task_id in keys:
            by_queue.setdefault(queue, []).append(task_id)
        for queue, ids in by_queue.items():
            self._register(queue, ids)

    def _register_all(self, queues: Collection[str]) -> None:
        with self._lock:
            all_ = (key for key in self._pending if key[0] in queues)
            self._to_register.update(dict.fromkeys(all_))

    def _resolve(self, queue: str, task_id: str, ended: Ended) -> None:
        with self._lock:
            waiting = self._pending.pop((queue, task_id), [])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(ended)

    def _register(self, queue: str, ids: Sequence[str]) -> None:
        keys = self.broker.keys(queue)
        while ids:
            hurry = self._outcomes.hurries
            command = commands.wait(keys, self._process, ids[:BATCH], hurry=hurry)
            replies = self.broker.run(command)
            for task_id, reply in zip(ids, replies, strict=False):
                self.answer(queue, task_id, reply)
            ids = ids[len(replies) :]


def _closed() -> ConveyorError:
    return ConveyorError("the app was closed during this wait; the task goes on")
