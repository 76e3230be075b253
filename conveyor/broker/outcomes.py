"""How a process hears that tasks ended: one thread, one connection, shared by every wait.

Protocol: a wait is noted as pending; the thread subscribes to the process's channel in the task's
queue; the wait is registered on the task, which answers at once for a task that has ended; later
ends are published to the channel. There is no moment at which an end could be missed, and nothing
is polled. The thread registers the waits that began before their queue was heard, and callers their
own, so that a wait costs one round trip.

When the connection breaks, the thread connects again with growing pauses, subscribes again and
registers every pending wait again: whatever ended meanwhile is then known. So a wait outlives a
server outage, a failover, and the move of a cluster's slot to another node. A server that vanishes
closes no connection: while anything is pending, silence is answered with a PING.

On a cluster each queue has a thread and a connection of its own, since each may be on another node
and one that is away must not hold up the rest. An `Outcomes` belongs to the process that made it; a
fork makes its own.
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

import redis
from redis.exceptions import AskError

from conveyor.broker import commands
from conveyor.broker.broker import unavailable
from conveyor.broker.commands import BATCH, Snapshot
from conveyor.errors import BrokerUnavailable, ConveyorError
from conveyor.packing import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor.broker.broker import Broker

log = logging.getLogger("conveyor.outcomes")

#: What a wait's future gives: the ended task, or None when there is no such task.
Ended = Snapshot | None
_Key = tuple[str, str]
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Seconds of silence after which a server is asked for a word, and again until it is given up.
_SILENCE = 5.0


class Outcomes:
    """Tells this process how the tasks it waits for ended.

    Args:
        broker: Runs the registrations.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._name = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._ears: dict[str, _Ear] = {}
        self._closed = False

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

    def register_later(self, queue: str) -> None:
        """Has the queue's pending waits registered as soon as the server answers."""
        self._ear(queue).register_later(queue)

    def forget(self, queue: str, task_id: str, future: Future[Ended]) -> None:
        """Gives up a wait."""
        self._ear(queue).forget(queue, task_id, future)

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
                ear = self._ears[place] = _Ear(self._broker, self._name)
            return ear


class _Moved(redis.RedisError):
    """The queue's slot is on another node now."""


