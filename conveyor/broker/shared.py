"""A client of redis-py that its owner lets us use: commands go through its own connection pool.

A connection is borrowed for one command, or by a worker's loop for as long as that runs. What it
carries of its owner's wishes for time (timeouts and retries) is put aside meanwhile, since a caller
of ours hears within 5 s of a server that is down, and put back when the connection is. Commands and
replies are bytes, whatever `decode_responses` says. A connection on which anything but a whole
reply came in is disconnected before the owner's pool has it again.

The pool's own `get_connection` is not used: it connects with the owner's patience and waits for a
free connection as long as the owner would. On a cluster the client's table of slots says where to,
and each redirection corrects it; asking for it anew takes the client's own time, and so is done on
a thread of its own.

A client is shared in the process that it was given in. A fork makes connections like the client's.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ClusterError,
    MovedError,
    RedisClusterException,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.connection import AbstractConnection

    from conveyor.broker.target import Client, SyncClient

log = logging.getLogger("conveyor.shared")

#: Seconds that a command waits for a connection of the pool, and between two looks.
WAIT, LOOK = 0.25, 0.005
#: Most redirections of one command, and the pause before one that repeats it.
REDIRECTIONS, REPEAT = 16, 0.05
#: Seconds that a command waits for a cluster client to ask where the slots are.
ASKING = 0.5
#: What redis-py's parsers make of a connection that its owner closes while they read.
CLOSED = (AttributeError, ValueError)
_NO_RETRY = Retry(NoBackoff(), 0)
#: Arguments that tie connections to a pool, or are about text.
_TIES = (
    "maint_notifications", "oss_cluster_maint", "himport_registry", "orig_", "parser_class",
    "encoding",
)  # fmt: skip


class Times(NamedTuple):
    """Seconds that a server may take to accept a connection, and to answer."""

    connect: float
    reply: float


class PoolExhausted(redis.ConnectionError):
    """All connections of the owner's pool are in use."""


def can_be_shared(client: Client) -> bool:
    """Whether commands can go through a client's connections.

    Not if what is sent would be encoded otherwise than as UTF-8, and not if the client keeps
    replies in a cache of its own: its connections are read by others than their borrower.
    """
    untyped: Any = client
    cluster = hasattr(client, "nodes_manager")
    pool = untyped.nodes_manager if cluster else untyped.connection_pool
    encoding = str(pool.connection_kwargs.get("encoding", "utf-8")).lower()
    caches = getattr(pool, "_cache" if cluster else "cache", None) is not None
    return encoding in ("utf-8", "utf8") and not caches


class Loan:
    """A connection of an owner's pool, borrowed: with our deadlines, and without retries.

    Attributes:
        connection: The connection; not necessarily connected.
    """

    __slots__ = ("_kept", "_pool", "connection")

    def __init__(self, pool: Any, connection: Any, times: Times) -> None:
        self.connection = connection
        self._pool = pool
        self._kept = (
            connection.retry, connection.socket_connect_timeout, connection.socket_timeout,
        )  # fmt: skip
        connection.retry = _NO_RETRY
        connection.socket_connect_timeout = times.connect
        _set_timeout(connection, times.reply)

    def repay(self) -> None:
        """Gives it back as it was."""
        connection = self.connection
        connection.retry, connection.socket_connect_timeout, timeout = self._kept
        _set_timeout(connection, timeout)
        self._pool.release(connection)

    def repay_broken(self) -> None:
        """Gives it back disconnected."""
        self.connection.disconnect()
        self.repay()


