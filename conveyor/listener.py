"""Hears what happens in queues: callbacks on a thread, or a loop, sync or async.

A listener subscribes to the event channel of each of its queues over one connection; on a cluster
over one a queue, since each may be on another node. The scripts publish only where somebody is
subscribed, and remember that nobody was; a listener takes that note away once its subscription
holds. From then on nothing is overlooked.

The server keeps no events: what happens while a connection is broken is missed. That is logged
once, and the listener subscribes again by itself. The thread of a connection only reads, so a slow
callback or loop costs the server no memory: what it is behind with is kept here, up to `BACKLOG`
bytes. Beyond that the oldest is dropped, which is logged too. While no loop runs, `EARLY` bytes are
kept for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

import redis

from conveyor.broker.broker import PATIENCE, unavailable
from conveyor.broker.subscription import MOVING, Subscription
from conveyor.errors import BrokerUnavailable, ConfigurationError, ConveyorError, SerializationError
from conveyor.events import Event, EventType, decode_event
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from conveyor.broker.broker import Broker
    from conveyor.broker.keys import QueueKeys
    from conveyor.client import Client

log = logging.getLogger("conveyor.listener")

F = TypeVar("F", bound="Callable[[Event], object]")

#: Most bytes of events that wait for a slow callback or loop.
BACKLOG: Final = 32 * 1_048_576
#: Most bytes of events that are kept while no loop runs, in case one begins.
EARLY: Final = 1_048_576
#: Seconds that a server which accepts connections has for its first word.
FIRST_WORD: Final = 4.5


class Listener:
    """Hears the events of some queues; made by `app.listener()`.

    It listens from the moment it is made until `close`, or the end of its ``with`` block. Made in a
    running event loop it connects in the background, and is sure to hear everything once ``async
    with`` or ``async for`` has begun or `on` has returned.

    Iterating gives every event; while no loop runs, the latest are kept for the next one, up to 1
    MiB of them. Several loops share the events. A listener belongs to the process that made it.

    Args:
        client: The app's.
        queues: Names, each once.

    Raises:
        BrokerUnavailable: The server cannot be reached.

    Example:
        >>> with app.listener() as listener:
        ...     listener.on("task_fail", lambda event: print(event.task.error))
        ...     for event in listener:
        ...         print(event.type, event.queue)
    """

    def __init__(self, client: Client, queues: Sequence[str]) -> None:
        self._client = client
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._unheard = set(queues)
        self._hears = threading.Event()
        self._error: Exception | None = None
        self._away: set[_Ear] = set()
        self._callbacks: dict[EventType, list[Callable[[Event], object]]] = {}
        self._thread: threading.Thread | None = None
        self._for_callbacks, self._for_loops = _Backlog(), _Backlog()
        self._closed = False
        groups = [[queue] for queue in queues] if client.broker.server.clustered else [queues]
        told = (self._hear, self._confirm, self._lose)
        self._ears = [_Ear(client.broker, *told) for _ in groups]
        try:
            for ear, group in zip(self._ears, groups, strict=True):
                ear.hear(group)
        except RuntimeError:  # a thread cannot start
            self.close()
            raise
        if not _in_event_loop():
            self._wait()

    @overload
    def on(self, event: str) -> Callable[[F], F]: ...
    @overload
    def on(self, event: str, callback: F) -> F: ...
    def on(self, event: str, callback: Callable[[Event], object] | None = None) -> Any:
        """Has a callback called with every event of one type; also a decorator.

        All that happens after it has returned is heard. The callbacks of a listener run on one
        thread of its own, in the order of the events; one that raises is logged, and the listener
        goes on.

        Args:
            event: An `EventType`, or its text, such as ``"task_complete"``.
            callback: A plain function; what it returns is ignored.

        Returns:
            The callback.

        Raises:
            BrokerUnavailable: The server cannot be reached.
            ConfigurationError: There is no such event.
            ConveyorError: The listener was closed.
            TypeError: The callback is no function, or an ``async def``, which a thread cannot
                await.

        Example:
            >>> @listener.on("task_complete")
            ... def report(event: Event) -> None:
            ...     print(event.task.id, event.task.status)
        """
        kind = _event_type(event)
        if callback is None:
            return functools.partial(self.on, kind)
        _check_callback(callback)
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(
                    target=self._call_back, name="conveyor-listener", daemon=True
                )
                thread.start()
                self._thread = thread
            self._callbacks.setdefault(kind, []).append(callback)
        self._wait()
        return callback

    def close(self) -> None:
        """Stops listening: loops end, and what was heard and not yet told is dropped.

        Returns once a callback that is running has returned.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
        for backlog in (self._for_callbacks, self._for_loops):
            backlog.close()
        for ear in self._ears:
            ear.stop()
        for ear in self._ears:
            ear.join()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    async def aclose(self) -> None:
        """The async twin of `close`."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        """Hears everything from now on."""
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    async def __aenter__(self) -> Self:
        """Hears everything from now on."""
        await asyncio.to_thread(self._wait)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        await self.aclose()

    def __iter__(self) -> Iterator[Event]:
        """Every event until `close`, each as it comes."""
        self._wait()
        return self._events()

    def __aiter__(self) -> AsyncIterator[Event]:
        """Every event until `close`, each as it comes, without blocking the event loop."""
        return self._aevents()

    def _events(self) -> Iterator[Event]:
        with self._for_loops.wanted():
            while heard := self._for_loops.take():
                if event := self._decoded(*heard):
                    yield event

    async def _aevents(self) -> AsyncIterator[Event]:
        await asyncio.to_thread(self._wait)
        with self._for_loops.wanted():
            while heard := await self._for_loops.atake():
                if event := self._decoded(*heard):
                    yield event

    def _call_back(self) -> None:
        with self._for_callbacks.wanted():
            while heard := self._for_callbacks.take():
                if event := self._decoded(*heard):
                    for callback in list(self._callbacks.get(event.type, ())):
                        self._call(callback, event)

    def _call(self, callback: Callable[[Event], object], event: Event) -> None:
        try:
            callback(event)
        except Exception:
            log.exception("a callback failed at %s; the listener goes on", event.type)

    def _decoded(self, queue: str, message: bytes) -> Event | None:
        try:
            return decode_event(
                queue, message, self._client.codec, reveal=self._client.settings.log_arguments
            )
        except SerializationError as error:
            log.warning("something happened in %s that cannot be told: %s", queue, error)
            return None

    def _wait(self) -> None:
        """Waits until every queue is heard.

        Raises:
            BrokerUnavailable: It takes too long; the listener is closed.
            ConveyorError: It was closed.
        """
        # A server that refuses is given up sooner than one that says nothing.
        hears = self._hears.wait(PATIENCE) or (
            self._error is None and self._hears.wait(FIRST_WORD - PATIENCE)
        )
        if self._closed:
            raise ConveyorError("this listener was closed: make another with app.listener()")
        if not hears:
            self.close()
            error = self._error or redis.TimeoutError(f"no word from it for {FIRST_WORD:.0f} s")
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        return unavailable(self._client.broker.server, error)

    def _hear(self, queue: str, message: bytes) -> None:
        if self._callbacks:
            self._for_callbacks.put(queue, message)
        self._for_loops.put(queue, message)

    def _confirm(self, ear: _Ear, queue: str) -> None:
        with self._lock:
            self._unheard.discard(queue)
            if not self._unheard:
                self._hears.set()
            back = self._away == {ear}
            self._away.discard(ear)
        if back:
            log.info("listening to %s again", self._client.broker.server.address)

    def _lose(self, ear: _Ear, error: Exception) -> None:
        self._error = error
        with self._lock:
            first = self._hears.is_set() and not self._away
            if self._hears.is_set():
                self._away.add(ear)
        if first and isinstance(error, MOVING):
            log.info("%s has moved a slot; following it", self._client.broker.server.address)
        elif first:
            log.warning("%s Events are missed until it is back.", self._unavailable(error))


class _Ear(Subscription):
    """One connection of a listener."""

    def __init__(
        self,
        broker: Broker,
        hear: Callable[[str, bytes], None],
        confirm: Callable[[_Ear, str], None],
        lose: Callable[[_Ear, Exception], None],
    ) -> None:
        super().__init__(broker, "conveyor-events")
        self._hear, self._confirm, self._lose = hear, confirm, lose

    def hear(self, queues: Sequence[str]) -> None:
        with self._lock:
            for queue in queues:
                self._want(queue)

    def channel(self, keys: QueueKeys) -> str:
        return keys.events

    def take(self, queue: str, message: bytes) -> None:
        self._hear(queue, message)

    def confirmed(self, queue: str) -> None:
        self.broker.execute(("HDEL", self.broker.keys(queue).memory, "unheard"))
        self._confirm(self, queue)

    def lost(self, error: Exception) -> None:
        self._lose(self, error)


class _Backlog:
    """Events on their way from the threads that read to whoever takes them, in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[tuple[str, bytes]] = deque()
        self._bytes = self._takers = 0
        self._closed = self._full = False
        self._sleepers: list[asyncio.Future[None]] = []

    def put(self, queue: str, message: bytes) -> None:
        with self._changed:
            if self._closed:
                return
            self._events.append((queue, message))
            self._bytes += len(message)
            while self._bytes > (BACKLOG if self._takers else EARLY):
                self._pop()
                self._say_full()
            self._wake()

    @contextlib.contextmanager
    def wanted(self) -> Generator[None]:
        """Somebody takes the events meanwhile."""
        self._count_takers(1)
        try:
            yield
        finally:
            self._count_takers(-1)

    def take(self) -> tuple[str, bytes] | None:
        """The next one, once there is one; None when closed."""
        with self._changed:
            while not self._events and not self._closed:
                self._full = False
                self._changed.wait()
            return None if self._closed else self._pop()

    async def atake(self) -> tuple[str, bytes] | None:
        """The same, without blocking the event loop."""
        while True:
            with self._changed:
                if self._closed:
                    return None
                if self._events:
                    return self._pop()
                self._full = False
                sleeper = asyncio.get_running_loop().create_future()
                self._sleepers.append(sleeper)
            await sleeper

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._events.clear()
            self._wake()

    def _count_takers(self, more: int) -> None:
        with self._changed:
            self._takers += more

    def _pop(self) -> tuple[str, bytes]:
        queue, message = self._events.popleft()
        self._bytes -= len(message)
        return queue, message

    def _say_full(self) -> None:
        if self._takers and not self._full:
            self._full = True
            log.warning(
                "a callback or loop is %d MiB of events behind: the oldest are dropped",
                BACKLOG // 1_048_576,
            )

    def _wake(self) -> None:
        self._changed.notify_all()
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            with contextlib.suppress(RuntimeError):  # its loop was closed
                sleeper.get_loop().call_soon_threadsafe(_end_sleep, sleeper)


def _end_sleep(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _check_callback(callback: object) -> None:
    if not callable(callback):
        raise TypeError(f"{callback!r} cannot be called: give a function of one event")
    if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(callback.__call__):
        raise TypeError(
            f"{getattr(callback, '__qualname__', repr(callback))} is an async def, which a"
            " listener's thread cannot await: use `async for event in listener`"
        )


def _event_type(event: str) -> EventType:
    try:
        return EventType(event)
    except ValueError:
        known = [kind.value for kind in EventType]
        raise ConfigurationError(
            f"there is no event {event!r}: did you mean {nearest(str(event), known)!r}?"
        ) from None


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
