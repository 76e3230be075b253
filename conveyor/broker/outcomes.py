"""How a process hears that tasks ended: one thread, one subscription, shared by every wait.

Protocol: subscribe to the process's channel in the task's queue, register on the task, then wait.
Registering answers at once for a task that has ended, and later ends are published to the channel, so
there is no moment at which an end could be missed. Nothing is polled.

When the connection breaks, the thread connects again with growing pauses, subscribes again and
registers every pending wait again: whatever ended meanwhile is then known. A wait therefore outlives
a server outage. A fork starts afresh in the child: `Outcomes` belongs to the process that made it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgpack
import redis

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, Snapshot
from conveyor.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.connection import AbstractConnection

    from conveyor.broker.broker import Broker

log = logging.getLogger("conveyor.outcomes")

#: What a wait's future gives: the ended task, or None when there is no such task.
Ended = Snapshot | None
_Key = tuple[str, str]
_LONGEST_PAUSE = 2.0


class Outcomes:
    """Tells this process how the tasks it waits for ended.

    Args:
        broker: Runs the registrations.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._name = os.urandom(8).hex()
        self._pending: dict[_Key, list[Future[Ended]]] = {}
        self._lock = threading.Lock()
        self._subscribed: dict[str, threading.Event] = {}
        self._connections: dict[AbstractConnection, list[str]] = {}
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._to_register: set[str] = set()
        self._closed = False

    @property
    def name(self) -> str:
        """What the process is called in its channels."""
        return self._name

    def expect(self, queue: str, task_id: str) -> Future[Ended]:
        """A future that the task's end resolves; the caller then registers for it.

        Call `subscribe` and run `commands.wait` afterwards, handing its answer to `answer`.
        """
        future: Future[Ended] = Future()
        with self._lock:
            self._pending.setdefault((queue, task_id), []).append(future)
        return future

    def forget(self, queue: str, task_id: str, future: Future[Ended]) -> None:
        """Gives up a wait."""
        with self._lock:
            waiting = self._pending.get((queue, task_id), [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._pending.pop((queue, task_id), None)

    def subscribe(self, queue: str, timeout: float) -> bool:
        """Makes sure that this process hears the queue's outcomes; False when it can't in time."""
        subscribed = self._subscribed.get(queue)
        if subscribed is None:
            with self._lock:
                subscribed = self._subscribed.setdefault(queue, threading.Event())
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._listen, name="conveyor-outcomes", daemon=True
                    )
                    self._thread.start()
            self._wake()
        return subscribed.is_set() or subscribed.wait(timeout)

    def subscribed(self, queue: str) -> bool:
        """Whether the process already hears the queue's outcomes."""
        subscribed = self._subscribed.get(queue)
        return subscribed is not None and subscribed.is_set()

    def answer(self, queue: str, task_id: str, reply: Snapshot | bool) -> None:
        """Takes what registering answered."""
        if reply is not True:
            self._resolve(queue, task_id, reply or None)

    def register_later(self) -> None:
        """Has the thread register every pending wait, as soon as the server can be reached."""
        with self._lock:
            self._to_register.update(queue for queue, _ in self._pending)
        self._wake()

    def close(self) -> None:
        """Ends the thread and closes its connections."""
        self._closed = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full or closed: the thread is awake anyway
            self._wake_write.send(b"!", socket.MSG_DONTWAIT)

    def _resolve(self, queue: str, task_id: str, ended: Ended) -> None:
        with self._lock:
            waiting = self._pending.pop((queue, task_id), [])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(ended)

    def _listen(self) -> None:
        pause = 0.05
        while not self._closed:
            try:
                self._serve()
                pause = 0.05
            except (redis.RedisError, BrokerUnavailable, OSError) as error:
                log.debug("outcomes: connection lost (%s), again in %.1fs", error, pause)
                self._disconnect()
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._disconnect()

    def _serve(self) -> None:
        """Subscribes and reads until the connection breaks or the process closes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._closed:
                self._subscribe_missing(selector)
                self._register_pending()
                for key, _ in selector.select():
                    if key.data is None:
                        self._drain_wake()
                    else:
                        self._read(key.data)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)

    def _subscribe_missing(self, selector: selectors.BaseSelector) -> None:
        served = {queue for queues in self._connections.values() for queue in queues}
        for queue in list(self._subscribed):
            if queue in served:
                continue
            keys = self._broker.keys(queue)
            connection = self._connection_for(keys.memory, selector)
            self._connections[connection].append(queue)
            connection.send_command("SSUBSCRIBE", keys.outcomes(self._name))

    def _connection_for(self, key: str, selector: selectors.BaseSelector) -> AbstractConnection:
        """One connection serves every queue, but on a cluster each queue has its own node."""
        if self._connections and not self._broker.server.clustered:
            return next(iter(self._connections))
        connection = self._broker.server.connection(key)
        self._connections[connection] = []
        selector.register(connection._sock, selectors.EVENT_READ, connection)
        return connection

    def _read(self, connection: AbstractConnection) -> None:
        while True:
            message: Any = connection.read_response(disable_decoding=True)
            if message[0] == b"smessage":
                self._take(message[1], message[2])
            elif message[0] == b"ssubscribe":
                self._confirm(_queue_of(message[1]))
            elif message[0] == b"sunsubscribe":
                raise redis.ConnectionError("the queue has moved to another node")
            if not connection.can_read(0):
                return

    def _confirm(self, queue: str) -> None:
        """Waits that began before a connection broke may have missed their end: they ask again."""
        if self._subscribed[queue].is_set():
            with self._lock:
                self._to_register.add(queue)
        self._subscribed[queue].set()

    def _take(self, channel: bytes, packed: bytes) -> None:
        message = msgpack.unpackb(packed, raw=True)
        queue, task_id = _queue_of(channel), message[0].decode()
        if len(message) > 1:
            self._resolve(queue, task_id, commands.snapshot(message[1:]))
            return
        self._register(queue, [task_id])

    def _register_pending(self) -> None:
        while self._to_register:
            with self._lock:
                queue = next(iter(self._to_register))
                ids = [task_id for pending, task_id in self._pending if pending == queue]
            for start in range(0, len(ids), BATCH):
                self._register(queue, ids[start : start + BATCH])
            self._to_register.discard(queue)

    def _register(self, queue: str, ids: Sequence[str]) -> None:
        replies = self._broker.run(commands.wait(self._broker.keys(queue), self._name, ids))
        for task_id, reply in zip(ids, replies, strict=True):
            self.answer(queue, task_id, reply)

    def _disconnect(self) -> None:
        for connection in self._connections:
            connection.disconnect()
        self._connections.clear()


def _queue_of(channel: bytes) -> str:
    return channel.partition(b"{")[2].partition(b"}")[0].partition(b":")[2].decode()
