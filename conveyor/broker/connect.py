"""Connections to any kind of server: one target in, clients and bare connections out.

Nothing is opened before it is asked for, and never used on both sides of a fork: each process makes
its own. A client that an app was given is shared (`shared.py`, `shared_aio.py`) by calls of its
kind, sync or async, in the process that it was given in. Everywhere else connections are made like
its, but for its timeouts and retries.

TLS, authentication, sentinels and cluster topology are redis-py's work. Its own retries are off:
which calls may be sent again, and for how long, is decided here and in `broker.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import (
    ClusterDownError,
    ClusterError,
    ReadOnlyError,
    RedisClusterException,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from conveyor.broker.embedded import EmbeddedServer, directory_of
from conveyor.broker.process import PerProcess
from conveyor.broker.shared import SharedClient, Times, can_be_shared, like
from conveyor.broker.shared_aio import AsyncSharedClient, Home
from conveyor.broker.target import AsyncClient, Client, SyncClient, target_of
from conveyor.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from redis.connection import AbstractConnection

T = TypeVar("T")
#: What runs the commands of a process's sync callers.
RunningClient: TypeAlias = "SyncClient | SharedClient"

#: Seconds until an unanswered connection attempt or command counts as failed.
TIMEOUT = 2.0
#: The same of a cluster or of sentinels, of which several may be asked in turn.
TIMEOUT_OF_SEVERAL = 1.0
#: What a connection to a dead server raises, or a server that will be back.
TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    ReadOnlyError,
    TryAgainError,
    ClusterError,
    RedisClusterException,
)
_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}


class Server:
    """The server an app uses, by URL or like a client of redis-py.

    Args:
        broker: A URL or a client of redis-py.
        module: The app's file, beside which an embedded server keeps its data.

    Raises:
        ConfigurationError: It is no URL that we know, and no client of redis-py.
    """

    def __init__(self, broker: str | Client, *, module: Path | None = None) -> None:
        self._target = target = target_of(broker)
        self._embedded: EmbeddedServer | None = None
        if target.kind == "embedded":
            self._embedded = EmbeddedServer(directory_of(module, target.path))
        self._given = None if isinstance(broker, str) else broker
        self._given_in = os.getpid()
        self._home: Home | None = None
        if isinstance(broker, redis.asyncio.Redis | AsyncRedisCluster):
            self._home = Home(broker)
        self._client = PerProcess(self._checked_client, _close)

    @property
    def address(self) -> str:
        """Where the server is, without secrets."""
        if self._embedded is not None:
            return f"embedded://{self._embedded.directory}"
        return self._target.address

    @property
    def embedded(self) -> bool:
        """Whether it is our own server."""
        return self._embedded is not None

    @property
    def clustered(self) -> bool:
        """Whether keys of different queues may live on different nodes."""
        return self._target.kind == "cluster"

    def client(self) -> RunningClient:
        """This process's client; made, and the server's version checked, at the first call.

        Raises:
            BrokerUnavailable: The server is too old, or the embedded one does not start.
            redis.RedisError: It cannot be reached.
        """
        return self._client.get()

    def async_client(self) -> AsyncClient:
        """A new asyncio client, for one event loop.

        Raises:
            BrokerUnavailable: The embedded server does not start.
        """
        options = self._options(AsyncRetry(NoBackoff(), 0))
        if self._target.kind == "cluster":
            return cast(
                "AsyncRedisCluster", self._by_nodes(AsyncRedisCluster, AsyncClusterNode, options)
            )
        if self._target.kind == "sentinel":
            return cast("redis.asyncio.Redis", self._by_sentinels(AsyncSentinel, options))
        return redis.asyncio.Redis(**options)

    def shared_async_client(self) -> AsyncSharedClient | None:
        """The client that the app was given, if it belongs to the running event loop."""
        client: Any = self._given
        if self._home is None or not can_be_shared(client) or not self._home.is_here():
            return None
        return AsyncSharedClient(client, self._times, TIMEOUT_OF_SEVERAL)

    def hold(self, key: str, *, blocking: bool) -> tuple[AbstractConnection, Callable[[], object]]:
        """A connected connection to keep, of a shared client's pool if that has enough of them.

        Args:
            key: Any key of the queue it will be used for.
            blocking: Whether it is for calls that block.

        Returns:
            The connection, and what ends its use.

        Raises:
            BrokerUnavailable: The server is too old, or the embedded one does not start.
            redis.RedisError: It cannot be reached.
        """
        client = self.client()
        if isinstance(client, SharedClient):
            loan = _cluster_call(lambda: client.hold(key, blocking=blocking))
            if loan is not None:
                return loan.connection, loan.repay_broken
        connection: Any = self.connection(key)
        return connection, connection.disconnect

    def connection(self, key: str) -> AbstractConnection:
        """A connected connection of the caller's own to the node that holds `key`.

        Args:
            key: Any key of the queue it will be used for.

        Raises:
            BrokerUnavailable: The server is too old, or the embedded one does not start.
            redis.RedisError: It cannot be reached.
        """
        client = self.client()
        if isinstance(client, SharedClient):
            return _cluster_call(lambda: client.connection(key))
        pool: Any = self._node(client, key).connection_pool
        options: dict[str, Any] = dict(pool.connection_kwargs)
        for name in ("maint_notifications_config", "himport_registry"):
            options.pop(name, None)
        connection = pool.connection_class(**options)
        connection.connect()
        return cast("AbstractConnection", connection)

    def outdated(self, error: Exception) -> bool:
        """Whether this error calls for a `refresh`, without which it would come again."""
        if self._embedded is not None:
            return isinstance(error, redis.ConnectionError)
        return isinstance(error, SlotNotCoveredError)

    def refresh(self) -> None:
        """Asks a cluster where its slots are now, and revives an embedded server that is gone.

        Raises:
            BrokerUnavailable: The embedded server does not start.
            redis.RedisError: The cluster cannot be reached.
        """
        if self._embedded is not None:
            self._embedded.acquire()
            return
        client = self.client()
        if isinstance(client, SharedClient):
            client.refresh()
        elif isinstance(client, redis.RedisCluster):
            _cluster_call(client.nodes_manager.initialize)

    def close(self) -> None:
        """Closes this process's own client and leaves the embedded server."""
        client = self._client.take()
        if client is not None:
            _close(client)
        if self._embedded is not None:
            self._embedded.release()

    def _node(self, client: Any, key: str) -> redis.Redis:
        if isinstance(client, redis.Redis):
            return client
        node = _cluster_call(lambda: client.get_node_from_key(key))
        if node is None:
            raise ClusterDownError(f"no node serves the slot of {key}")
        return cast("redis.Redis", client.get_redis_connection(node))

    def _checked_client(self) -> RunningClient:
        client: Any = _cluster_call(self._new_client)
        try:
            check_version(_cluster_call(lambda: client.info("server")), self.address)
        except Exception:
            _close(client)
            raise
        return cast("RunningClient", client)

    def _new_client(self) -> RunningClient:
        given = self._given
        if isinstance(given, redis.Redis | redis.RedisCluster):
            if os.getpid() == self._given_in and can_be_shared(given):
                return SharedClient(given, self._times, TIMEOUT_OF_SEVERAL)
            if isinstance(given, redis.Redis) and self._target.kind == "single":
                pool = given.connection_pool
                own = redis.ConnectionPool(pool.connection_class, **like(pool, self._times))
                return redis.Redis.from_pool(own)
        options = self._options(Retry(NoBackoff(), 0))
        if self._target.kind == "cluster":
            return cast(
                "redis.RedisCluster", self._by_nodes(redis.RedisCluster, ClusterNode, options)
            )
        if self._target.kind == "sentinel":
            return cast("redis.Redis", self._by_sentinels(Sentinel, options))
        return redis.Redis(**options)

    @property
    def _times(self) -> Times:
        if self.clustered:
            # A caller that is cut off from a cluster tries its nodes one after another.
            return Times(TIMEOUT_OF_SEVERAL / 2, TIMEOUT_OF_SEVERAL)
        return Times(TIMEOUT, TIMEOUT)

    def _options(self, retry: Retry | AsyncRetry) -> dict[str, Any]:
        connecting, timeout = self._times
        options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": connecting}
        options |= {
            **self._target.options,
            "protocol": 2,
            "decode_responses": False,
            "retry": retry,
        }
        if self._embedded is not None:
            options["unix_socket_path"] = str(self._embedded.acquire())
        return options

    def _by_nodes(self, cluster: Any, node: Any, options: dict[str, Any]) -> Any:
        others = [node(*place) for place in self._target.nodes]
        return cluster(startup_nodes=others, require_full_coverage=False, **options)

    def _by_sentinels(self, manager: Any, options: dict[str, Any]) -> Any:
        timeout = TIMEOUT_OF_SEVERAL / len(self._target.sentinels)
        own: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        own |= {"retry": options["retry"], **self._target.sentinel_options}
        sentinels = manager(self._target.sentinels, sentinel_kwargs=own)
        return sentinels.master_for(self._target.service, **options)


