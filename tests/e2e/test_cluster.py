"""A cluster of real nodes: callers, a worker, and queues that move or lose their node meanwhile."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import redis
from core import CoreCalls
from far import (
    DEADLINE,
    STALL,
    FarWorker,
    Rush,
    answers,
    arefusal,
    call,
    far_app,
    refusal,
    replicate,
    runs,
)
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.crc import key_slot
from servers import LOOPBACK, Cluster, wait_until

from conveyor import TaskStatus
from conveyor.broker.keys import QueueKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

    from conveyor import Conveyor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three primaries that the tests share; one that harms them starts its own."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with a worker for the apps of `TestCalls`."""
    with FarWorker(cluster.url, "core", ["default"]):
        yield cluster


class TestCalls(CoreCalls):
    """By a URL, and with each client of redis-py that can be shared."""

    @pytest.fixture(params=["url", "RedisCluster", "decoding RedisCluster", "async RedisCluster"])
    def app(self, request: pytest.FixtureRequest, served: Cluster) -> Iterator[Conveyor]:
        broker: Any = served.url
        port = served.nodes[0].port
        if "async" in request.param:
            broker = AsyncRedisCluster(host=LOOPBACK, port=port)
        elif "RedisCluster" in request.param:
            decode = "decoding" in request.param
            broker = redis.RedisCluster(host=LOOPBACK, port=port, decode_responses=decode)
        with far_app(broker, "core") as app:
            yield app
        if isinstance(broker, redis.RedisCluster):
            broker.close()
        elif isinstance(broker, AsyncRedisCluster):
            asyncio.run(broker.aclose())


def test_three_queues_on_three_nodes(cluster: Cluster) -> None:
    queues = _queues_on_each(cluster, "three")
    before = [_clients(node) for node in cluster.nodes]
    with FarWorker(cluster.url, "three", queues):
        with far_app(cluster.url, "three") as app:
            add = app.tasks["add"]
            results = app.map(
                [add.options(queue=queues[number % 3]).call(number, 1) for number in range(3000)]
            )
            assert [result.wait(DEADLINE) for result in results] == list(range(1, 3001))
        for node, others in zip(cluster.nodes, before, strict=True):
            wait_until(partial(_has_few_more, node, others), "two connections, one that blocks")


@pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])
def test_a_slot_moves_in_mid_run(cluster: Cluster, *, atomic: bool) -> None:
    namespace = f"moving-{atomic}"
    slot = _slot(namespace)
    targets = [node for node in cluster.nodes if node is not cluster.node_of_slot(slot)]
    with FarWorker(cluster.url, namespace, ["default"]):
        with Rush(cluster.url, namespace, long=1) as rush:
            for target in targets:
                cluster.migrate_slot(slot, target, atomic=atomic)
                rush.go_on()
        rush.check()


@pytest.mark.parametrize("kind", [redis.RedisCluster, AsyncRedisCluster])
def test_a_slot_moves_for_a_shared_client(cluster: Cluster, kind: Any) -> None:
    namespace = f"moving-{kind.__module__}"
    slot = _slot(namespace)
    target = next(node for node in cluster.nodes if node is not cluster.node_of_slot(slot))
    client = kind(LOOPBACK, cluster.nodes[0].port)
    with FarWorker(cluster.url, namespace, ["default"]):
        with Rush(client, namespace, long=1) as rush:
            cluster.migrate_slot(slot, target)
            rush.go_on()
        rush.check()
    if kind is AsyncRedisCluster:
        asyncio.run(client.aclose())
    else:
        client.close()


def test_a_slot_moves_slowly(cluster: Cluster) -> None:
    """It is half on either node for longer than callers are patient and leases last."""
    slot = _slot("slow")
    source = cluster.node_of_slot(slot)
    target = next(node for node in cluster.nodes if node is not source)
    with FarWorker(cluster.url, "slow", ["default"]), far_app(cluster.url, "slow") as app:
        long = call(app, "nap", 4 * STALL).delay()
        results = [long, *app.map([call(app, "nap", 0.1)] * 20)]
        wait_until(lambda: long.status is TaskStatus.PROCESSING, "it runs", seconds=DEADLINE)
        _begin_to_move(slot, source, target)
        assert "redirected too often" in refusal(app)
        assert "redirected too often" in arefusal(far_app(cluster.url, "slow"))
        cluster.migrate_slot(slot, target)
        results.append(call(app, "nap", 0.1).delay())
        for result in results:
            assert result.wait(DEADLINE)
        assert runs(long) == (1, 0)


def test_a_slot_that_nobody_had(cluster: Cluster) -> None:
    slot = _slot("homeless")
    node = cluster.node_of_slot(slot)
    with far_app(cluster.url, "homeless") as app:
        first = call(app, "add", 1, 2).delay()
        for one in cluster.nodes:
            one.call("CLUSTER", "DELSLOTS", slot)
        assert "slot" in refusal(app).lower()
        node.call("CLUSTER", "ADDSLOTS", slot)
        wait_until(lambda: _agree(cluster), "cluster_state:ok", seconds=DEADLINE)
        assert first.task() is not None


