"""Where a server is and how to log in: read from a URL, or from a client of redis-py.

    redis:// rediss:// valkey:// valkeys:// unix://   one server
    redis+sentinel://host:port,host:port/service[/db] the primary that the sentinels name
    redis+cluster://host:port,host:port               a cluster (rediss+cluster:// with TLS)
    embedded://[PATH]                                 our own server, started when needed

Options in a URL's query are those of redis-py. Of a client the same is taken, for connections that
are made like its; how it is shared itself, `shared.py` says. Secrets go into `Target.options` and
nowhere else; errors have the safe address.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis import connection as redis_connection
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelPool
from redis.connection import SSLConnection
from redis.sentinel import SentinelConnectionPool

from conveyor.errors import ConfigurationError
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

SyncClient: TypeAlias = "redis.Redis | redis.RedisCluster"
AsyncClient: TypeAlias = "redis.asyncio.Redis | AsyncRedisCluster"
Client: TypeAlias = "SyncClient | AsyncClient"
Kind: TypeAlias = Literal["single", "sentinel", "cluster", "embedded"]

_PORT, _SENTINEL_PORT = 6379, 26379
_SCHEMES: dict[str, tuple[Kind, str]] = {
    "redis": ("single", "redis"),
    "rediss": ("single", "rediss"),
    "unix": ("single", "unix"),
    "valkey": ("single", "redis"),
    "valkeys": ("single", "rediss"),
    "embedded": ("embedded", ""),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
#: What is taken over from a client, beside its `ssl_…`.
_SHARED = (
    "host", "port", "db", "username", "password", "credential_provider", "client_name",
    "socket_keepalive", "socket_keepalive_options", "health_check_interval",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A server, as its clients are made.

    Attributes:
        kind: Of the server.
        address: Where it is, without secrets.
        options: Arguments of `redis.Redis`; of an embedded server, none.
        path: Directory of an embedded server, or "" for the default.
        nodes: Further nodes of a cluster, in case the one in `options` is away.
        sentinels: Where the sentinels are.
        service: What they call the server.
        sentinel_options: Arguments of `redis.Redis` for the sentinels themselves.
    """

    kind: Kind
    address: str
    options: Mapping[str, Any]
    path: str = ""
    nodes: tuple[tuple[str, int], ...] = ()
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def target_of(broker: object) -> Target:
    """Reads what an app was given as its broker.

    Raises:
        ConfigurationError: It is neither a URL that we know nor a client of redis-py.
    """
    if isinstance(broker, str):
        return _of_url(broker)
    if isinstance(broker, redis.RedisCluster | AsyncRedisCluster):
        return _of_cluster(broker)
    if isinstance(broker, redis.Redis | redis.asyncio.Redis):
        return _of_client(broker)
    raise ConfigurationError(
        f"broker is of type {type(broker).__name__}: use a URL or a client of redis-py"
    )


