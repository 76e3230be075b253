"""Listeners of servers that are several: queues on different nodes, slots that move, failovers."""

from __future__ import annotations

import queue
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from far import DEADLINE, call, far_app, replicate
from hearing import LIFE
from playing import end
from redis.crc import key_slot
from servers import Cluster, Sentinel, wait_until

from conveyor.broker.keys import QueueKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conveyor import Conveyor, Event


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=2) as cluster:
        yield cluster


class Follower:
    """A listener of some queues, in a loop on a thread of its own."""

    def __init__(self, app: Conveyor, *queues: str) -> None:
        self.listener = app.listener(*queues)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for event in self.listener:
            self._events.put(event)

    def story(self, app: Conveyor, name: str) -> list[tuple[str, str]]:
        """Runs a task there; what was heard, up to its end."""
        task_id = app.tasks["add"].options(queue=name).delay(1, 2).id
        end(app, "success", 3, queue=name)
        told: list[tuple[str, str]] = []
        while not told or told[-1][0] != "task_complete":
            event = self._events.get(timeout=DEADLINE)
            assert event.task is not None
            if event.task.id == task_id:
                told.append((event.type.value, event.queue))
        return told


def life(name: str) -> list[tuple[str, str]]:
    """What is heard of a task that succeeds."""
    return [(kind, name) for kind in LIFE]


def slot_of(app: Conveyor, name: str) -> int:
    return key_slot(QueueKeys(app.namespace, name).memory.encode())


def one_on_each_node(cluster: Cluster, app: Conveyor) -> tuple[str, str]:
    """Two queues that are not on the same node."""
    first = "q0"
    node = cluster.node_of_slot(slot_of(app, first))
    for number in count(1):
        if cluster.node_of_slot(slot_of(app, f"q{number}")) is not node:
            return first, f"q{number}"
    raise AssertionError


def test_two_queues_on_two_nodes(cluster: Cluster) -> None:
    with far_app(cluster.url, "two") as app:
        queues = one_on_each_node(cluster, app)
        follower = Follower(app, *queues)
        for name in queues * 2:
            assert follower.story(app, name) == life(name)
        for node in cluster.nodes:
            assert len(node.call("CLIENT", "LIST", "TYPE", "pubsub").splitlines()) == 1


def test_nobody_listens_on_any_node(cluster: Cluster) -> None:
    """A count inside a script would find no listener of another node, nor miss one of its own."""

    def published() -> int:
        stats = [node.call("INFO", "commandstats") for node in cluster.nodes]
        return sum(one.get("cmdstat_spublish", {"calls": 0})["calls"] for one in stats)

    with far_app(cluster.url, "nobody") as app:
        heard, other = one_on_each_node(cluster, app)
        follower = Follower(app, heard)
        before = published()
        app.tasks["add"].options(queue=other).delay(1, 2)
        end(app, "success", 3, queue=other)
        assert published() == before
        assert follower.story(app, heard) == life(heard)
        assert published() == before + 4


@pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])
def test_a_slot_that_moves_is_followed(cluster: Cluster, *, atomic: bool) -> None:
    with far_app(cluster.url, f"moving-{atomic}") as app:
        first, second = one_on_each_node(cluster, app)
        follower = Follower(app, first, second)
        assert follower.story(app, first) == life(first)
        target = cluster.node_of_slot(slot_of(app, second))
        cluster.migrate_slot(slot_of(app, first), target, atomic=atomic)
        wait_until(lambda: _heard_on(app, target, first), "followed", seconds=DEADLINE)
        for name in (first, second):
            assert follower.story(app, name) == life(name)


def _heard_on(app: Conveyor, node: Any, name: str) -> bool:
    channel = app.client.broker.keys(name).events
    return bool(node.call("PUBSUB", "SHARDNUMSUB", channel)[1]) and not node.call(
        "HEXISTS", app.client.broker.keys(name).memory, "unheard"
    )


def _kill(servers: Sentinel, app: Conveyor) -> None:
    servers.failover()


def _demote(servers: Sentinel, app: Conveyor) -> None:
    primary = servers.primary
    servers.sentinels[0].call("SENTINEL", "FAILOVER", "mymaster")
    wait_until(lambda: servers.primary is not primary, "another primary", seconds=DEADLINE)


@pytest.mark.parametrize("harm", [_kill, _demote])
def test_the_next_primary_is_heard(harm: Callable[[Sentinel, Conveyor], None]) -> None:
    with Sentinel() as servers, far_app(servers.url, "next") as app:
        follower = Follower(app, "default")
        assert follower.story(app, "default") == life("default")
        before = servers.primary
        call(app, "add", 1, 2).delay()
        replicate(before, app, "default")
        harm(servers, app)
        after = servers.primary
        wait_until(lambda: _heard_on(app, after, "default"), "heard again", seconds=DEADLINE)
        end(app, "success", 3)  # what was queued before
        assert follower.story(app, "default") == life("default")
