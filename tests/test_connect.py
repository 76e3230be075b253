"""Connections: every kind of URL and of client, and servers that fail or cannot be used."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from engine import Engine
from playing import SOON, claim, end, run, works
from servers import Cluster, Proxy, Sentinel, Server, binaries, free_port, wait_until
from sharing import PROMPT, add

from conveyor import Conveyor, Task
from conveyor.broker.connect import holds_reply
from conveyor.broker.target import safe_address
from conveyor.errors import BrokerUnavailable, ConfigurationError, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "s3cr3t/?#@word"
QUOTED = "s3cr3t%2F%3F%23%40word"
ADVICE = "Is it running, and is CONVEYOR_BROKER or broker= right?"


# URLs


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://db", "redis://db"),
        ("redis://db:6379/0", "redis://db:6379/0"),
        ("redis://:secret@db:6379/0", "redis://db:6379/0"),
        ("rediss://user:secret@db/1?ssl_cert_reqs=none", "rediss://db/1"),
        ("redis://db/0?password=secret", "redis://db/0"),
        ("redis://db?password=secret@x", "redis://***"),
        ("redis://:sec/ret@db:6379", "redis://***"),
        ("redis://:sec?ret@db:6379", "redis://***"),
        ("redis://:sec@ret@db:6379", "redis://db:6379"),
        ("redis://:x@sec/ret@db:6379", "redis://***"),
        ("unix://:secret@/run/valkey.sock?db=1", "unix:///run/valkey.sock"),
        ("redis+sentinel://u:secret@a:1,b:2/main/3", "redis+sentinel://a:1,b:2/main/3"),
        ("secret@db", "***"),
        ("db:6379", "db:6379"),
    ],
)
def test_an_address_has_no_secrets(url: str, address: str) -> None:
    assert safe_address(url) == address
    assert "sec" not in safe_address(url)


WRONG_URLS = [
    ("localhost:6379", "'localhost:6379' is not a URL: begin it with one of redis://, rediss://"),
    ("http://db", "'http://db' is not a URL: begin it with one of redis://"),
    ("", "'' is not a URL"),
    (f"amqp://:{QUOTED}@db", "'amqp://db' is not a URL"),
    (
        f"redis://:{SECRET}@db:6379/0",
        "cannot be read: give port and database as numbers, and percen",
    ),
    (
        f"redis://:{QUOTED}@db:http",
        "'redis://db:http' cannot be read: give port and database as numbers",
    ),
    (f"redis://:x@{QUOTED}/@db:6379", "'redis://***' cannot be read: give port and database as"),
    ("redis://db/first", "'redis://db/first' cannot be read"),
    ("redis://db?socket_timeout=soon", "cannot be read"),
    ("redis://db?passwort=x", "has an option 'passwort' that redis-py does not know: did you mean"),
    ("redis+cluster://db/3", "'redis+cluster://db/3' names a database: a cluster has only one"),
    ("redis+sentinel://a,b", "names no service: use redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"),
    ("redis+sentinel:///main", "names no service"),
    ("redis+sentinel://a:x/main", "cannot be read: give port and database as numbers"),
]


@pytest.mark.parametrize(("url", "text"), WRONG_URLS)
def test_a_wrong_url_is_refused_when_the_app_is_created(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conveyor("app", broker=url)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_so_is_one_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYOR_BROKER", "http://db")
    with pytest.raises(ConfigurationError, match="'http://db' is not a URL"):
        Conveyor("app")


def test_so_is_a_client_of_another_library() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conveyor("app", broker=object())  # type: ignore[arg-type]
    assert str(caught.value) == "broker is of type object: use a URL or a client of redis-py"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a password."""
    with Server(config={"requirepass": SECRET}) as server:
        yield server


def test_a_url_reaches_a_server(guarded: Server) -> None:
    urls = [
        guarded.url,
        guarded.url.replace("redis://", "valkey://"),
        guarded.unix_url,
        f"redis://127.0.0.1:{guarded.port}?db=1&password={QUOTED}",
        f"redis://default:{QUOTED}@127.0.0.1:{guarded.port}/1?protocol=3&decode_responses=yes",
    ]
    for number, url in enumerate(urls):
        with Conveyor(f"url-{number}", broker=url) as app:
            assert works(app, app.task(add))
            assert "s3cr3t" not in app.client.broker.server.address
    assert guarded_database_has_keys(guarded, 1)


def guarded_database_has_keys(server: Server, database: int) -> bool:
    return f"db{database}" in server.call("INFO", "keyspace")


def test_a_url_reaches_a_cluster() -> None:
    with Cluster(nodes=2) as cluster:
        shared: list[Any] = [
            redis.RedisCluster("127.0.0.1", cluster.nodes[0].port),
            redis.asyncio.RedisCluster("127.0.0.1", cluster.nodes[0].port),
        ]
        for number, broker in enumerate((cluster.url, *shared)):
            with Conveyor(f"cluster-{number}", broker=broker) as app:
                assert app.client.broker.server.clustered
                assert app.client.broker.server.address.startswith("redis+cluster://127.0.0.1:")
                assert works(app, app.task(add))
                results = app.map([app.task(add).options(queue=f"q{n}").call(n) for n in range(20)])
                assert [result.status for result in results] == ["queued"] * 20
        shared[0].close()
        asyncio.run(shared[1].aclose())
        _check_unavailable_cluster(cluster)


