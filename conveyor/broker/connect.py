"""Connections to any kind of server: one address in, clients and bare connections out.

    redis:// rediss:// valkey:// valkeys:// unix://   one server
    redis+sentinel://host:port,host:port/service[/db] the primary that the sentinels name
    redis+cluster://host:port                         a cluster (rediss+cluster:// with TLS)
    embedded://[PATH]                                 our own server, started when needed
    a client of redis-py                              shared; what else is needed is made like it

Nothing is opened before it is asked for, and never used on both sides of a fork: each process makes
its own. TLS, authentication, sentinels and cluster topology are redis-py's work. Its own retries are
off: which calls may be sent again, and for how long, is decided here and in `broker.py`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from conveyor.broker.embedded import EmbeddedServer, default_directory
from conveyor.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from redis.connection import AbstractConnection

SyncClient: TypeAlias = "redis.Redis | redis.RedisCluster"
AsyncClient: TypeAlias = "redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster"
Client: TypeAlias = "SyncClient | AsyncClient"

#: Seconds until an unanswered connection attempt or command counts as failed.
TIMEOUT = 2.0
#: What a connection to a dead server raises, or a server that will be back.
TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.MasterDownError,
)
_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}
_OPTIONS: dict[str, Any] = {
    "socket_timeout": TIMEOUT,
    "socket_connect_timeout": TIMEOUT,
    "protocol": 2,
    "decode_responses": False,
}


class Server:
    """The server an app uses, by address or by a client to share.

    Args:
        broker: A URL or a client of redis-py.
        module: The app's file, beside which an embedded server keeps its data.

    Raises:
        ConfigurationError: The URL is not one we know.
    """

    def __init__(self, broker: str | Client, *, module: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._client: SyncClient | None = None
        self._embedded: EmbeddedServer | None = None
        self._shared: Client | None = None
        self._url = ""
        if not isinstance(broker, str):
            self._shared = broker
            self.kind = "cluster" if hasattr(broker, "get_node_from_key") else "shared"
            return
        scheme, separator, rest = broker.partition("://")
        if not separator or scheme not in _SCHEMES:
            known = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ConfigurationError(f"broker {safe_address(broker)!r} is not a URL of {known}")
        self.kind, plain = _SCHEMES[scheme]
        self._url = f"{plain}://{rest}"
        if self.kind == "embedded":
            directory = Path(rest).expanduser() if rest else default_directory(module)
            self._embedded = EmbeddedServer(directory)

    @property
    def address(self) -> str:
        """Where the server is, without secrets."""
        if self._embedded is not None:
            return f"embedded://{self._embedded.directory}"
        if self._shared is not None:
            return _address_of(self._shared)
        return safe_address(self._url)

    @property
    def embedded(self) -> bool:
        """Whether it is our own server."""
        return self._embedded is not None

    @property
    def clustered(self) -> bool:
        """Whether keys of different queues may live on different nodes."""
        return self.kind == "cluster"

    def client(self) -> SyncClient:
        """This process's client; made, and the server's version checked, at the first call.

        Raises:
            BrokerUnavailable: The server is too old, or the embedded one does not start.
            redis.RedisError: It cannot be reached.
        """
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    client = self._shared_sync() or self._new_client()
                    check_version(client, self.address)
                    self._client, self._pid = client, os.getpid()
        return self._client

    def async_client(self) -> AsyncClient:
        """A new asyncio client, for one event loop.

        Raises:
            BrokerUnavailable: The embedded server does not start.
        """
        if isinstance(self._shared, redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster):
            return self._shared
        options = _OPTIONS | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
        if self._shared is not None:
            return _async_twin(self._shared, options)
        if self._embedded is not None:
            return redis.asyncio.Redis(unix_socket_path=str(self._join()), **options)
        if self.kind == "cluster":
            return redis.asyncio.cluster.RedisCluster.from_url(self._url, **_cluster(options))
        if self.kind == "sentinel":
            hosts, service, extra = _sentinel_parts(self._url)
            sentinel = redis.asyncio.sentinel.Sentinel(hosts, **(options | extra))
            return sentinel.master_for(service, **(options | extra))
        return redis.asyncio.Redis.from_url(self._url, **options)

    def connection(self, key: str, *, timeout: float | None = TIMEOUT) -> AbstractConnection:
        """A connected connection of the caller's own to the node that holds `key`.

        Args:
            key: Any key of the queue it will be used for.
            timeout: Seconds a reply may take, or None for ever.

        Raises:
            redis.RedisError: The server cannot be reached.
        """
        client = self.client()
        if isinstance(client, redis.RedisCluster):
            node = client.get_node_from_key(key)
            if node is None:
                raise redis.exceptions.ClusterDownError(f"no node serves the slot of {key}")
            client = client.get_redis_connection(node)
        pool = client.connection_pool
        options = dict(pool.connection_kwargs)
        options.update(_OPTIONS, retry=Retry(NoBackoff(), 0), socket_timeout=timeout)
        options.pop("maint_notifications_config", None)
        options.pop("himport_registry", None)
        connection = pool.connection_class(**options)
        connection.connect()
        return connection

    def refresh(self) -> None:
        """Asks a cluster where its slots are now; nothing to do elsewhere."""
        client = self.client()
        if isinstance(client, redis.RedisCluster):
            client.nodes_manager.initialize()

    def close(self) -> None:
        """Closes this process's own client and leaves the embedded server; a shared client stays."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None and client is not self._shared and self._pid == os.getpid():
                client.close()
            if self._embedded is not None:
                self._embedded.release()

    def _join(self) -> Path:
        assert self._embedded is not None
        return self._embedded.acquire()

    def _shared_sync(self) -> SyncClient | None:
        if self._shared is None:
            return None
        if isinstance(self._shared, redis.Redis | redis.RedisCluster):
            return self._shared
        return _sync_twin(self._shared)

    def _new_client(self) -> SyncClient:
        options = _OPTIONS | {"retry": Retry(NoBackoff(), 0)}
        if self._embedded is not None:
            return redis.Redis(unix_socket_path=str(self._join()), **options)
        if self.kind == "cluster":
            return redis.RedisCluster.from_url(self._url, **_cluster(options))
        if self.kind == "sentinel":
            hosts, service, extra = _sentinel_parts(self._url)
            sentinel = redis.sentinel.Sentinel(hosts, **(options | extra))
            return sentinel.master_for(service, **(options | extra))
        return redis.Redis.from_url(self._url, **options)


