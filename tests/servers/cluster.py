"""A cluster of servers."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import combinations, pairwise
from typing import Literal

import redis

from .group import Group
from .programs import (
    AGREE_TIMEOUT,
    LOOPBACK,
    SOCKET_TIMEOUT,
    Binary,
    wait_until,
)
from .server import Server, execute, in_sync

#: Hash slots in a cluster.
SLOTS = 16384


class Cluster(Group):
    """A cluster of primaries that share the slots evenly, each with at most one replica.

    Args:
        nodes: How many primaries.
        replicas: Replicas of each; 1 is what ``failover`` needs.
        binary: As for ``Server``.

    Attributes:
        nodes: The servers: first the primaries, then the replicas in the same order.

    Raises:
        TimeoutError: The nodes did not agree in time.
    """

    def __init__(
        self, *, nodes: int = 3, replicas: Literal[0, 1] = 0, binary: Binary = "valkey"
    ) -> None:
        self.replicas = replicas
        with ExitStack() as stack:
            self.nodes = [
                stack.enter_context(Server(binary, mode="cluster"))
                for _ in range(nodes * (1 + replicas))
            ]
            self._form(self.nodes[:nodes], self.nodes[nodes:])
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """``redis+cluster://127.0.0.1:PORT`` of the first living node."""
        return f"redis+cluster://{LOOPBACK}:{self._alive()[0].port}"

    def client(self) -> redis.RedisCluster:
        """A new client; it follows redirections, and waits 5 s at most for a reply."""
        return redis.RedisCluster(
            host=LOOPBACK,
            port=self._alive()[0].port,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
        )

    def node_of_slot(self, slot: int) -> Server:
        """The primary that owns ``slot``, as the first living node sees it."""
        port = self._port_of(slot, self._alive()[0])
        return next(node for node in self.nodes if node.port == port)

    def migrate_slot(self, slot: int, target: Server, *, atomic: bool = False) -> None:
        """Move ``slot`` with its keys to the primary ``target`` while clients go on.

        Args:
            slot: 0 to 16383.
            target: One of ``nodes``.
            atomic: By ``CLUSTER MIGRATESLOTS`` (Valkey 9) instead of key by key.

        Raises:
            TimeoutError: It did not succeed, or not all nodes learnt of it.
        """
        source = self.node_of_slot(slot)
        if source is target:
            return
        (_migrate_atomically if atomic else self._migrate_keys)(slot, source, target)
        self._wait_for_owner(slot, target)

    def failover(self, slot: int) -> Server:
        """Kill the primary that owns ``slot``, and return the replica that took over.

        Raises:
            ValueError: The cluster was made without replicas.
            TimeoutError: No replica took over.
        """
        if not self.replicas:
            raise ValueError("no replica can take over: create the Cluster with replicas=1")
        dead = self.node_of_slot(slot)
        dead.kill()
        wait_until(
            lambda: self.node_of_slot(slot).alive,
            f"slot {slot} taken over by a replica",
            seconds=AGREE_TIMEOUT,
        )
        promoted = self.node_of_slot(slot)
        self._wait_for_owner(slot, promoted)
        return promoted

    def _alive(self) -> list[Server]:
        return [node for node in self.nodes if node.alive]

    def _form(self, primaries: list[Server], replicas: list[Server]) -> None:
        bounds = [SLOTS * number // len(primaries) for number in range(len(primaries) + 1)]
        for node, (first, end) in zip(primaries, pairwise(bounds), strict=True):
            node.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for epoch, node in enumerate(self.nodes, 1):
            # Equal epochs would have to be told apart by the nodes, in their own time.
            node.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node, other in combinations(self.nodes, 2):
            node.call("CLUSTER", "MEET", LOOPBACK, other.port, other.bus_port)
        wait_until(self._all_met, "all nodes known to all", seconds=AGREE_TIMEOUT)
        for primary, replica in zip(primaries, replicas, strict=False):
            replica.call("CLUSTER", "REPLICATE", primary.call("CLUSTER", "MYID"))
        wait_until(self._settled, "cluster_state:ok on all nodes", seconds=AGREE_TIMEOUT)

    def _all_met(self) -> bool:
        views: list[str] = [node.call("CLUSTER", "NODES") for node in self.nodes]
        return all(
            len(view.splitlines()) == len(self.nodes) and "handshake" not in view for view in views
        )

    def _settled(self) -> bool:
        return all(
            "cluster_state:ok" in node.call("CLUSTER", "INFO") and in_sync(node)
            for node in self._alive()
        )

    def _port_of(self, slot: int, viewer: Server) -> int:
        for first, last, (_, port, *_), *_ in viewer.call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(port)
        raise LookupError(f"slot {slot} has no owner: slots are 0 to {SLOTS - 1}")

    def _wait_for_owner(self, slot: int, owner: Server) -> None:
        wait_until(
            lambda: all(self._port_of(slot, node) == owner.port for node in self._alive()),
            f"slot {slot} on port {owner.port} for all nodes",
            seconds=AGREE_TIMEOUT,
        )
        wait_until(self._settled, "cluster_state:ok again", seconds=AGREE_TIMEOUT)

    def _migrate_keys(self, slot: int, source: Server, target: Server) -> None:
        source_id, target_id = (node.call("CLUSTER", "MYID") for node in (source, target))
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        with source.client() as client:
            while keys := execute(client, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                execute(client, "MIGRATE", LOOPBACK, target.port, "", 0, 5000, "KEYS", *keys)
        # The target first: were the source told before, both would disown the slot for a moment.
        for node in sorted(self._alive(), key=lambda node: node is not target):
            if node.call("ROLE")[0] == "master":
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def _migrate_atomically(slot: int, source: Server, target: Server) -> None:
    target_id = target.call("CLUSTER", "MYID")
    source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id)
