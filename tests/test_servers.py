"""The test servers do what other tests rely on: start, die, come back, move, fail over, lose."""

# redis-py leaves the keyword arguments of its methods untyped.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import (
    LOOPBACK,
    Binary,
    Cluster,
    Proxy,
    Sentinel,
    Server,
    binaries,
    free_port,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

each_binary = pytest.mark.parametrize("binary", binaries())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@each_binary
def test_a_server_answers_by_tcp_and_by_unix_socket(binary: Binary) -> None:
    with Server(binary, config={"requirepass": "a:/b"}) as server:
        for url in (server.url, server.unix_url):
            with redis.Redis.from_url(url) as client:
                assert client.info("server")["process_id"] == server.pid


def test_a_stopped_server_leaves_nothing() -> None:
    with Server() as server:
        pass

    assert not server.alive
    assert not server.dir.exists()
    assert _is_refused(server.port)


@each_binary
@pytest.mark.parametrize(("appendonly", "kept"), [(True, "1"), (False, None)])
def test_a_killed_server_comes_back_with_what_it_kept(
    binary: Binary, appendonly: bool, kept: str | None
) -> None:
    with Server(binary, appendonly=appendonly, config={"appendfsync": "always"}) as server:
        before = server.port, server.pid
        server.call("SET", "a", 1)
        server.kill()
        assert _is_refused(server.port)
        server.restart()

        assert server.call("GET", "a") == kept
        assert server.port == before[0]
        assert server.pid != before[1]


def test_a_restart_of_a_running_server_is_clean(server: Server) -> None:
    server.call("CONFIG", "SET", "save", "3600 1")
    server.call("SET", "a", 1)
    server.restart()

    assert server.call("GET", "a") == "1"


def test_a_paused_server_is_silent_until_resumed(server: Server) -> None:
    with server.client(timeout=1) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()

        assert server.call("PING")


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-directive"):
        Server(config={"no-such-directive": "1"})


def test_a_port_that_is_taken_meanwhile_is_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = iter([server.port, 0, free_port(), 0])
    monkeypatch.setattr("servers.server.free_port", lambda: next(chosen))

    with Server() as second:
        assert second.port != server.port
        assert second.call("INFO", "server")["process_id"] == second.pid


def test_a_server_outlives_the_thread_that_started_it() -> None:
    started: list[Server] = []
    thread = threading.Thread(target=lambda: started.append(Server()))
    thread.start()
    thread.join()

    with started[0] as server:
        assert server.call("PING")