def holds_reply(connection: Any) -> bool:
    """Whether more than the last reply was read from the socket, of which no selector tells.

    A connection's own `can_read` may decode what it finds, if that is what its owner wants.
    """
    reader = getattr(connection._parser, "_reader", None)
    if reader is None:
        return bool(connection.can_read(0))
    pending = getattr(connection._sock, "pending", None)
    return bool(reader.has_data() or (pending is not None and pending()))


def check_version(info: Mapping[str, Any], address: str) -> None:
    """Refuses a server that lacks what the scripts need.

    Args:
        info: What it, or each node of a cluster, says of itself.
        address: For the error.

    Raises:
        BrokerUnavailable: It is older than Redis 7.0 or Valkey 7.2.
    """
    if "redis_version" not in info and info:
        info = next(iter(info.values()))
    name = "valkey" if "valkey_version" in info else "redis"
    version = str(info[f"{name}_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST[name]:
        raise BrokerUnavailable(
            f"{address} is {name.title()} {version}, which is too old:"
            " use Redis 7.0, Valkey 7.2 or newer"
        )


def _cluster_call(call: Callable[[], T]) -> T:
    """Runs a call whose errors of cluster clients do not descend from redis-py's others."""
    try:
        return call()
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error
    except IndexError as error:
        # How redis-py fails on a node of a cluster that is not set up yet.
        raise redis.ConnectionError("no node of the cluster has slots") from error


async def close_async(client: AsyncClient) -> None:
    """Closes a client of `Server.async_client`, and what redis-py leaves open."""
    await client.aclose()
    untyped: Any = client
    if isinstance(client, AsyncRedisCluster):
        # After an error it takes itself for closed already, whatever it has opened since.
        await untyped.nodes_manager.aclose()
        await untyped.nodes_manager.aclose("startup_nodes")
        return
    manager = getattr(untyped.connection_pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager else ():
        await sentinel.aclose()


def _close(client: RunningClient) -> None:
    client.close()
    manager: Any = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for sentinel in manager.sentinels if manager else ():
        sentinel.close()