class SharedClient:
    """Runs commands on the connections of somebody's sync client.

    Args:
        client: Theirs; closing this leaves it open.
        times: What a server may take.
        asking: What all its sentinels together may.
    """

    def __init__(self, client: SyncClient, times: Times, asking: float) -> None:
        self._client: Any = client
        self._times = times
        self._clustered = isinstance(client, redis.RedisCluster)
        self._callbacks: dict[int, Any] = {
            protocol: redis.Redis(protocol=protocol).response_callbacks for protocol in (2, 3)
        }
        self._sentinels: Any = None
        pool: Any = getattr(client, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            self._sentinels = _hurried(pool, asking)
        self._refreshing: threading.Thread | None = None

    def execute_command(self, *call: Any, **_: Any) -> Any:
        """Runs one command; the reply is what redis-py makes of it undecoded.

        Raises:
            PoolExhausted: No connection was free in time.
            redis.RedisError: The server cannot be reached, or refuses the command.
        """
        if self._clustered:
            return self._follow(call)
        return self._ask(self._client.connection_pool, call)

    def info(self, section: str) -> dict[str, Any]:
        """What the server says of itself."""
        found: dict[str, Any] = self.execute_command("INFO", section)
        return found

    def hold(self, key: str, *, blocking: bool) -> Loan | None:
        """A connected connection to the node of a key for long, unless others need it more.

        At least one connection of the pool is left to others, and if it is for calls that block,
        half of them.

        Raises:
            redis.RedisError: The server cannot be reached.
        """
        pool = self._pool(key)
        left = pool.max_connections - _in_use(pool) - 1
        connection = _take(pool) if left >= max(1, blocking * pool.max_connections / 2) else None
        if connection is None:
            return None
        loan = Loan(pool, connection, self._times)
        try:
            self._connect(connection)
        except BaseException:
            loan.repay_broken()
            raise
        return loan

    def connection(self, key: str) -> AbstractConnection:
        """A connected connection to the node of a key, like the pool's but not of it.

        Raises:
            redis.RedisError: The server cannot be reached.
        """
        pool = self._pool(key)
        connection = pool.connection_class(**like(pool, self._times))
        self._connect(connection)
        made: AbstractConnection = connection
        return made

    def refresh(self) -> None:
        """Has a cluster's client ask where the slots are, and waits a moment for it."""
        if not self._clustered:
            return
        thread = self._refreshing
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._initialize, name="conveyor-slots", daemon=True)
            self._refreshing = thread
            thread.start()
        thread.join(ASKING)

    def close(self) -> None:
        """Closes what is ours; the client stays open."""
        if self._sentinels is not None:
            for sentinel in self._sentinels.sentinels:
                sentinel.close()

    def _initialize(self) -> None:
        try:
            self._client.nodes_manager.initialize()
        except Exception as error:
            # Whoever meets the consequences says so.
            log.debug("the shared client does not learn where the slots are: %s", error)

    def _pool(self, key: str) -> Any:
        if not self._clustered:
            return self._client.connection_pool
        return self._pool_of(self._client.get_node_from_key(key))

    def _pool_of(self, node: Any) -> Any:
        return self._client.get_redis_connection(node).connection_pool

    def _node(self, call: tuple[Any, ...]) -> Any:
        try:
            slot = self._client.determine_slot(*call)
        except RedisClusterException:
            return self._client.get_default_node()  # a command without keys
        return self._client.nodes_manager.get_node_from_slot(slot)

    def _follow(self, call: tuple[Any, ...]) -> Any:
        """Runs a command on the node that has its slot, wherever that has gone."""
        asked: Any = None
        for turn in range(REDIRECTIONS):
            try:
                if asked is None:
                    return self._ask(self._pool_of(self._node(call)), call)
                return self._ask(self._pool_of(asked), call, first=("ASKING",))
            except MovedError as error:
                manager = self._client.nodes_manager
                # The same by its name before redis-py 7.
                (getattr(manager, "move_slot", None) or manager.update_moved_exception)(error)
                asked = None
            except AskError as error:
                place: Any = error
                asked = self._client.get_node(host=place.host, port=place.port)
                if asked is None:
                    self.refresh()
            except TryAgainError:
                asked = None
                if turn > REDIRECTIONS / 2:
                    time.sleep(REPEAT)
            except PoolExhausted:
                raise
            except (
                redis.ConnectionError, redis.TimeoutError, ClusterDownError, SlotNotCoveredError,
            ):  # fmt: skip
                self.refresh()
                raise
        raise ClusterError("TTL exhausted.")

    def _ask(self, pool: Any, call: tuple[Any, ...], first: tuple[Any, ...] = ()) -> Any:
        loan = self._borrow(pool)
        try:
            connection = loan.connection
            self._connect(connection)
            if first:
                connection.send_command(*first)
                connection.read_response(disable_decoding=True)
            connection.send_command(*call)
            reply = connection.read_response(disable_decoding=True)
        except redis.ResponseError:
            loan.repay()  # a whole reply, though a refusal
            raise
        except CLOSED as error:
            loan.repay_broken()
            raise redis.ConnectionError("the connection was closed by its owner") from error
        except BaseException:
            loan.repay_broken()
            raise
        loan.repay()
        callback = self._callbacks[int(connection.protocol)].get(call[0])
        return reply if callback is None else callback(reply)

    def _borrow(self, pool: Any) -> Loan:
        deadline = time.monotonic() + WAIT
        while (connection := _take(pool)) is None:
            if time.monotonic() > deadline:
                raise PoolExhausted(f"all {pool.max_connections} connections are in use")
            time.sleep(LOOK)
        return Loan(pool, connection, self._times)

    def _connect(self, connection: Any) -> None:
        if connection._sock is not None:
            if not _has_something_to_say(connection):
                return
            connection.disconnect()
        if self._sentinels is None:
            connection.connect()
            return
        pool = self._client.connection_pool
        address = self._sentinels.discover_master(pool.service_name)
        if pool.proxy.master_address != address:
            # As the pool does when its own sentinels have named another primary.
            pool.proxy.master_address = address
            pool.disconnect(inuse_connections=False)
        connection.connect_to(address)


