"""Clients of a cluster and of sentinels that an app and its worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from playing import SOON
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel as SentinelClient
from servers import LOOPBACK, SERVICE, Cluster, Sentinel, wait_until
from sharing import PATIENT, forks, held, ids, refusal, sharing, working

from conveyor import BrokerUnavailable

if TYPE_CHECKING:
    from conveyor import Task


def test_a_cluster_client_and_its_nodes() -> None:
    with Cluster(nodes=2) as cluster:
        client: Any = redis.RedisCluster(LOOPBACK, cluster.nodes[0].port, decode_responses=True)
        with sharing(client) as (app, task):
            before = [ids(node) for node in cluster.nodes]
            queues = [f"q{n}" for n in range(20)]
            results = app.map([task.options(queue=queue).call(1) for queue in queues])
            assert [one.status for one in results] == ["queued"] * 20
            for node, own in zip(client.get_primaries(), before, strict=True):
                pool = node.redis_connection.connection_pool
                assert pool._created_connections == 1
                assert len(own) <= 1
            assert sum(len(ids(node)) for node in cluster.nodes) == 2
            # A slot that moves is looked for where it went, and found there by its owner too.
            key = app.client.broker.keys("q0").memory
            slot = client.keyslot(key)
            target = next(n for n in cluster.nodes if n is not cluster.node_of_slot(slot))
            cluster.migrate_slot(slot, target)
            assert results[0].status == "queued"
            assert client.get_node_from_key(key).port == target.port
            assert client.set("mine", "1")
        client.close()


def test_a_patient_cluster_client_of_nodes_that_hang() -> None:
    retry = Retry(ConstantBackoff(5), 100)
    with Cluster(nodes=2) as cluster:
        client: Any = redis.RedisCluster(LOOPBACK, cluster.nodes[0].port, retry=retry, **PATIENT)
        with sharing(client) as (_, task):
            task.delay(1)
            for node in cluster.nodes:
                node.pause()
            assert "Timeout" in refusal(lambda: task.delay(1))
            for node in cluster.nodes:
                node.resume()
            wait_until(lambda: not refused(task), "answers again", seconds=SOON)
        client.close()


def refused(task: Task[..., int]) -> bool:
    try:
        task.delay(1)
    except BrokerUnavailable:
        return True
    return False


def test_a_sentinel_client_follows_its_primary() -> None:
    """Though the first sentinel is dead, and the client would try it for long."""
    with Sentinel() as servers:
        hosts = [(LOOPBACK, one.port) for one in servers.sentinels]
        patient = {"retry": Retry(ConstantBackoff(5), 100), **PATIENT}
        manager: Any = SentinelClient(hosts, sentinel_kwargs=patient)
        client = manager.master_for(SERVICE, **patient)
        with sharing(client) as (_, task):
            servers.sentinels[0].kill()
            assert task.delay(1).created
            assert client.connection_pool._created_connections == 1
            servers.failover()
            assert task.delay(2).created
            assert client.connection_pool._created_connections == 1
            for one in (*servers.sentinels[1:], *servers.servers):
                if one.alive:
                    one.kill()
            assert "No master found" in refusal(lambda: task.delay(3))
        client.close()
        for one in manager.sentinels:
            one.close()


@forks
def test_a_worker_on_a_sentinel_client() -> None:
    with Sentinel() as servers:
        hosts = [(LOOPBACK, one.port) for one in servers.sentinels]
        manager: Any = SentinelClient(hosts)
        client = manager.master_for(SERVICE, decode_responses=True)
        with sharing(client) as (app, task), working(app):
            assert task.delay(1, 2).wait(SOON) == 3
            wait_until(lambda: held(client.connection_pool) == 4, "as many held")
            servers.failover()
            assert task.delay(2, 2).wait(SOON) == 4
            assert client.set("mine", "1")
            wait_until(lambda: held(client.connection_pool) == 4, "as many held")
        client.close()
        for one in manager.sentinels:
            one.close()


@forks
def test_a_worker_on_a_cluster_client() -> None:
    with Cluster(nodes=2) as cluster:
        client: Any = redis.RedisCluster(LOOPBACK, cluster.nodes[0].port, decode_responses=True)
        with sharing(client) as (app, task), working(app):
            assert task.delay(1, 2).wait(SOON) == 3
            key = app.client.broker.keys("default").memory
            node = client.get_node_from_key(key)
            wait_until(lambda: held(node.redis_connection.connection_pool) == 4, "as many held")
            target = next(one for one in cluster.nodes if one.port != node.port)
            cluster.migrate_slot(client.keyslot(key), target)
            assert task.delay(2, 2).wait(SOON) == 4
            pool = client.get_node_from_key(key).redis_connection.connection_pool
            assert pool is not node.redis_connection.connection_pool
            # All but the orchestrator's link that has nothing to ask.
            wait_until(lambda: held(pool) >= 3, "as many held")
            assert client.set("mine", "1")
        client.close()