def test_a_primary_dies_in_mid_run() -> None:
    with Cluster(replicas=1) as cluster, FarWorker(_url(cluster), "dying", ["default"]):
        slot = _slot("dying")
        primary = cluster.node_of_slot(slot)
        with Rush(_url(cluster), "dying") as rush:
            # A primary answers before its replica has the call: the last calls may die with it.
            # So callers pause until all has arrived, and only those that meet a dead server raise.
            with rush.pause():
                replicate(primary, rush.app, "default")
                primary.kill()
            wait_until(
                lambda: cluster.node_of_slot(slot).alive, "a replica took over", seconds=DEADLINE
            )
            rush.go_on()
        rush.check()


def test_queues_on_other_nodes_go_on_while_one_hangs() -> None:
    """Connecting anew, which takes seconds then, holds up no lease, and no claim either."""
    with Cluster() as cluster:
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "cluster-node-timeout", 60_000)  # they hang unnoticed
        queues = _queues_on_each(cluster, "beside")
        with FarWorker(_url(cluster), "beside", queues), far_app(_url(cluster), "beside") as app:
            healthy, *others = queues
            nap = app.tasks["nap"].options(queue=healthy)
            long = nap.call(8 * STALL).delay()
            wait_until(lambda: long.status is TaskStatus.PROCESSING, "it runs", seconds=DEADLINE)
            for queue in others:
                cluster.node_of_slot(_slot("beside", queue)).pause()
            try:
                while long.status is TaskStatus.PROCESSING:
                    assert nap.call(0).delay().wait(DEADLINE) == 0
                assert runs(long) == (1, 0)
            finally:
                for node in cluster.nodes:
                    node.resume()


def test_a_primary_hangs_for_a_shared_client() -> None:
    with Cluster(replicas=1) as cluster, FarWorker(_url(cluster), "hanging", ["default"]):
        slot = _slot("hanging")
        primary = cluster.node_of_slot(slot)
        client: Any = redis.RedisCluster(LOOPBACK, cluster.nodes[0].port)
        with Rush(client, "hanging") as rush:
            with rush.pause():
                replicate(primary, rush.app, "default")
                primary.pause()
            other = next(node for node in cluster.nodes if node is not primary)
            wait_until(
                lambda: cluster._port_of(slot, other) != primary.port,
                "a replica took over",
                seconds=DEADLINE,
            )
            rush.go_on()
            rush.end_waits()
            primary.resume()
        rush.check()
        client.close()


def test_all_nodes_are_down() -> None:
    with (
        Cluster() as cluster,
        FarWorker(cluster.url, "down", ["default"]) as worker,
        far_app(cluster.url, "down") as app,
    ):
        assert call(app, "add", 1, 2).delay().wait(DEADLINE) == 3
        url = cluster.url
        for node in cluster.nodes:
            node.kill()
        assert "refused" in refusal(app)
        assert "refused" in arefusal(far_app(url, "down"))
        for node in cluster.nodes:
            node.restart()
        wait_until(lambda: answers(app), "the worker and its caller back", seconds=DEADLINE)
        assert "is back" in worker.output


def _queues_on_each(cluster: Cluster, namespace: str) -> list[str]:
    """Names of queues, one on each node."""
    found: dict[int, str] = {}
    for number in count():
        node = cluster.node_of_slot(_slot(namespace, f"q{number}"))
        found.setdefault(node.port, f"q{number}")
        if len(found) == len(cluster.nodes):
            return list(found.values())
    raise AssertionError


def _slot(namespace: str, queue: str = "default") -> int:
    return key_slot(QueueKeys(namespace, queue).memory.encode())


def _url(cluster: Cluster) -> str:
    """All nodes, so that a caller finds the others when the first is dead."""
    return "redis+cluster://" + ",".join(f"{LOOPBACK}:{node.port}" for node in cluster.nodes)


def _agree(cluster: Cluster) -> bool:
    return all("cluster_state:ok" in node.call("CLUSTER", "INFO") for node in cluster.nodes)


def _clients(node: Server) -> dict[str, bool]:
    """The ids of a node's clients, but for the one that asks, and whether each blocks."""
    listed = node.call("CLIENT", "LIST", "TYPE", "normal").splitlines()
    clients = [dict(field.split("=", 1) for field in line.split()) for line in listed]
    return {one["id"]: "b" in one["flags"] for one in clients if one["cmd"] != "client|list"}


def _has_few_more(node: Server, others: dict[str, bool]) -> bool:
    """Whether a worker of one queue there has as many connections as it may have."""
    new = [blocks for name, blocks in _clients(node).items() if name not in others]
    return new.count(True) == 1 and new.count(False) <= 2


def _begin_to_move(slot: int, source: Server, target: Server) -> None:
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.call("CLUSTER", "MYID"))
    with source.client() as client:
        keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10)
        client.execute_command("MIGRATE", LOOPBACK, target.port, "", 0, 5000, "KEYS", *keys)
