"""An embedded server's directory, and processes that use it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from conveyor.broker import embedded, guardian
from conveyor.broker.embedded import EmbeddedServer, status, stop

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT = Path(embedded.__file__).parents[2]


HANG = 20.0


#: What a user process does at least; the rest of its life is the test's.
JOIN = """
import os, sys
from pathlib import Path
from conveyor.broker.embedded import EmbeddedServer, status
directory = Path(sys.argv[1])
server = EmbeddedServer(directory)
def told(): return sys.stdin.readline()
def tell(what): print(what, flush=True)
def alive(): return status(directory).pid
"""


class User:
    """A process that runs JOIN and then a script, a line at a time."""

    def __init__(self, directory: Path, script: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOIN + script, str(directory)],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=HANG)


STAY = "server.acquire(); tell(alive()); told()"


class Home:
    """A directory for a server, its users, and what it takes to be sure that all are gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.users: list[User] = []
        self.servers: list[EmbeddedServer] = []
        self.lifelines: list[socket.socket] = []
        self.pids: set[int] = set()

    def user(self, script: str = STAY) -> User:
        self.users.append(User(self.directory, script))
        return self.users[-1]

    def join(self) -> EmbeddedServer:
        self.servers.append(EmbeddedServer(self.directory))
        self.servers[-1].acquire()
        self.pids |= {self.pid(), self.guardian()}
        return self.servers[-1]

    def client(self) -> redis.Redis:
        path = EmbeddedServer(self.directory).socket
        return redis.Redis(unix_socket_path=str(path), decode_responses=True)

    def put(self, value: str) -> None:
        with self.client() as client:
            client.set("key", value)

    def get(self) -> str:
        with self.client() as client:
            return str(client.get("key") or "")

    def pid(self) -> int:
        pid = status(self.directory).pid
        assert pid is not None
        self.pids.add(pid)
        return pid

    def guardian(self) -> int:
        return int((self.directory / guardian.GUARDIAN_LOCK).read_text())

    def lifeline(self) -> socket.socket:
        """Connect to the server of now, to see later that this one has ended."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(HANG)
        connection.connect(str(EmbeddedServer(self.directory).socket))
        self.lifelines.append(connection)
        return connection

    def is_empty(self) -> bool:
        locks = guardian.GUARDIAN_LOCK, guardian.SERVER_LOCK
        return not any(guardian.is_locked(self.directory / lock) for lock in locks)

    def clean(self) -> None:
        for server in self.servers:
            server.release()
        for user in self.users:
            user.end()
        if self.directory.is_dir() and stat.S_IMODE(self.directory.stat().st_mode) == 0o700:
            stop(self.directory)
            eventually(self.is_empty)
        for lifeline in self.lifelines:
            assert has_ended(lifeline)
            lifeline.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def has_ended(lifeline: socket.socket) -> bool:
    """Wait for the server at the other end to be gone."""
    return lifeline.recv(1) == b""
