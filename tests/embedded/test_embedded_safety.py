"""The embedded server: nobody else gets in, and paths of any length will do."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING

import pytest
from embedded_home import HANG, Home, eventually

from conveyor.broker import embedded, guardian
from conveyor.broker.embedded import EmbeddedServer, start, status, stop
from conveyor.errors import BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