def _check_unavailable_cluster(cluster: Cluster) -> None:
    with Conveyor("cluster-gone", broker=cluster.url) as app:
        task = app.task(add)
        task.delay(1)
        for node in cluster.nodes:
            node.pause()
        check_unavailable(app, task, "redis+cluster://127.0.0.1:")


def test_a_url_reaches_the_primary_that_sentinels_name() -> None:
    with Sentinel() as sentinel:
        watching = [("127.0.0.1", one.port) for one in sentinel.sentinels]
        manager: Any = redis.sentinel.Sentinel(watching)  # type: ignore[no-untyped-call]
        with manager.master_for("mymaster") as shared:
            for number, broker in enumerate((sentinel.url, shared)):
                with Conveyor(f"sentinel-{number}", broker=broker) as app:
                    assert app.client.broker.server.address.startswith("redis+sentinel://127.0.0.1")
                    assert works(app, app.task(add))
        for one in manager.sentinels:
            one.close()
        with Conveyor("sentinel-gone", broker=sentinel.url) as app:
            task = app.task(add)
            task.delay(1)
            for server in (*sentinel.sentinels, *sentinel.servers):
                server.pause()
            check_unavailable(app, task, "redis+sentinel://127.0.0.1:")


# Clients to share


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
@pytest.mark.parametrize("place", ["url", "unix_url"])
def test_a_client_may_be_shared(guarded: Server, place: str, kind: Any, decode: bool) -> None:
    client = kind.from_url(getattr(guarded, place), decode_responses=decode)
    with Conveyor("shared", broker=client) as app:
        assert works(app, app.task(add))
        assert works(app, app.task(add))
        address = app.client.broker.server.address
    assert address in (f"redis://127.0.0.1:{guarded.port}", f"unix://{guarded.dir}/server.sock")
    if kind is redis.Redis:
        assert client.ping()
        client.close()
    else:
        asyncio.run(_ping_and_close(client))


if "redis" in binaries():

    def test_a_shared_client_may_speak_tls() -> None:
        with Server("redis", tls=True) as server:
            clients: list[Any] = [redis.Redis, redis.asyncio.Redis]
            shared = [kind.from_url(server.url) for kind in clients]
            for number, broker in enumerate((server.url, *shared)):
                with Conveyor(f"tls-{number}", broker=broker) as app:
                    assert app.client.broker.server.address.startswith("rediss://127.0.0.1:")
                    assert works(app, app.task(add))
            shared[0].close()


async def _ping_and_close(client: Any) -> None:
    assert await client.ping()
    await client.aclose()


# Servers that cannot be used


def attempts(app: Conveyor, task: Task[..., Any]) -> list[Callable[[], object]]:
    """A call by each kind of caller."""
    return [lambda: task.delay(1), lambda: run(app, task.adelay(1))]


def check_unavailable(app: Conveyor, task: Task[..., Any], address: str) -> None:
    """Both kinds of callers hear in time, in one line with all that is needed and no more."""
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(attempt) for attempt in attempts(app, task)]
        errors = [call.exception(SOON) for call in calls]
    assert time.monotonic() - began < PROMPT
    for error in errors:
        assert isinstance(error, BrokerUnavailable)
        text = str(error)
        assert text.startswith(f"cannot reach {address}")
        assert text.endswith(f". {ADVICE}")
        assert "\n" not in text
        assert "s3cr3t" not in text
        assert len(text) < 400


def test_servers_that_are_not_there(tmp_path: Path) -> None:
    def check(address: str) -> None:
        url = address.replace("://", f"://:{QUOTED}@")
        with Conveyor("nowhere", broker=url) as app:
            check_unavailable(app, app.task(add), f"{address}: ")

    host = f"127.0.0.1:{free_port()}"
    addresses = [
        f"redis://{host}", f"redis+cluster://{host}", f"redis+sentinel://{host},{host}/main",
        f"unix://{tmp_path}/none.sock", f"redis://no-such-host.invalid:{free_port()}",
    ]  # fmt: skip
    with ThreadPoolExecutor(len(addresses)) as pool:
        list(pool.map(check, addresses))


def test_a_server_that_hangs(guarded: Server) -> None:
    with (
        redis.Redis.from_url(guarded.url, socket_timeout=60) as client,
        Conveyor("hanging", broker=guarded.url) as app,
        Conveyor("hanging", broker=client) as sharing,
        ThreadPoolExecutor(2) as pool,
    ):
        for one in (app, sharing):
            one.task(add).delay(1)
        guarded.pause()
        try:
            address = f"redis://127.0.0.1:{guarded.port}"
            checks = [
                pool.submit(check_unavailable, one, one.task(add), address)
                for one in (app, sharing)
            ]
            for check in checks:
                check.result()
        finally:
            guarded.resume()


