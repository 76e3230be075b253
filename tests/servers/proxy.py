"""What stands between a client and a server and loses what it is told to lose."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from .programs import (
    LOOPBACK,
    SOCKET_TIMEOUT,
    bind_free,
    wait_until,
)

#: Bytes read at once by the proxy.
_CHUNK = 65536


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
        listener = bind_free()
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
