"""Servers that sentinels watch."""

from __future__ import annotations

from contextlib import ExitStack

from .group import Group
from .programs import (
    AGREE_TIMEOUT,
    LOOPBACK,
    Binary,
    wait_until,
)
from .server import Server, in_sync

#: The primary's name among the sentinels.
SERVICE = "mymaster"


class Sentinel(Group):
    """A primary, its replica, and three sentinels that watch them as ``mymaster``.

    Attributes:
        servers: The two data servers; which one is the primary may change.
        sentinels: The three sentinels.

    Raises:
        TimeoutError: They did not find each other in time.
    """

    def __init__(self, *, binary: Binary = "valkey") -> None:
        with ExitStack() as stack:
            primary = stack.enter_context(Server(binary))
            following = {"replicaof": f"{LOOPBACK} {primary.port}"}
            replica = stack.enter_context(Server(binary, config=following))
            self.servers = (primary, replica)
            wait_until(lambda: in_sync(replica), "the replica in sync")
            watching = {
                f"sentinel monitor {SERVICE}": f"{LOOPBACK} {primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE}": "500",
                f"sentinel failover-timeout {SERVICE}": "5000",
            }
            self.sentinels = [
                stack.enter_context(Server(binary, mode="sentinel", config=watching))
                for _ in range(3)
            ]
            wait_until(self._acquainted, "sentinels acquainted", seconds=AGREE_TIMEOUT)
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """``redis+sentinel://`` with the three sentinels, then the service and database."""
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def primary(self) -> Server:
        """The server that the first living sentinel names."""
        port = _named_port(next(sentinel for sentinel in self.sentinels if sentinel.alive))
        return next(server for server in self.servers if server.port == port)

    def failover(self) -> Server:
        """Kill the primary, and return the replica once all sentinels name it."""
        dead = self.primary
        promoted = next(server for server in self.servers if server is not dead)
        dead.kill()
        wait_until(
            # In this order: up to its promotion a sentinel cuts the replica's connections.
            lambda: (
                all(_named_port(one) == promoted.port for one in self.sentinels if one.alive)
                and promoted.call("ROLE")[0] == "master"
            ),
            f"the replica on port {promoted.port} promoted",
            seconds=AGREE_TIMEOUT,
        )
        return promoted

    def _acquainted(self) -> bool:
        # Each must know the replica and both other sentinels, or a failover could find no majority.
        return all(
            len(sentinel.call("SENTINEL", "REPLICAS", SERVICE)) == 1
            and len(sentinel.call("SENTINEL", "SENTINELS", SERVICE)) == len(self.sentinels) - 1
            for sentinel in self.sentinels
        )


def _named_port(sentinel: Server) -> int:
    return int(sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
