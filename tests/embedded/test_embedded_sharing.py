"""The embedded server: shared by processes, threads and forks; started again after crashes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from embedded_home import HANG, STAY, Home, eventually, has_ended

from conveyor.broker import embedded, guardian
from conveyor.broker.embedded import EmbeddedServer, status, stop
from conveyor.errors import BrokerUnavailable


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


def test_who_takes_a_share_leaves_alone_what_another_thread_has_just_taken(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(home.directory)
    home.servers.append(server)
    look = EmbeddedServer._has_share
    others = [1]

    def meddle(*args: Any) -> bool:
        found = look(*args)
        if others:
            others.pop()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(server.acquire).result(HANG)
        return found

    monkeypatch.setattr(EmbeddedServer, "_has_share", meddle)
    server.acquire()
    home.pid()
    shares = list(server._shares)
    assert [share.is_on(share.file) for share in shares] == [True, True]
    server.release()
    assert not any(share.is_on(share.file) for share in shares)
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


def test_a_dead_server_is_named_no_more_once_the_next_has_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(guardian.SERVER_PID).write_text("1")
    named: list[bool] = []

    def lock(_descriptor: int, _how: int) -> None:
        named.append(Path(guardian.SERVER_PID).exists())

    monkeypatch.setattr(guardian.fcntl, "flock", lock)
    os.waitpid(guardian._start_server(shutil.which("true") or ""), 0)
    assert named == [False]


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
