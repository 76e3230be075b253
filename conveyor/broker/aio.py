"""Runs commands against the server, for async callers: the twin of `broker.py`.

Each event loop has a client of its own, made when it first runs a command and closed by `aclose`;
or the one that the app was given, if that belongs to this loop (see `shared_aio.py`).
Only so many calls are under way at once as it has connections. The others wait for their turn, and
if the server is given up meanwhile, they are told at once.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError

from conveyor.broker.broker import (
    FIRST_PAUSE,
    LONGEST_CALL,
    LONGEST_PAUSE,
    PATIENCE,
    Broker,
    read_names,
    refused,
    script_call,
    script_source,
    unavailable,
)
from conveyor.broker.connect import TRANSIENT, check_version, close_async
from conveyor.broker.keys import known_queues
from conveyor.broker.shared_aio import AsyncSharedClient

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from conveyor.broker.commands import Command
    from conveyor.broker.target import AsyncClient
    from conveyor.errors import BrokerUnavailable

T = TypeVar("T")

#: What redis-py's cluster client makes of a connection that it closes beneath a call: while it asks
#: where the slots are it closes those that are free, and meanwhile the call may have taken one.
CLOSED_BENEATH = AttributeError
#: Most calls under way at once in an event loop, and so its connections.
CONNECTIONS = 16


@dataclass(slots=True)
class _Loop:
    """What one event loop has."""

    shared: AsyncSharedClient | None = None
    client: AsyncClient | AsyncSharedClient | None = None
    connections: int = CONNECTIONS
    given_up_at: float = 0.0
    given_up: Exception | None = None
    turns: asyncio.Semaphore = field(init=False)
    closing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.turns = asyncio.Semaphore(self.connections)

    async def close(self) -> None:
        """Closes the client once no call is under way, which would open it again."""
        async with self.closing:
            turns = 0
            try:
                while turns < self.connections:
                    await self.turns.acquire()
                    turns += 1
                client, self.client = self.client, None
                if isinstance(client, AsyncSharedClient):
                    await client.aclose()
                elif client is not None:
                    await close_async(client)
            finally:
                for _ in range(turns):
                    self.turns.release()


class AsyncBroker:
    """Runs commands for one namespace on one server, in any event loop.

    Args:
        broker: The sync twin, whose server and keys it shares.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._announced: set[str] = set()

    async def run(self, command: Command[T]) -> T:
        """Runs a command and returns its answer; errors are those of `Broker.run`."""
        reply = await self.execute(script_call(command), script_source(command))
        return command.parse(reply)

    async def execute(self, call: tuple[Any, ...], fallback: tuple[Any, ...] | None = None) -> Any:
        """Runs one plain server command; `fallback` is sent where the script is not known."""
        asked_at = time.monotonic()
        loop = self._loop()
        async with loop.turns:
            if loop.given_up is not None and loop.given_up_at > asked_at:
                raise unavailable(self._broker.server, loop.given_up) from loop.given_up
            try:
                # A client may try several nodes in turn, each for as long as one may take; starting
                # an embedded server has its own limit.
                async with asyncio.timeout(None if self._broker.server.embedded else LONGEST_CALL):
                    return await self._execute(loop, call, fallback)
            except TimeoutError:
                raise self._give_up(loop, redis.TimeoutError("no answer in time")) from None

    async def announce(self, queue: str) -> None:
        """Makes the queue known to people, once; calls that come meanwhile do not wait for it."""
        if queue in self._announced:
            return
        self._announced.add(queue)
        try:
            await self.execute(("SADD", known_queues(self._broker.namespace), queue))
        except BaseException:
            self._announced.discard(queue)
            raise

    def unannounce(self, queue: str) -> None:
        """Has the queue announced again when it is used next."""
        self._announced.discard(queue)

    async def queues(self) -> list[str]:
        """The queues that are known, by name."""
        return read_names(await self.execute(("SMEMBERS", known_queues(self._broker.namespace))))

    async def aclose(self) -> None:
        """Closes the running event loop's client, once the calls that are under way have ended."""
        loop = self._loops.get(asyncio.get_running_loop())
        if loop is not None:
            await loop.close()

    async def _execute(
        self, loop: _Loop, call: tuple[Any, ...], fallback: tuple[Any, ...] | None
    ) -> Any:
        server = self._broker.server
        deadline = time.monotonic() + PATIENCE
        pause = FIRST_PAUSE
        stale = False
        while True:
            try:
                if stale:
                    await self._refresh(loop)
                client: Any = loop.client or await self._connect(loop)
                return await _unless_cancelled(client.execute_command(*call, NEVER_DECODE=True))
            except NoScriptError as error:
                if fallback is None:
                    raise refused(server, error) from error
                call, fallback = fallback, None
                continue
            except (*TRANSIENT, CLOSED_BENEATH) as error:
                if time.monotonic() >= deadline or isinstance(error, redis.AuthenticationError):
                    raise self._give_up(loop, error) from error
                stale = server.outdated(error)
            except redis.RedisError as error:
                raise refused(server, error) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _give_up(self, loop: _Loop, error: Exception) -> BrokerUnavailable:
        loop.given_up_at, loop.given_up = time.monotonic(), error
        return unavailable(self._broker.server, error)

    def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        loop = self._loops.get(running)
        if loop is None:
            # Other threads' loops begin and go meanwhile.
            for other in [one for one in list(self._loops) if one.is_closed()]:
                self._loops.pop(other, None)
            loop = self._loops[running] = self._new_loop()
        return loop

    def _new_loop(self) -> _Loop:
        shared = self._broker.server.shared_async_client()
        if shared is None:
            return _Loop()
        return _Loop(shared, connections=min(CONNECTIONS, shared.connections))

    async def _refresh(self, loop: _Loop) -> None:
        client: Any = loop.client
        if isinstance(client, AsyncSharedClient):
            await client.refresh()
        elif isinstance(client, RedisCluster):
            await client.nodes_manager.initialize()
        else:
            await asyncio.to_thread(self._broker.server.refresh)

    async def _connect(self, loop: _Loop) -> AsyncClient | AsyncSharedClient:
        server = self._broker.server
        if loop.shared is not None:
            check_version(await loop.shared.info("server"), server.address)
            loop.client = loop.shared
            return loop.client
        # Starting an embedded server and checking the version take a moment: not on the loop.
        await asyncio.to_thread(server.client)
        if loop.client is None:
            loop.client = server.async_client()
        return loop.client


async def _unless_cancelled(call: Awaitable[Any]) -> Any:
    """The reply or the error, unless the task was cancelled meanwhile.

    Before Python 3.12 `asyncio.wait_for`, which redis-py uses, loses a cancellation that comes in
    the moment its own call ends (https://github.com/python/cpython/issues/86296).
    """
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    try:
        return await call
    finally:
        if task and task.cancelling() > cancelled:
            raise asyncio.CancelledError
