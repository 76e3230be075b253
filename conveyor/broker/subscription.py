"""A thread with one connection that hears what is published in some queues, through outages.

Protocol: the thread subscribes to one sharded channel of each wanted queue and calls `take` with
every message; `confirmed` says from when on a queue is heard. When the connection breaks, `lost` is
called and the thread connects again with growing pauses and subscribes again: what was published
meanwhile is missed, so `confirmed` is where a subclass catches up. A slot of a cluster that moves
to another node is followed. A server that vanishes closes no connection: where a word is expected,
silence is answered with a PING.

It belongs to the process that made it. On a cluster all its queues must share a node.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import redis
from redis.exceptions import AskError

from conveyor.broker.connect import holds_reply
from conveyor.errors import BrokerUnavailable

if TYPE_CHECKING:
    from conveyor.broker.broker import Broker
    from conveyor.broker.keys import QueueKeys

log = logging.getLogger("conveyor.subscription")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Seconds of silence after which a server is asked for a word, and again until it is given up.
_SILENCE = 5.0


class Moved(redis.RedisError):
    """The queue's slot is on another node now."""


#: What a subscription is lost by while a cluster moves its slot.
MOVING = (Moved, AskError)


class Subscription:
    """Subscribes to the wanted queues for as long as it is not stopped; for subclasses.

    Args:
        broker: Whose server, and whose namespace.
        name: The thread's.
    """

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self._name = name
        self._lock = threading.Lock()
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._heard: set[str] = set()
        self._connection: Any = None
        self._lost = self._asked = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._closed = False

    def channel(self, keys: QueueKeys) -> str:
        """The channel of a queue."""
        raise NotImplementedError

    def take(self, queue: str, message: bytes) -> None:
        """Takes what was published."""
        raise NotImplementedError

    def confirmed(self, queue: str) -> None:
        """From now on the queue is heard."""
        raise NotImplementedError

    def lost(self, error: Exception) -> None:
        """The connection broke, or could not be made."""
        raise NotImplementedError

    def expects_word(self) -> bool:
        """Whether silence may mean that the server is gone."""
        return True

    def turn(self) -> None:
        """Called whenever the thread is about to sleep."""

    def hears(self, queue: str) -> bool:
        """Whether the queue is heard already."""
        return queue in self._heard

    def stop(self) -> None:
        """Has the thread end; nothing more is taken."""
        with self._lock:
            self._closed = True
        self._wake()

    def join(self) -> None:
        """Waits for the thread's end, once it was told to stop."""
        if self._thread is not None:
            self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    def _want(self, queue: str) -> None:
        """Hears one more queue; call it with the lock held."""
        if queue in self._wanted:
            return
        if self._thread is None:
            thread = threading.Thread(target=self._listen, name=self._name, daemon=True)
            thread.start()  # it may fail, and waits for the lock before it looks what is wanted
            self._thread = thread
        self._wanted.add(queue)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full or closed: the thread is awake anyway
            self._wake_write.send(b"!")

    def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                self._serve()
            except (redis.RedisError, BrokerUnavailable, OSError) as error:
                if self._heard:
                    pause = _FIRST_PAUSE
                self.lost(error)
            except Exception:
                # Without this thread whoever waits for it would hang.
                log.exception("%s failed; subscribing again", self._name)
            self._disconnect()
            self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _serve(self) -> None:
        """Subscribes and reads until the connection breaks or the process closes."""
        self._connect()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
            selector.register(self._connection._sock, selectors.EVENT_READ, self._read)
            while not self._closed:
                self._subscribe_missing()
                self.turn()
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
            self.broker.server.refresh()
        with self._lock:
            queue = next(iter(self._wanted))
        self._connection = self.broker.server.connection(self.broker.keys(queue).memory)
        self._asked = False

    def _subscribe_missing(self) -> None:
        with self._lock:
            missing = self._wanted - self._subscribed
        for queue in missing:
            channel = self.channel(self.broker.keys(queue))
            self._connection.send_command("SSUBSCRIBE", channel, check_health=False)
            self._subscribed.add(queue)

    def _read(self) -> None:
        self._asked = False
        while True:
            message: Any = self._connection.read_response(disable_decoding=True)
            if message[0] == b"smessage":
                self.take(_queue_of(message[1]), message[2])
            elif message[0] == b"ssubscribe":
                queue = _queue_of(message[1])
                with self._lock:
                    self._heard.add(queue)
                self.confirmed(queue)
            elif message[0] == b"sunsubscribe":
                raise Moved
            if not holds_reply(self._connection):
                return

    def _check(self) -> None:
        if self._asked:
            raise redis.TimeoutError(f"no word from it for {2 * _SILENCE:.0f} s")
        if self.expects_word():
            self._asked = True
            self._connection.send_command("PING", check_health=False)

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
