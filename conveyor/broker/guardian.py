"""The guardian: one small process that owns an embedded server and ends it after its last user.

Protocol. A server lives in one private directory; this process works inside it. Every file below is
created once and never removed by us, so a lock on it means the same to everyone:

    users.lock      shared: by every user; exclusive: by a guardian that is stopping its server
    guardian.lock   exclusive: by the guardian, from before it exists (its starter took the lock);
                    the pid in it is for people
    server.lock     exclusive: by the guardian for a moment, then by the server, which inherits it
    server.pid      written by the server; it means something only while server.lock is held
    keep            if it exists, the server outlives its users until it is told to stop

The kernel drops a lock when its last holder ends, however it ended. So a free ``users.lock`` is
"the last user is gone", and a free ``server.lock`` is "no server is alive here": only who holds it
may start one, and there are never two on one directory.

Failure story. A server that is killed is started again on the same data, a few times in a row at
most; one that stops with an error has said why in server.log, and one that was told to stop stays
down: then the guardian ends too, and the next user starts anew. A guardian that is killed leaves
its server serving; the next guardian ends that orphan cleanly before it starts its own.

The file is run as a script by a bare interpreter (about 10 ms and 10 MB), so it imports nothing of
Conveyor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

if sys.platform != "win32":  # where callers import this module and never use it
    import fcntl

    _SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

USERS_LOCK = "users.lock"
GUARDIAN_LOCK = "guardian.lock"
SERVER_LOCK = "server.lock"
SERVER_PID = "server.pid"
SERVER_SOCKET = "server.sock"
SERVER_LOG = "server.log"
KEEP = "keep"

#: Seconds a server has to end after SIGTERM before it is killed (its data is in the file by then).
STOP_GRACE = 5.0
#: A server that lived this many seconds was healthy: the count of its deaths begins again.
HEALTHY_AFTER = 10.0
#: Deaths in a row after which the guardian gives up.
MAX_DEATHS = 5
#: Seconds between two looks at something that ends within milliseconds.
POLL = 0.002

# Paths are relative to the directory: short enough for any socket, and a server whose directory was
# removed under it cannot unlink the socket of the next one.
_OPTIONS = [
    *("--port", "0", "--unixsocket", SERVER_SOCKET, "--unixsocketperm", "700"),
    *("--pidfile", SERVER_PID, "--daemonize", "no", "--loglevel", "warning"),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes"),
    *("--save", "", "--maxmemory-policy", "noeviction"),
]


def try_lock(path: str | os.PathLike[str], *, shared: bool = False) -> int | None:
    """Lock a file without waiting; return the descriptor that holds the lock, None if refused."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    """Drop a lock, also for a process that was forked meanwhile and shares the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Tell whether somebody holds the lock exclusively."""
    descriptor = try_lock(path, shared=True)
    if descriptor is None:
        return True
    unlock(descriptor)
    return False


def server_pid(directory: str | os.PathLike[str]) -> int | None:
    """Return the pid of the server alive in a directory; None: no server, or one just born."""
    if not is_locked(os.path.join(directory, SERVER_LOCK)):
        return None
    try:
        with open(os.path.join(directory, SERVER_PID), encoding="ascii") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def _open_lock(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def main() -> None:
    """Guard the server of the current directory: ``guardian.py LOCK_DESCRIPTOR SERVER_BINARY``."""
    guardian_lock, binary = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(guardian_lock, False)
    os.umask(0o077)
    _end_orphan()
    if os.fork():
        os._exit(0)  # the starter waits for this process; the guardian is no child of it
    os.ftruncate(guardian_lock, 0)
    os.pwrite(guardian_lock, b"%d\n" % os.getpid(), 0)
    for each in _SIGNALS:
        signal.signal(each, _note)  # one that is ignored would never reach sigwait
    signal.pthread_sigmask(signal.SIG_SETMASK, _SIGNALS)
    try:
        threading.Thread(target=_await_last_user, daemon=True).start()
        _guard(binary)
    finally:
        unlock(guardian_lock)  # exiting is not enough: our starter may have forked meanwhile


def _note(signum: int, frame: object) -> None:
    """Never called, since the signals are blocked: sigwait takes them."""


def _await_last_user() -> None:
    users = _open_lock(USERS_LOCK)
    fcntl.flock(users, fcntl.LOCK_EX)
    if os.path.exists(KEEP):
        os.close(users)
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # with the lock: newcomers wait until we are gone


def _guard(binary: str) -> None:
    deaths = 0
    while deaths < MAX_DEATHS:
        born = time.monotonic()
        pid = _start_server(binary)
        status = _await_death(pid)
        if status is None:
            _end(pid)
            return
        if not os.WIFSIGNALED(status):
            _say(f"the server ended by itself with exit code {os.WEXITSTATUS(status)}")
            return
        deaths = deaths + 1 if time.monotonic() - born < HEALTHY_AFTER else 1
        _say(f"the server was killed by signal {os.WTERMSIG(status)}; death {deaths} in a row")
        time.sleep(0.05 * 2**deaths)
    _say(f"giving up after {deaths} deaths in a row")


def _start_server(binary: str) -> int:
    if os.path.exists(SERVER_PID):
        os.unlink(SERVER_PID)  # before the lock, with which it would name a live server
    lock = _open_lock(SERVER_LOCK)
    fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a dead server's rewriting child to notice
    os.set_inheritable(lock, True)
    pid = os.posix_spawn(binary, [binary, *_OPTIONS], os.environ, setsigmask=())
    os.close(lock)
    return pid


def _await_death(pid: int) -> int | None:
    """Return the exit status of the server, or None when it is to be stopped."""
    while signal.sigwait(_SIGNALS) == signal.SIGCHLD:
        ended, status = os.waitpid(pid, os.WNOHANG)  # SIGCHLD also tells of a paused one
        if ended:
            return status
    return None


def _end_orphan() -> None:
    """End the server that a killed guardian has left here, if there is one."""
    while is_locked(SERVER_LOCK):
        pid = server_pid(".")
        if pid is not None:
            _end(pid)
        time.sleep(POLL)


def _end(pid: int) -> None:
    patience = time.monotonic() + STOP_GRACE
    _send(pid, signal.SIGTERM)
    while not _is_gone(pid):
        if time.monotonic() > patience:
            _send(pid, signal.SIGKILL)
        time.sleep(POLL)


def _is_gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not is_locked(SERVER_LOCK)  # an orphan, whose parent we are not


def _send(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signum)


def _say(text: str) -> None:
    print(f"{os.getpid()}:guardian {time.strftime('%d %b %Y %H:%M:%S')} # {text}", flush=True)


if __name__ == "__main__":
    main()
