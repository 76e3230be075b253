"""Clients of redis-py that an app shares: whose connections are used, and how they are left."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
from playing import SOON, Player, works
from redis.backoff import ConstantBackoff
from redis.cache import CacheConfig
from redis.retry import Retry
from redis.sentinel import Sentinel as SentinelClient
from servers import LOOPBACK, Server, free_port, wait_until
from sharing import PATIENT, forks, held, ids, pool_size, refusal, relay, sharing, working

from conveyor import BrokerUnavailable, ConfigurationError, Conveyor
from conveyor.orchestrator import Orchestrator

# Sync clients


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("pool", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_calls_go_through_the_clients_own_connections(
    own_server: Server, pool: Any, decode: bool, protocol: int
) -> None:
    its = pool.from_url(own_server.url, decode_responses=decode, protocol=protocol)
    client = redis.Redis(connection_pool=its)
    client.set("name", "ü")
    before = ids(own_server)
    with sharing(client) as (app, task):
        result = task.delay(1, 2)
        assert result.status == "queued"
        assert [one.status for one in task.map([(n,) for n in range(3)])] == ["queued"] * 3
        assert app.queues() == ["default"]
        assert ids(own_server) == before
        assert client.get("name") == ("ü" if decode else "ü".encode())
        assert works(app, task)
    # What the async calls and the wait had is gone, and what the client's own pool has is not.
    wait_until(lambda: len(ids(own_server)) == pool_size(client), "only the client's connections")
    assert before <= ids(own_server)
    assert client.get("name") == ("ü" if decode else "ü".encode())
    its.disconnect()


def test_a_connection_is_given_back_as_it_was(own_server: Server) -> None:
    retry = Retry(ConstantBackoff(1), 7)
    client = redis.Redis.from_url(own_server.url, socket_timeout=9, retry=retry)
    with sharing(client) as (app, task):
        task.delay(1)  # connects
        (connection,) = client.connection_pool._available_connections
        for _ in range(2):
            assert connection.retry.get_retries() == 7
            assert connection.socket_timeout == connection._sock.gettimeout() == 9
            parser = connection._parser  # keeps a copy: hiredis' itself, Python's in its buffer
            assert getattr(parser, "_socket_timeout", None) or parser._buffer.socket_timeout == 9
            assert getattr(parser, "_socket_timeout", 9) == 9
            assert client.ping()
            task.delay(1)
        with pytest.raises(BrokerUnavailable, match="refused a command"):
            app.client.broker.execute(("HGET", app.client.broker.keys("default").ready("r")[5], ""))
        assert client.connection_pool._available_connections == [connection]
        assert connection._sock is not None
        assert connection.retry.get_retries() == 7
    client.close()


def test_connections_are_of_its_class_and_log_in_its_way(own_server: Server) -> None:
    class Marked(redis.Connection):
        """A connection that only its owner could have made."""

        made = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            Marked.made += 1
            super().__init__(*args, **kwargs)

    class Login(redis.CredentialProvider):
        asked = 0

        def get_credentials(self) -> tuple[str]:
            Login.asked += 1
            return ("s3cr3t",)

    own_server.call("CONFIG", "SET", "requirepass", "s3cr3t")
    pool = redis.ConnectionPool(
        Marked, host=LOOPBACK, port=own_server.port, credential_provider=Login()
    )
    with sharing(redis.Redis(connection_pool=pool)) as (app, task), Player(app):
        assert task.delay(1, 2).wait(SOON) == 3
    # That of the wait is like the client's, and none of its pool.
    assert Marked.made == Login.asked == pool._created_connections + 1
    own_server.config["requirepass"] = "s3cr3t"  # for the end of the test
    pool.disconnect()


def test_its_owner_uses_it_meanwhile(own_server: Server) -> None:
    its = redis.BlockingConnectionPool.from_url(
        own_server.url, decode_responses=True, max_connections=4
    )
    client = redis.Redis(connection_pool=its)
    with sharing(client) as (app, task), Player(app), ThreadPoolExecutor(8) as pool:

        def own(number: int) -> bool:
            name = f"own-{number}"
            for turn in range(100):
                client.set(name, turn)
                if client.get(name) != str(turn):
                    return False
            return True

        def ours(number: int) -> bool:
            results = [task.delay(number, turn) for turn in range(50)]
            return [one.wait(SOON) for one in results] == [number + n for n in range(50)]

        done = [pool.submit(one, n) for n in range(4) for one in (own, ours)]
        assert all(one.result(SOON) for one in done)
        assert pool_size(client) <= 4
    its.disconnect()


def test_a_call_that_is_interrupted_leaves_no_reply_behind(own_server: Server) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    client = redis.Redis.from_url(own_server.url, decode_responses=True, max_connections=1)
    client.set("mine", "mine")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with sharing(client) as (_, task):
            task.delay(1)
            own_server.pause()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                task.delay(2)
            own_server.resume()
            assert client.get("mine") == "mine"
            assert task.delay(3).created
    finally:
        signal.signal(signal.SIGALRM, before)
    client.close()


def test_nor_does_one_that_is_interrupted_before_it_reads(own_server: Server) -> None:
    class Interrupted(BaseException):
        pass

    class Interruptible(redis.Connection):
        interrupts = False

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            if self.interrupts:
                raise Interrupted
            return super().read_response(*args, **kwargs)

    pool: Any = redis.ConnectionPool(
        Interruptible, host=LOOPBACK, port=own_server.port, max_connections=1
    )
    client = redis.Redis(connection_pool=pool)
    client.set("mine", "mine")
    with sharing(client) as (_, task):
        task.delay(1)
        Interruptible.interrupts = True
        with pytest.raises(Interrupted):
            task.delay(2)
        Interruptible.interrupts = False
        (connection,) = pool._available_connections
        assert connection._sock is None
        assert client.get("mine") == b"mine"
        assert task.delay(3).created
    pool.disconnect()


def test_a_connection_with_a_reply_that_nobody_read_is_not_used(own_server: Server) -> None:
    client = redis.Redis.from_url(own_server.url)
    with sharing(client) as (_, task):
        task.delay(1)
        (connection,) = client.connection_pool._available_connections
        connection.send_command("PING")
        wait_until(connection.can_read, "the reply is there")
        assert task.delay(2).status == "queued"
    client.close()


def test_closing_the_app_leaves_the_client_open(own_server: Server) -> None:
    client = redis.Redis.from_url(own_server.url)
    with sharing(client) as (app, task):
        task.delay(1)
        before = ids(own_server)
        app.close()
        assert ids(own_server) == before
        assert task.delay(2).created  # and the app can go on
    client.close()


def test_a_client_may_be_closed_by_its_owner_at_any_time(own_server: Server) -> None:
    client = redis.Redis.from_url(own_server.url)
    with sharing(client) as (app, task), Player(app):
        for n in range(3):
            client.close()
            assert task.delay(n, 1).wait(SOON) == n + 1
    client.close()


@pytest.mark.parametrize("blocking", [False, True])
def test_a_pool_that_is_exhausted(own_server: Server, blocking: bool) -> None:
    pool: Any = redis.BlockingConnectionPool if blocking else redis.ConnectionPool
    patience = {"timeout": 60} if blocking else {}
    its = pool.from_url(own_server.url, max_connections=1, **patience)
    with sharing(redis.Redis(connection_pool=its)) as (_, task):
        held = its.get_connection()
        assert refusal(lambda: task.delay(1)) == (
            f"the client shared for redis://{LOOPBACK}:{own_server.port} has no connection to"
            " spare: all 1 connections are in use."
            " Raise its max_connections, or end what holds them"
        )
        threading.Timer(0.5, its.release, [held]).start()
        assert task.delay(1).created
    its.disconnect()


@pytest.mark.parametrize("blocking", [False, True])
def test_a_patient_client_of_a_server_that_hangs(own_server: Server, blocking: bool) -> None:
    pool: Any = redis.BlockingConnectionPool if blocking else redis.ConnectionPool
    retry = Retry(ConstantBackoff(5), 100)
    its = pool.from_url(own_server.url, retry=retry, **PATIENT)
    client = redis.Redis(connection_pool=its)
    with sharing(client) as (_, task):
        client.ping()
        own_server.pause()
        assert "Timeout" in refusal(lambda: task.delay(1))  # on a connection that there was
        assert "Timeout" in refusal(lambda: task.delay(1))  # on a new one
        own_server.resume()
        assert task.delay(2).created
        own_server.kill()
        assert "refused" in refusal(lambda: task.delay(3))
        own_server.restart()
        assert task.delay(4).created
    its.disconnect()


def test_a_patient_client_of_a_server_that_is_not_there() -> None:
    retry = Retry(ConstantBackoff(5), 100)
    client = redis.Redis(port=free_port(), retry=retry, **PATIENT)
    with sharing(client) as (_, task):
        assert "refused" in refusal(lambda: task.delay(1))
    client.close()


def test_a_client_that_cannot_be_shared_is_described(own_server: Server) -> None:
    """One that caches replies, and one that would encode what we send."""
    url = own_server.url
    clients = [
        redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig()),
        redis.Redis.from_url(url, encoding="utf-16"),
    ]
    for number, client in enumerate(clients):
        with sharing(client, f"described-{number}") as (app, task):
            assert works(app, task)
            assert task.options(id="ünïcode").delay(1).task() is not None
        assert not client.connection_pool._available_connections
        client.close()


def test_a_client_of_replicas_is_refused() -> None:
    replica = SentinelClient([(LOOPBACK, free_port())]).slave_for("main")
    with pytest.raises(ConfigurationError) as caught:
        Conveyor("replica", broker=replica)
    assert str(caught.value) == (
        "broker is a client of replicas of 'main', which take no tasks:"
        " use one of Sentinel.master_for()"
    )


# Processes


@forks
def test_a_fork_has_connections_of_its_own(own_server: Server) -> None:
    client = redis.Redis.from_url(own_server.url, decode_responses=True)
    with sharing(client) as (app, task):
        result = task.delay(1, 2)
        before = ids(own_server)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with Player(app, "child"):
                    fine = task.options(queue="child").delay(1, 2).wait(SOON) == 3
                pool = client.connection_pool
                code = 0 if fine and pool.pid != os.getpid() else 2
            finally:
                os._exit(code)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert result.status == "queued"
        assert before <= ids(own_server)
        assert client.connection_pool._created_connections == 1
    client.close()


@forks
@pytest.mark.parametrize(
    ("kind", "most"),
    [(redis.ConnectionPool, 3), (redis.BlockingConnectionPool, 3), (redis.ConnectionPool, 100)],
)
def test_a_worker_and_an_orchestrator_on_one_client(
    own_server: Server, kind: Any, most: int
) -> None:
    pool = kind.from_url(own_server.url, decode_responses=True, max_connections=most)
    client = redis.Redis(connection_pool=pool)
    with sharing(client) as (app, task), working(app):
        results = [task.delay(n, 1) for n in range(100)]
        assert [one.wait(SOON) for one in results] == list(range(1, 101))
        assert task.schedule(1, 2, after=0.1).wait(SOON) == 3
        # One that does not block for each of them, one that does if there are many, and a spare.
        wait_until(lambda: held(pool) == 4 if most == 100 else 1 <= held(pool) <= 2, "as many held")
        assert client.set("mine", "1")
        # A child has connections of its own.
        assert app.result(app.task(relay).delay().wait(SOON)).wait(SOON) == 3
        # A client that its owner closes is opened again.
        pool.disconnect()
        assert task.delay(1, 2).wait(SOON) == 3
        assert pool_size(client) <= most
    assert held(pool) == 0
    assert client.get("mine") == "1"
    pool.disconnect()
    wait_until(lambda: not ids(own_server), "no connection is left")


def test_what_is_being_connected_when_it_ends_is_given_back(own_server: Server) -> None:
    client = redis.Redis.from_url(own_server.url)
    with sharing(client) as (app, _):
        orchestrator = Orchestrator(app)
        orchestrator.start()
        wait_until(lambda: held(client.connection_pool) == 2, "it has begun")
        own_server.kill()
        with socket.create_server((LOOPBACK, own_server.port)) as mute:
            mute.settimeout(SOON)
            with mute.accept()[0]:
                orchestrator.stop()
        assert held(client.connection_pool) == 0
        own_server.restart()
        assert client.ping()
    client.close()
