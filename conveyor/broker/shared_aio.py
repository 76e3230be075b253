"""An asyncio client of redis-py that its owner lets us use: the twin of `shared.py`.

Its connections belong to one event loop: the one that they were made in, or while it has none, the
first that asks. There commands go through its pool; any other loop, and every sync caller, has
connections like its. A cluster client runs the commands itself, as its owner's: whoever awaits them
has a limit of his own.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from conveyor.broker.shared import LOOK, WAIT, PoolExhausted, Times

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conveyor.broker.target import AsyncClient

_NO_RETRY = Retry(NoBackoff(), 0)


class Home:
    """Which event loop a client's connections belong to.

    Args:
        client: Whose.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client: Any = client
        self._first: dict[int, asyncio.AbstractEventLoop] = {}

    def is_here(self) -> bool:
        """Whether it is the running loop."""
        running, pid = asyncio.get_running_loop(), os.getpid()
        loops = {one._reader._loop for one in self._connections() if one._reader is not None}
        if loops:
            return loops == {running}
        first = self._first.get(pid)
        if first is not None and first.is_closed():
            del self._first[pid]
        return self._first.setdefault(pid, running) is running

    def _connections(self) -> Iterable[Any]:
        if isinstance(self._client, RedisCluster):
            return [connection for node in _nodes(self._client) for connection in node._connections]
        pool = self._client.connection_pool
        return [*pool._available_connections, *pool._in_use_connections]


class AsyncSharedClient:
    """Runs commands on the connections of somebody's asyncio client.

    Args:
        client: Theirs; closing this leaves it open.
        times: What a server may take.
        asking: What all its sentinels together may.
    """

    def __init__(self, client: AsyncClient, times: Times, asking: float) -> None:
        self._client: Any = client
        self._times = times
        self._clustered = isinstance(client, RedisCluster)
        self._callbacks: dict[int, Any] = {
            protocol: redis.asyncio.Redis(protocol=protocol).response_callbacks
            for protocol in (2, 3)
        }
        self._sentinels: Any = None
        pool: Any = getattr(client, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            self._sentinels = _hurried(pool, asking)

    @property
    def connections(self) -> int:
        """How many it may have."""
        if self._clustered:
            return int(self._client.connection_kwargs["max_connections"])
        return int(self._client.connection_pool.max_connections)

    async def execute_command(self, *call: Any, **_: Any) -> Any:
        """Runs one command; the reply is what redis-py makes of it undecoded.

        Raises:
            PoolExhausted: No connection was free in time.
            redis.RedisError: The server cannot be reached, or refuses the command.
        """
        if self._clustered:
            return await self._client.execute_command(*call, NEVER_DECODE=True)
        connection = await self._borrow()
        kept = connection.retry, connection.socket_connect_timeout, connection.socket_timeout
        connection.retry = _NO_RETRY
        connection.socket_connect_timeout, connection.socket_timeout = self._times
        try:
            await self._connect(connection)
            await connection.send_command(*call)
            reply = await connection.read_response(disable_decoding=True)
        except redis.ResponseError:
            raise  # a whole reply, though a refusal
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            connection.retry, connection.socket_connect_timeout, connection.socket_timeout = kept
            await self._client.connection_pool.release(connection)
        callback = self._callbacks[int(connection.protocol)].get(call[0])
        return reply if callback is None else callback(reply)

    async def info(self, section: str) -> dict[str, Any]:
        """What the server says of itself."""
        if self._clustered:
            found: dict[str, Any] = await self._client.info(section)
        else:
            found = await self.execute_command("INFO", section)
        return found

    async def refresh(self) -> None:
        """Has a cluster's client ask where the slots are."""
        if self._clustered:
            await self._client.nodes_manager.initialize()

    async def aclose(self) -> None:
        """Closes what is ours, and has the client connect anew when it is used next.

        The loop may end before the client is closed, and in no other can its connections be.
        """
        if self._sentinels is not None:
            for sentinel in self._sentinels.sentinels:
                await sentinel.aclose()
        if not self._clustered:
            await self._client.connection_pool.disconnect(inuse_connections=False)
            return
        for node in _nodes(self._client):
            for connection in tuple(node._free):
                await connection.disconnect()

    async def _borrow(self) -> Any:
        pool = self._client.connection_pool
        deadline = time.monotonic() + WAIT
        while not pool.can_get_connection():
            if time.monotonic() > deadline:
                raise PoolExhausted(f"all {pool.max_connections} connections are in use")
            await asyncio.sleep(LOOK)
        return pool.get_available_connection()

    async def _connect(self, connection: Any) -> None:
        if connection.is_connected:
            if not await _has_something_to_say(connection):
                return
            await connection.disconnect()
        if self._sentinels is None:
            await connection.connect()
            return
        pool = self._client.connection_pool
        address = await self._sentinels.discover_master(pool.service_name)
        if pool.master_address != address:
            # As the pool does when its own sentinels have named another primary.
            pool.master_address = address
            await pool.disconnect(inuse_connections=False)
        await connection.connect_to(address)


def _nodes(client: Any) -> list[Any]:
    manager = client.nodes_manager
    return [*manager.nodes_cache.values(), *manager.startup_nodes.values()]


def _hurried(pool: Any, seconds: float) -> Any:
    """A pool's sentinels, asked as by its owner but with deadlines of ours."""
    manager = pool.sentinel_manager
    ours = copy.copy(manager)
    time_each = seconds / len(manager.sentinels)
    sentinels: list[Any] = []
    for sentinel in manager.sentinels:
        its: Any = sentinel.connection_pool
        options: dict[str, Any] = dict(its.connection_kwargs) | {
            "retry": _NO_RETRY,
            "socket_connect_timeout": time_each,
            "socket_timeout": time_each,
        }
        own = redis.asyncio.ConnectionPool(connection_class=its.connection_class, **options)
        sentinels.append(redis.asyncio.Redis.from_pool(own))
    ours.sentinels = sentinels
    return ours


async def _has_something_to_say(connection: Any) -> bool:
    """Whether an idle connection was closed, or left with a reply that nobody has read."""
    # redis-py 8 has another name for it.
    can_read = getattr(connection, "can_read", connection.can_read_destructive)
    try:
        return bool(await can_read())
    except (redis.RedisError, OSError):
        return True