def safe_address(url: str) -> str:
    """The address without user name, password and query.

    Example:
        >>> safe_address("redis://:secret@db:6379/0")
        'redis://db:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***" if "@" in url else url
    authority, slash, path = rest.partition("?")[0].partition("/")
    _, _at, host = authority.rpartition("@")
    if "@" in rest[len(authority) :]:
        # A password with "/" or "?" in it is not told from an address.
        return f"{scheme}://***"
    return f"{scheme}://{host}{slash}{path}"


def _of_url(url: str) -> Target:
    address = safe_address(url)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ConfigurationError(f"broker {address!r} is not a URL: begin it with one of {known}")
    kind, plain = _SCHEMES[scheme]
    if kind == "embedded":
        return Target(kind, url, {}, path=rest)
    if kind == "sentinel":
        return _of_sentinel_url(address, plain, rest)
    if kind == "cluster":
        return _of_cluster_url(address, plain, rest)
    return Target(kind, address, _options(f"{plain}://{rest}", address))


def _of_cluster_url(address: str, plain: str, rest: str) -> Target:
    """Splits [user:password@]host:port,host:port[?options]."""
    authority, mark, query = rest.partition("?")
    credentials, at, place = authority.rpartition("@")
    hosts, slash, database = place.partition("/")
    first, _, others = hosts.partition(",")
    options = _options(f"{plain}://{credentials}{at}{first}{slash}{database}{mark}{query}", address)
    if options.pop("db", 0) != 0:
        raise ConfigurationError(f"broker {address!r} names a database: a cluster has only one")
    return Target("cluster", address, options, nodes=_hosts(others, _PORT, address))


def _of_sentinel_url(address: str, plain: str, rest: str) -> Target:
    """Splits [user:password@]host:port,host:port/service[/db][?options]."""
    authority, _, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    service, _, tail = path.partition("/")
    service, mark, query = service.partition("?")
    if not service or not hosts:
        raise ConfigurationError(
            f"broker {address!r} names no service: use redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
        )
    options = _options(f"{plain}://{credentials}{at}{tail and '/'}{tail}{mark}{query}", address)
    sentinels = _hosts(hosts, _SENTINEL_PORT, address)
    return Target("sentinel", address, options, sentinels=sentinels, service=service)


def _hosts(text: str, port: int, address: str) -> tuple[tuple[str, int], ...]:
    try:
        found = [urlsplit(f"//{host}") for host in text.split(",") if host]
        return tuple((one.hostname or "localhost", one.port or port) for one in found)
    except ValueError:
        raise _malformed(address) from None


def _options(url: str, address: str) -> dict[str, Any]:
    untyped: Any = redis_connection
    try:
        options: dict[str, Any] = untyped.parse_url(url)
    except ValueError:
        # Its text may quote a part of the password.
        raise _malformed(address) from None
    database = urlsplit(url).path.strip("/")
    if "path" not in options and not database.isdecimal() and database:
        raise _malformed(address)  # redis-py takes database 0 then
    kind = options.pop("connection_class", None)
    if kind is not None and issubclass(kind, SSLConnection):
        options["ssl"] = True
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    known = inspect.signature(redis.Redis).parameters
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"broker {address!r} has an option {name!r} that redis-py does not know:"
                f" did you mean {nearest(name, known)!r}?"
            )
    return options


def _malformed(address: str) -> ConfigurationError:
    return ConfigurationError(
        f"broker {address!r} cannot be read: give port and database as numbers, and"
        " percent-encode what is special in a user name or password"
    )


def _of_client(client: redis.Redis | redis.asyncio.Redis) -> Target:
    pool: Any = client.connection_pool
    given: Mapping[str, Any] = pool.connection_kwargs
    options = _shared(given, pool.connection_class)
    if isinstance(pool, SentinelConnectionPool | AsyncSentinelPool):
        return _of_sentinel_pool(pool, options)
    path = given.get("path")
    if path:
        return Target("single", f"unix://{path}", options | {"unix_socket_path": path})
    return Target("single", _address("redis", options), options)


def _of_sentinel_pool(pool: Any, options: dict[str, Any]) -> Target:
    if not pool.is_master:
        raise ConfigurationError(
            f"broker is a client of replicas of {pool.service_name!r}, which take no tasks:"
            " use one of Sentinel.master_for()"
        )
    kinds = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    sentinels = tuple((kind["host"], kind["port"]) for kind in kinds)
    hosts = ",".join(f"{host}:{port}" for host, port in sentinels)
    return Target(
        "sentinel",
        f"redis+sentinel://{hosts}/{pool.service_name}",
        options,
        sentinels=sentinels,
        service=pool.service_name,
        sentinel_options=_shared(kinds[0], None, but=("host", "port", "db")),
    )


def _of_cluster(client: redis.RedisCluster | AsyncRedisCluster) -> Target:
    manager: Any = client.nodes_manager
    given: Mapping[str, Any] = manager.connection_kwargs
    options = _shared(given, given.get("connection_class"), but=("host", "port", "db"))
    if given.get("ssl"):
        options["ssl"] = True
    node, *others = manager.startup_nodes.values()
    options |= {"host": node.host, "port": node.port}
    nodes = tuple((other.host, other.port) for other in others)
    return Target("cluster", _address("redis+cluster", options), options, nodes=nodes)


def _shared(
    given: Mapping[str, Any], connection: type | None, *, but: tuple[str, ...] = ()
) -> dict[str, Any]:
    options = {
        name: value
        for name, value in given.items()
        if (name in _SHARED or name.startswith("ssl_")) and name not in but and value is not None
    }
    if connection is not None and issubclass(connection, SSLConnection | AsyncSSLConnection):
        options["ssl"] = True
    return options


def _address(scheme: str, options: Mapping[str, Any]) -> str:
    if options.get("ssl"):
        scheme = scheme.replace("redis", "rediss", 1)
    database = f"/{options['db']}" if options.get("db") else ""
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"{scheme}://{host}:{port}{database}"