@pytest.mark.parametrize(
    "end",
    ["sys.exit()", *(["os.kill(os.getpid(), 9)"] if sys.platform == "linux" else [])],
)
def test_a_server_dies_with_its_test_process(end: str) -> None:
    script = (
        "import os, sys; from servers import Server; server = Server(); "
        f"print(server.port, server.dir, flush=True); server.call('PING'); {end}"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    port, directory = done.stdout.split()
    wait_until(lambda: _is_refused(int(port)), "the server gone")
    if done.returncode == 0:
        assert not Path(directory).exists()
    else:
        shutil.rmtree(directory)


def test_a_fork_of_the_test_process_stops_nothing(server: Server) -> None:
    child = os.fork()
    if child == 0:
        server.stop()
        os._exit(0)
    os.waitpid(child, 0)

    assert server.dir.exists()
    assert server.call("PING")


def test_redis_is_asked_for_only_where_it_is_or_must_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("servers.programs.REDIS_PATH", tmp_path / "redis-server")
    monkeypatch.delenv("CI", raising=False)
    assert binaries() == ("valkey",)

    monkeypatch.setenv("CI", "1")
    assert binaries() == ("valkey", "redis")
    with pytest.raises(RuntimeError, match="install the package redis-server"):
        Server("redis")


def test_the_valkey_wheel_has_no_tls() -> None:
    with pytest.raises(ValueError, match="built without TLS"):
        Server(tls=True)


if "redis" in binaries():

    def test_tls_is_for_the_address_and_not_for_another_name() -> None:
        with Server("redis", tls=True) as server:
            with redis.Redis.from_url(server.url) as client:
                assert client.ping()
            url = server.url.replace(LOOPBACK, "localhost")
            with (
                redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client,
                pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                client.ping()


def test_a_cluster_answers_for_every_slot(cluster: Cluster) -> None:
    assert len({cluster.node_of_slot(slot).port for slot in (0, 8000, 16383)}) == 3
    with cluster.client() as client:
        for number in range(100):
            client.set(f"key {number}", number)
        assert sum(node.call("DBSIZE") for node in cluster.nodes) == 100


@pytest.mark.parametrize("atomic", [False, True])
def test_a_slot_moves_with_its_keys(cluster: Cluster, atomic: bool) -> None:
    with cluster.client() as client:
        slot = client.keyslot("{moved}")
        for number in range(250):
            client.set(f"{{moved}}{number}", number)
        source = cluster.node_of_slot(slot)
        target = next(node for node in cluster.nodes if node is not source)
        cluster.migrate_slot(slot, target, atomic=atomic)

        assert cluster.node_of_slot(slot) is target
        assert source.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        assert target.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 250
        assert client.get("{moved}249") == b"249"


def test_a_cluster_without_replicas_refuses_to_lose_a_primary(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="replicas=1"):
        cluster.failover(0)
    assert cluster.node_of_slot(0).alive


@each_binary
def test_a_replica_takes_over_from_a_killed_primary(binary: Binary) -> None:
    with Cluster(replicas=1, binary=binary) as cluster:
        slot = cluster.nodes[0].call("CLUSTER", "KEYSLOT", "a")
        primary = cluster.node_of_slot(slot)
        with primary.client() as client:
            client.set("a", 1)
            assert client.wait(1, 5000) == 1
        promoted = cluster.failover(slot)

        assert promoted in cluster.nodes[3:]
        assert not primary.alive
        assert promoted.call("GET", "a") == "1"


@each_binary
def test_sentinels_promote_the_replica(binary: Binary) -> None:
    with Sentinel(binary=binary) as sentinel:
        primary = sentinel.primary
        with primary.client() as client:
            client.set("a", 1)
            assert client.wait(1, 5000) == 1
        promoted = sentinel.failover()

        assert sentinel.primary is promoted is not primary
        assert promoted.call("GET", "a") == "1"
        ports = ",".join(f"{LOOPBACK}:{one.port}" for one in sentinel.sentinels)
        assert sentinel.url == f"redis+sentinel://{ports}/mymaster/0"


def test_a_dropped_reply_is_of_a_request_that_was_run(server: Server, proxy: Proxy) -> None:
    with _through(proxy) as client:
        client.set("b", "a-counter")
        lost = proxy.drop_reply(b"a-counter")
        client.ping()
        assert not lost.is_set()
        with pytest.raises(redis.ConnectionError):
            client.incr("a-counter")

        assert lost.wait(5)
        assert server.call("GET", "a-counter") == "1"
        assert client.incr("a-counter") == 2


def test_a_dropped_reply_is_found_across_packets(server: Server, proxy: Proxy) -> None:
    lost = proxy.drop_reply(b"abc")
    with socket.create_connection((LOOPBACK, proxy.port), 5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        client.sendall(b"SET ab")
        wait_until(lambda: "qbuf=6 " in server.call("CLIENT", "LIST"), "half a request arrived")
        client.sendall(b"c 1\r\n")

        assert client.recv(100) == b""
    assert lost.wait(5)
    assert server.call("GET", "abc") == "1"


def test_a_cut_ends_connections_and_takes_new_ones(proxy: Proxy) -> None:
    # Not by redis-py, which would notice before its next command and connect again.
    for _ in range(2):
        with socket.create_connection((LOOPBACK, proxy.port), 5) as client:
            client.sendall(b"PING\r\n")
            assert client.recv(100) == b"+PONG\r\n"
            proxy.cut()
            assert client.recv(100) == b""


def test_a_refusing_proxy_keeps_what_is_connected(proxy: Proxy) -> None:
    with _through(proxy) as client:
        client.ping()
        proxy.refuse(True)
        assert _is_refused(proxy.port)
        assert client.ping()
        proxy.refuse(False)
        assert not _is_refused(proxy.port)


def test_a_blackhole_accepts_and_answers_nothing(server: Server, proxy: Proxy) -> None:
    with _through(proxy, timeout=1) as client:
        client.ping()
        proxy.blackhole(True)
        with pytest.raises(redis.TimeoutError):
            client.incr("a")
        assert not _is_refused(proxy.port)
        assert server.call("GET", "a") is None
        proxy.blackhole(False)
        assert client.ping()


def test_a_proxy_without_its_server_closes_connections(server: Server, proxy: Proxy) -> None:
    server.kill()
    with _through(proxy) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        assert client.ping()


def _through(proxy: Proxy, *, timeout: float = 5) -> redis.Redis:
    return redis.Redis.from_url(proxy.url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        # It went between taking the connection and looking at it.
        return False
    return False