def like(pool: Any, times: Times) -> dict[str, Any]:
    """Arguments for connections of our own that are like a sync pool's."""
    given: Mapping[str, Any] = pool.connection_kwargs
    options = {name: value for name, value in given.items() if not name.startswith(_TIES)}
    return options | {
        "protocol": 2,
        "decode_responses": False,
        "retry": _NO_RETRY,
        "socket_connect_timeout": times.connect,
        "socket_timeout": times.reply,
    }


def _hurried(pool: Any, seconds: float) -> Any:
    """A pool's sentinels, asked as by its owner but with deadlines of ours."""
    manager = pool.sentinel_manager
    ours = copy.copy(manager)
    time_each = seconds / len(manager.sentinels)
    sentinels: list[Any] = []
    for sentinel in manager.sentinels:
        its: Any = sentinel.connection_pool
        options = like(its, Times(time_each, time_each))
        own = redis.ConnectionPool(connection_class=its.connection_class, **options)
        sentinels.append(redis.Redis.from_pool(own))
    ours.sentinels = sentinels
    return ours


def _blocks(pool: Any) -> bool:
    return isinstance(pool, redis.BlockingConnectionPool)


def _in_use(pool: Any) -> int:
    if _blocks(pool):
        return int(pool.max_connections - pool.pool.qsize())
    return len(pool._in_use_connections)


def _take(pool: Any) -> Any:
    """A connection of a pool, connected or not; None when all are in use."""
    pool._checkpid()
    if _blocks(pool):
        try:
            connection: Any = pool.pool.get_nowait()
        except Empty:
            return None
        return pool.make_connection() if connection is None else connection
    with pool._lock:
        if pool._available_connections:
            connection = pool._available_connections.pop()
        elif pool._created_connections < pool.max_connections:
            connection = pool.make_connection()
        else:
            return None
        pool._in_use_connections.add(connection)
        return connection


def _has_something_to_say(connection: Any) -> bool:
    """Whether an idle connection was closed, or left with a reply that nobody has read."""
    try:
        return bool(connection.can_read())
    except (redis.RedisError, OSError):
        return True


def _set_timeout(connection: Any, seconds: float | None) -> None:
    connection.socket_timeout = seconds
    sock = connection._sock
    if sock is None:
        return
    try:
        sock.settimeout(seconds)
    except OSError:
        return  # closed by its owner meanwhile; the next command connects anew
    # Parsers keep a copy, to put back after a read that had a timeout of its own.
    parser = connection._parser
    if hasattr(parser, "_socket_timeout"):
        parser._socket_timeout = seconds
    elif getattr(parser, "_buffer", None) is not None:
        parser._buffer.socket_timeout = seconds