_SCHEMES = {
    "redis": ("single", "redis"),
    "rediss": ("single", "rediss"),
    "unix": ("single", "unix"),
    "valkey": ("single", "redis"),
    "valkeys": ("single", "rediss"),
    "embedded": ("embedded", "embedded"),
    "redis+sentinel": ("sentinel", "redis"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}


def safe_address(url: str) -> str:
    """The address without user name, password and query.

    Example:
        >>> safe_address("redis://:secret@db:6379/0")
        'redis://db:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.rpartition("@")[2]
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def check_version(client: SyncClient, address: str) -> None:
    """Refuses a server that lacks what the scripts need.

    Raises:
        BrokerUnavailable: It is older than Redis 7.0 or Valkey 7.2.
    """
    info: Any = client.info("server")
    if "redis_version" not in info and info:
        info = next(iter(info.values()))
    name = "valkey" if "valkey_version" in info else "redis"
    version = str(info[f"{name}_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST[name]:
        raise BrokerUnavailable(
            f"{address} is {name.title()} {version}, too old: use Redis 7.0, Valkey 7.2 or newer"
        )


def _cluster(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"require_full_coverage": False, "retry": options["retry"]}


def _sentinel_parts(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Splits redis://[user:password@]host:port,host:port/service[/db]."""
    rest = url.partition("://")[2]
    credentials, _, rest = rest.rpartition("@")
    hosts, _, path = rest.partition("?")[0].partition("/")
    service, _, database = path.partition("/")
    if not service:
        raise ConfigurationError(
            f"broker {safe_address(url)!r} names no service: use redis+sentinel://HOST:PORT/SERVICE"
        )
    extra: dict[str, Any] = {"db": int(database or 0)}
    user, _, password = credentials.partition(":")
    if user:
        extra["username"] = unquote(user)
    if password:
        extra["password"] = unquote(password)
    pairs = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return (
        [(pair.hostname or "localhost", pair.port or 26379) for pair in pairs],
        service,
        extra,
    )


def _pool_options(client: Any) -> dict[str, Any]:
    dropped = (
        "retry",
        "himport_registry",
        "maint_notifications_config",
        "connection_pool",
    )
    kept = {k: v for k, v in client.connection_pool.connection_kwargs.items() if k not in dropped}
    path = kept.pop("path", None)
    return kept | ({"unix_socket_path": path} if path else {}) | _OPTIONS


def _startup(client: Any) -> dict[str, Any]:
    node = client.get_default_node() or next(iter(client.get_nodes()))
    return {"host": node.host, "port": node.port}


def _sync_twin(client: Any) -> SyncClient:
    retry = Retry(NoBackoff(), 0)
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        node = next(iter(client.nodes_manager.startup_nodes.values()))
        return redis.RedisCluster(host=node.host, port=node.port, **_OPTIONS, retry=retry)
    return redis.Redis(**(_pool_options(client) | {"retry": retry}))


def _async_twin(client: SyncClient, options: dict[str, Any]) -> AsyncClient:
    if isinstance(client, redis.RedisCluster):
        return redis.asyncio.cluster.RedisCluster(**_startup(client), **_cluster(options))
    return redis.asyncio.Redis(**(_pool_options(client) | options))


def _address_of(client: Any) -> str:
    if hasattr(client, "connection_pool"):
        options = client.connection_pool.connection_kwargs
        if "path" in options:
            return f"unix://{options['path']}"
        return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return "the shared cluster client"