def test_a_wrong_password(guarded: Server) -> None:
    url = guarded.url.replace(QUOTED, "s3cr3t-but-wrong")
    with Conveyor("stranger", broker=url) as app:
        check_unavailable(app, app.task(add), f"redis://127.0.0.1:{guarded.port}/0: ")


def test_a_user_that_may_not(own_server: Server) -> None:
    own_server.call("ACL", "SETUSER", "reader", "on", ">s3cr3t", "~*", "+@read", "+info")
    with Conveyor("reader", broker=f"redis://reader:s3cr3t@127.0.0.1:{own_server.port}") as app:
        task = app.task(add)
        for attempt in attempts(app, task):
            with pytest.raises(BrokerUnavailable) as caught:
                attempt()
            assert str(caught.value).startswith(
                f"redis://127.0.0.1:{own_server.port} refused a command: "
            )
            assert "reader" in str(caught.value)
            assert "s3cr3t" not in str(caught.value)


def test_a_server_that_is_full(own_server: Server) -> None:
    with Conveyor("full", broker=own_server.url) as app:
        task = app.task(add)
        result = task.delay(1)
        own_server.call("CONFIG", "SET", "maxmemory", "1")
        for attempt in attempts(app, task):
            with pytest.raises(QueueFull) as caught:
                attempt()
            assert str(caught.value) == (
                f"redis://127.0.0.1:{own_server.port}/0 is out of memory and takes no new tasks:"
                " let workers drain it, or raise its maxmemory"
            )
        end(app, "success", 1)
        assert result.wait(SOON) == 1


def test_a_server_that_is_too_old(own_server: Server) -> None:
    for version, name in (("valkey_version:7.1.99", "Valkey"), ("redis_version:6.2.14", "Redis")):
        with pretending(own_server, version) as url, Conveyor("old", broker=url) as app:
            task = app.task(add)
            for attempt in attempts(app, task):
                with pytest.raises(BrokerUnavailable) as caught:
                    attempt()
                assert str(caught.value) == (
                    f"{url} is {name} {version.partition(':')[2]}, which is too old:"
                    " use Redis 7.0, Valkey 7.2 or newer"
                )


@contextmanager
def pretending(server: Server, version: str) -> Iterator[str]:
    """The URL of a relay that has a server say another version of itself; nothing else differs."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_connection("127.0.0.1", server.port)
        while request := await reader.read(65536):
            its_writer.write(request)
            reply = await its_reader.read(65536)
            if b"valkey_version:" in reply:
                lines = [one for one in reply.split(b"\r\n")[1:-1] if not lies(one)]
                text = b"\r\n".join([*lines, version.encode(), b""])
                reply = b"$%d\r\n%s\r\n" % (len(text), text)
            writer.write(reply)
        its_writer.close()
        writer.close()

    def lies(line: bytes) -> bool:
        name = line.partition(b":")[0].decode()
        return version.startswith(name) or (name == "valkey_version" and "redis" in version)

    async def serve() -> None:
        listener = await asyncio.start_server(relay, "127.0.0.1", port)
        ready.set()
        async with listener:
            await asyncio.to_thread(done.wait)

    port, ready, done = free_port(), threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(SOON)
        yield f"redis://127.0.0.1:{port}"
    finally:
        done.set()
        thread.join()


def test_a_short_outage_is_not_noticed(server: Server) -> None:
    with Proxy(server.port) as proxy, Conveyor("outage", broker=proxy.url) as app:
        task = app.task(add)
        task.delay(1)
        proxy.cut()
        assert task.delay(2).created
        proxy.refuse(True)
        proxy.cut()
        threading.Timer(0.3, proxy.refuse, [False]).start()
        assert task.delay(3).created
        assert Engine(app, stopped=False).counts() == {"queued": 3}


def test_an_embedded_server_that_is_killed_comes_back(tmp_path: Path) -> None:
    with Conveyor("revived", broker=f"embedded://{tmp_path}/own") as app:
        task = app.task(add)
        result = task.delay(1)
        client: Any = app.client.broker.server.client()
        # While the server syncs in the background it answers before it writes.
        wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0, "it is written")
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        assert task.delay(2).created
        assert result.status == "queued"
        assert claim(app)[1].id == result.id


def test_a_reply_that_was_read_with_another_is_noticed_and_not_decoded(server: Server) -> None:
    """As its owner would have it decoded: some versions of redis-py do when asked for more."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        connection = client.connection_pool.get_connection()
        connection.send_packed_command(connection.pack_commands([("ECHO", "a"), ("ECHO", "b")]))
        assert connection.read_response(disable_decoding=True) == b"a"
        wait_until(lambda: holds_reply(connection), "the other reply")
        assert connection.read_response(disable_decoding=True) == b"b"
        assert not holds_reply(connection)
        client.connection_pool.release(connection)