class _Ear:
    """A thread with one connection, and the waits it listens for."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self._name = name
        self._lock = threading.Lock()
        self._pending: dict[_Key, list[Future[Ended]]] = {}
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._heard: set[str] = set()
        self._to_register: set[str] = set()
        self._connection: Any = None
        self._lost = self._asked = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._closed = False

    def expect(self, queue: str, task_id: str) -> Future[Ended]:
        future: Future[Ended] = Future()
        with self._lock:
            if self._closed:
                raise _closed()
            self._pending.setdefault((queue, task_id), []).append(future)
            new = queue not in self._wanted
            self._wanted.add(queue)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._listen, name="conveyor-outcomes", daemon=True
                )
                self._thread.start()
        if new:
            self._wake()
        return future

    def hears(self, queue: str) -> bool:
        return queue in self._heard

    def answer(self, queue: str, task_id: str, reply: Snapshot | bool) -> None:
        if reply is not True:
            self._resolve(queue, task_id, reply or None)

    def register_later(self, queue: str) -> None:
        with self._lock:
            self._to_register.add(queue)
        self._wake()

    def forget(self, queue: str, task_id: str, future: Future[Ended]) -> None:
        with self._lock:
            waiting = self._pending.get((queue, task_id), [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._pending.pop((queue, task_id), None)

    def stop(self) -> None:
        with self._lock:
            self._closed = True
        self._wake()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._wake_read.close()
        self._wake_write.close()
        with self._lock:
            left = [future for futures in self._pending.values() for future in futures]
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(_closed())

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full or closed: the thread is awake anyway
            self._wake_write.send(b"!")

    def _resolve(self, queue: str, task_id: str, ended: Ended) -> None:
        with self._lock:
            waiting = self._pending.pop((queue, task_id), [])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(ended)

    def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                self._serve()
            except (redis.RedisError, BrokerUnavailable, OSError) as error:
                if self._heard:
                    self._say(error)
                    pause = _FIRST_PAUSE
            except Exception:
                # Without this thread every wait would hang; subscribing again misses nothing.
                log.exception("cannot read how a task ended; subscribing again")
            self._disconnect()
            self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _say(self, error: Exception) -> None:
        if isinstance(error, _Moved | AskError):
            log.info("%s has moved a slot; waits go on", self._broker.server.address)
        else:
            log.warning("%s; waits go on", unavailable(self._broker.server, error))

    def _serve(self) -> None:
        """Subscribes and reads until the connection breaks or the process closes."""
        self._connect()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
            selector.register(self._connection._sock, selectors.EVENT_READ, self._read)
            while not self._closed:
                self._subscribe_missing()
                self._register_pending()
                ready = selector.select(_SILENCE)
                for key, _ in ready:
                    key.data()
                if not ready:
                    self._check()

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            self._wake_read.settimeout(left)
            self._drain_wake()
        self._wake_read.setblocking(False)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError, TimeoutError):
            self._wake_read.recv(4096)

    def _connect(self) -> None:
        if self._lost:
            self._broker.server.refresh()
        with self._lock:
            queue = next(iter(self._wanted))
        self._connection = self._broker.server.connection(self._broker.keys(queue).memory)
        self._asked = False

    def _subscribe_missing(self) -> None:
        with self._lock:
            missing = self._wanted - self._subscribed
        for queue in missing:
            channel = self._broker.keys(queue).outcomes(self._name)
            self._connection.send_command("SSUBSCRIBE", channel, check_health=False)
            self._subscribed.add(queue)

    def _read(self) -> None:
        self._asked = False
        while True:
            message: Any = self._connection.read_response(disable_decoding=True)
            if message[0] == b"smessage":
                self._take(_queue_of(message[1]), message[2])
            elif message[0] == b"ssubscribe":
                self._confirm(_queue_of(message[1]))
            elif message[0] == b"sunsubscribe":
                raise _Moved
            if not self._connection.can_read(0):
                return

    def _check(self) -> None:
        if self._asked:
            raise redis.TimeoutError(f"no word from it for {2 * _SILENCE:.0f} s")
        if self._pending:
            self._asked = True
            self._connection.send_command("PING", check_health=False)

    def _confirm(self, queue: str) -> None:
        """Waits that began before may have missed their end: they are registered now."""
        with self._lock:
            self._heard.add(queue)
            self._to_register.add(queue)

    def _take(self, queue: str, packed: bytes) -> None:
        message: list[Any] = unpack(packed, "an outcome", raw=True)
        task_id, ended = message[0].decode(), message[1:]
        if ended:
            self._resolve(queue, task_id, commands.snapshot(ended))
        else:
            self._register(queue, [task_id])

    def _register_pending(self) -> None:
        while self._to_register:
            with self._lock:
                queue = self._to_register.pop()
                ids = [task_id for pending, task_id in self._pending if pending == queue]
            self._register(queue, ids)

    def _register(self, queue: str, ids: Sequence[str]) -> None:
        while ids:
            command = commands.wait(self._broker.keys(queue), self._name, ids[:BATCH])
            replies = self._broker.run(command)
            for task_id, reply in zip(ids, replies, strict=False):
                self.answer(queue, task_id, reply)
            ids = ids[len(replies) :]

    def _disconnect(self) -> None:
        with self._lock:
            self._heard.clear()
        self._subscribed.clear()
        self._lost = True
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _queue_of(channel: bytes) -> str:
    return channel.partition(b"{")[2].partition(b"}")[0].partition(b":")[2].decode()


def _closed() -> ConveyorError:
    return ConveyorError("the app was closed during this wait; the task goes on")
