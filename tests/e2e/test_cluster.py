"""A cluster of real nodes: callers, a worker, and queues that move or lose their node in mid-run."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import redis
from core import CoreCalls
from far import DEADLINE, STALL, FarWorker, Rush, call, far_app, replicate
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.crc import key_slot
from servers import LOOPBACK, Cluster, wait_until

from conveyor import BrokerUnavailable
from conveyor.broker.keys import QueueKeys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servers import Server

    from conveyor import Conveyor

#: Seconds within which a caller must hear that its servers are down.
PROMISED = 5.0


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
        namespace = "core"
        with far_app(broker, namespace) as app:
            yield app
        if isinstance(broker, redis.RedisCluster):
            broker.close()


def test_three_queues_on_three_nodes(cluster: Cluster) -> None:
    queues = _queues_on_each(cluster, "three")
    with FarWorker(cluster.url, "three", queues):
        with far_app(cluster.url, "three") as app:
            calls = [
                app.tasks["add"].options(queue=queues[number % 3]).call(number, 1)
                for number in range(3000)
            ]
            results = app.map(calls)
            assert [result.wait(DEADLINE) for result in results] == list(range(1, 3001))
        for node in cluster.nodes:
            wait_until(lambda node=node: _connections(node) <= (2, 1), "two and one that blocks")


@pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])
def test_a_slot_moves_in_mid_run(cluster: Cluster, *, atomic: bool) -> None:
    namespace = f"moving-{atomic}"
    slot = _slot(namespace)
    targets = [node for node in cluster.nodes if node is not cluster.node_of_slot(slot)]
    with FarWorker(cluster.url, namespace, ["default"]):
        with Rush(cluster.url, namespace, ["default"]) as rush:
            for target in targets:
                cluster.migrate_slot(slot, target, atomic=atomic)
                _go_on(rush)
        rush.check()


def test_a_slot_moves_slowly(cluster: Cluster) -> None:
    """For longer than callers are patient and leases last, the slot is half on either node."""
    slot = _slot("slow")
    source = cluster.node_of_slot(slot)
    target = next(node for node in cluster.nodes if node is not source)
    with FarWorker(cluster.url, "slow", ["default"]), far_app(cluster.url, "slow") as app:
        results = app.map([call(app, "nap", 0.2)] * 20 + [call(app, "nap", 4 * STALL)])
        _begin_to_move(slot, source, target, keys=10)
        for _ in range(2):
            assert _refusal(app) == "redirected too often, as while the slot is being moved"
        cluster.migrate_slot(slot, target)
        assert call(app, "add", 1, 2).delay().wait(DEADLINE) == 3
        for result in results:
            assert result.wait(DEADLINE)
            record = result.task()
            assert record is not None
            assert (record.stall_retries, len(record.attempts)) == (0, 1)


def test_a_primary_dies_in_mid_run() -> None:
    """What is acknowledged before it is replicated may be lost: hence the pause, see below."""
    with (
        Cluster(replicas=1) as cluster,
        FarWorker(cluster.url, "dying", ["default"]),
        far_app(cluster.url, "dying") as app,
    ):
        slot = _slot("dying")
        long = call(app, "nap", 6 * STALL).delay()
        with Rush(cluster.url, "dying", ["default"]) as rush:
            # A cluster acknowledges before it replicates, so the last calls before a death may be
            # lost with the primary. Here the last ones have arrived when it is killed.
            with rush.pause():
                replicate(cluster.node_of_slot(slot), app, "default")
                cluster.node_of_slot(slot).kill()
            cluster.failover(slot)
            _go_on(rush)
        rush.check()
        assert long.wait(DEADLINE) == 6 * STALL
        record = long.task()
        assert record is not None
        assert (record.stall_retries, len(record.attempts)) == (0, 1)
