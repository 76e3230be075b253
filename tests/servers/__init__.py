"""Real servers for tests: each a process with a loopback port and a directory of its own.

``Server`` is one Valkey or Redis; ``Cluster`` and ``Sentinel`` are made of several. ``Proxy``
stands between a client and a server and loses what it is told to lose. Each is up once it is
created, and gone at the end of its ``with`` block:

    with Server(appendonly=True) as server, server.client() as client:
        client.set("a", 1)
        server.kill()
        server.restart()

Failure story. A server that does not come up raises with the end of its log. One that a test
forgets is ended at exit, and when the test process is killed, by the kernel (PR_SET_PDEATHSIG; on
Linux only). Nothing is ever signalled but a process started here. After a SIGKILL of the test
process the temporary directories (``conveyor-test-*``) stay; nothing else does.
"""

from __future__ import annotations

from .cluster import Cluster
from .programs import LOOPBACK, Binary, binaries, free_port, freeze, wait_until
from .proxy import Proxy
from .sentinel import SERVICE, Sentinel
from .server import Server

__all__ = [
    "LOOPBACK", "SERVICE", "Binary", "Cluster", "Proxy", "Sentinel", "Server", "binaries",
    "free_port", "freeze", "wait_until",
]  # fmt: skip
