"""A connection for an event loop: one call at a time, replies read when they are readable.

Where `Broker` waits for each reply, a `Link` returns at once and calls back. On a link that blocks
calls are sent behind one another: the server does each as soon as the one before has ended. A call
whose reply is lost is sent again on the next connection, so whoever uses a link sends only what may
be repeated. While the server is unreachable calls wait, and connecting is tried again with growing
pauses: said once, resumed by itself, nothing lost. The same while a cluster moves the queue's slot
to another node: the old one refuses whole scripts until it has, and connecting anew finds the new
one.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import redis
from redis import exceptions

from conveyor.broker.attempt import Attempt
from conveyor.broker.broker import script_call, script_source, unavailable
from conveyor.broker.commands import Command
from conveyor.broker.connect import TRANSIENT, holds_reply
from conveyor.broker.shared import CLOSED
from conveyor.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor.broker.connect import Server

log = logging.getLogger("conveyor.link")

#: What is sent: a command of a script, or a plain server command.
Request: TypeAlias = "Command[Any] | tuple[Any, ...]"
#: A connection, and what ends its use.
_Held: TypeAlias = "tuple[Any, Callable[[], object]]"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: The slot is on another node, or on its way there: connect anew until that is settled.
_MOVING = (exceptions.MovedError, exceptions.AskError, exceptions.TryAgainError)
#: In the error of a script that met data it cannot deal with, where trying again would not help.
#: Any other refusal (a full disk, a missing permission) is the server's, and waited out.
_SCRIPT = "@user_script"
#: Seconds after which a reply that did not come means a dead connection: to an ordinary call, and
#: to one that blocks, which takes a few by itself.
_REPLY_TIMEOUT, _BLOCKED_TIMEOUT = 5.0, 10.0
#: Seconds after which a reply is not counted on any more.
_LATE = 0.5
#: Seconds after which an attempt has failed by a server that hangs, not by one that is down: the
#: next follows at once, so that leases are renewed in the very moment that it goes on.
_HUNG = 0.3


class Link:
    """One connection to the node that holds a key.

    Args:
        server: Where to.
        key: Any key of the queue it serves.
        selector: Of the loop; readable links have their callback as data.
        on_connect: Called with the link after each new connection; its sends go first.
        blocking: Whether it is for calls that block; one that is lost is not sent again, since by
            then something else may be waited for.
    """

    def __init__(
        self,
        server: Server,
        key: str,
        selector: selectors.BaseSelector,
        on_connect: Callable[[Link], None],
        *,
        blocking: bool = False,
    ) -> None:
        self._server = server
        self._key = key
        self._selector = selector
        self._on_connect = on_connect
        self._blocking = blocking
        self._patience = _BLOCKED_TIMEOUT if blocking else _REPLY_TIMEOUT
        self._connection: Any = None
        self._let_go: Callable[[], object] = _nothing
        self._socket: Any = None
        self._watched: socket.socket | None = None
        self._attempt: Attempt[_Held] | None = None
        self._waiting: deque[tuple[Request, Callable[[Any], None]]] = deque()
        self._sent: deque[tuple[Request, Callable[[Any], None]]] = deque()
        self._sent_at = 0.0
        self._pause = _FIRST_PAUSE
        self._tried_at = self._retry_at = 0.0
        self._lost = False
        self._use_source = False

    @property
    def idle(self) -> bool:
        """Whether a call sent now would go out at once."""
        return not self._sent and not self._waiting and self._connection is not None

    @property
    def connected(self) -> bool:
        """Whether the server can be reached, as far as is known."""
        return self._connection is not None

    def is_prompt(self, now: float) -> bool:
        """Whether the server can be reached, and owes no reply that it should have given by now."""
        late = bool(self._sent) and now > self._sent_at + _LATE
        return self._connection is not None and not late

    def send(self, request: Request, callback: Callable[[Any], None]) -> None:
        """Sends when it is this call's turn; the callback gets the answer."""
        self._waiting.append((request, callback))
        self._send_next()

    def send_first(self, request: Request, callback: Callable[[Any], None]) -> None:
        """Sends before what is waiting: for greeting a new connection."""
        self._waiting.appendleft((request, callback))

    def deadline(self) -> float | None:
        """When `tick` has something to do next, on the monotonic clock."""
        if self._connection is None:
            return self._retry_at if self._attempt is None else None
        return self._sent_at + self._patience if self._sent else None

    def tick(self, now: float) -> None:
        """Connects when it is time to, and gives up on a connection that went silent."""
        if self._connection is None:
            if now >= self._retry_at and self._attempt is None:
                self._connect()
        elif self._sent and now >= self._sent_at + self._patience:
            self._lose(redis.TimeoutError(f"no reply within {self._patience:.0f} s"))

    def renew(self) -> None:
        """Gives the connection up, and connects anew."""
        if self._connection is not None:
            self._lose(redis.ConnectionError("given up"))

    def close(self) -> None:
        """Closes the connection; nothing more is sent."""
        self._waiting.clear()
        self._sent.clear()
        if self._attempt is not None:
            self._attempt.abandon(lambda held: held[1]())
            self._attempt = None
        self._drop()

    def filenos(self) -> list[int]:
        """The connection's descriptors: children close their copies."""
        return [] if self._watched is None else [self._watched.fileno(), self._socket.fileno()]

    def _connect(self) -> None:
        """Connects: at once the first time, when nothing depends on the loop, then beside it."""
        self._tried_at = time.monotonic()
        if not self._lost:
            self._take_up(self._hold)
            return
        try:
            self._attempt = Attempt(self._hold, self._selector, self._on_attempt)
        except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
            self._lose(error)

    def _on_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._take_up(attempt.result)

    def _hold(self) -> _Held:
        if self._lost:
            self._server.refresh()
        return self._server.hold(self._key, blocking=self._blocking)

    def _take_up(self, connect: Callable[[], _Held]) -> None:
        try:
            self._connection, self._let_go = connect()
            self._socket = self._connection._sock
            if self._socket is None:
                raise redis.ConnectionError("closed by its owner")
            # A descriptor of our own: should the owner of a shared connection close it, its end is
            # heard, and its number is not given to something else meanwhile.
            self._watched = socket.socket(fileno=os.dup(self._socket.fileno()))
        except (redis.RedisError, BrokerUnavailable, OSError) as error:
            self._lose(error)
            return
        self._selector.register(self._watched, selectors.EVENT_READ, self._on_readable)
        if self._lost:
            self._say(logging.INFO, "%s is back", self._server.address)
        self._lost = False
        self._use_source = False
        self._recover_sent()
        self._on_connect(self)
        self._send_next()

    def _recover_sent(self) -> None:
        """A call whose reply was lost is sent again; whoever listens does so anew."""
        if self._blocking:
            self._waiting.clear()
        else:
            self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()

    def _send_next(self) -> None:
        while self._waiting and self._connection is not None and (self._blocking or not self._sent):
            self._send(*self._waiting.popleft())

    def _send(self, request: Request, callback: Callable[[Any], None]) -> None:
        if not self._sent:
            self._sent_at = time.monotonic()
        self._sent.append((request, callback))
        if isinstance(request, Command):
            request = (script_source if self._use_source else script_call)(request)
        self._use_source = False
        if self._connection._sock is not self._socket:
            self._lose(redis.ConnectionError("closed by its owner"))
            return
        try:
            self._connection.send_packed_command(
                self._connection.pack_command(*request), check_health=False
            )
        except (redis.RedisError, *CLOSED, OSError) as error:
            self._lose(error)

    def _on_readable(self) -> None:
        if self._connection is None:
            return  # lost in this very turn of the loop, after the selector had named it
        self._read_reply()
        while self._blocking and self._sent and self._has_more():
            self._read_reply()

    def _read_reply(self) -> None:
        if self._connection._sock is not self._socket:
            self._lose(redis.ConnectionError("closed by its owner"))
            return
        try:
            reply = self._connection.read_response(disable_decoding=True)
        except exceptions.NoScriptError:
            self._again(use_source=True)
            return
        except (*TRANSIENT, *_MOVING, *CLOSED, OSError) as error:
            self._lose(error)
            return
        except redis.RedisError as error:
            # What adds work is refused while memory is full; what ends work must pass it by.
            if _SCRIPT not in str(error) and not isinstance(error, exceptions.OutOfMemoryError):
                self._lose(error)
                return
            log.error("%s failed in %s: %s", self._server.address, self._what(), error)
            reply = None
        self._pause = _FIRST_PAUSE
        self._sent_at = time.monotonic()
        if self._sent:
            request, callback = self._sent.popleft()
            if reply is not None and isinstance(request, Command):
                reply = request.parse(reply)
            callback(reply)
        self._send_next()

    def _has_more(self) -> bool:
        """Whether the next reply has come with the last."""
        if self._connection is None or self._connection._sock is not self._socket:
            return self._connection is not None  # closed by its owner, as reading will find
        try:
            return holds_reply(self._connection)
        except (*TRANSIENT, *CLOSED, OSError) as error:
            self._lose(error)
            return False

    def _again(self, *, use_source: bool) -> None:
        self._waiting.appendleft(self._sent.popleft())
        self._use_source = use_source
        self._send_next()

    def _what(self) -> str:
        request = self._sent[0][0] if self._sent else None
        return request.script.name if isinstance(request, Command) else str(request and request[0])

    def _lose(self, error: Exception) -> None:
        now = time.monotonic()
        hung = self._connection is None and now > self._tried_at + _HUNG
        self._drop()
        if not self._lost and isinstance(error, _MOVING):
            self._say(logging.INFO, "%s is moving a slot; waiting", self._server.address)
        elif not self._lost:
            error = unavailable(self._server, error)
            self._say(logging.WARNING, "%s It is tried again until it answers.", error)
        self._lost = True
        self._retry_at = now + (0.0 if hung else self._pause * random.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _say(self, level: int, text: str, what: object) -> None:
        """Logs what became of the connection; of a pair, only the one that does not block."""
        log.log(logging.DEBUG if self._blocking else level, text, what)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if self._watched is not None:
            self._selector.unregister(self._watched)
            self._watched.close()
            self._watched = None
        if connection is not None:
            self._let_go()


def _nothing() -> None:
    """What ends the use of no connection."""
