"""Connections: every kind of server and of client, servers that fail, threads, forks and loops."""

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
from playing import SOON, Player, claim, end, run
from servers import Cluster, Proxy, Sentinel, Server, free_port

from conveyor import Conveyor, Task
from conveyor.broker.target import safe_address
from conveyor.errors import BrokerUnavailable, ConfigurationError, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "s3cr3t/?#@word"
QUOTED = "s3cr3t%2F%3F%23%40word"
#: Seconds within which a caller whose server is down hears of it.
PROMPT = 5.0
ADVICE = "Is it running, and is CONVEYOR_BROKER or broker= right?"


def add(x: int, y: int = 0) -> int:
    return x + y


def works(app: Conveyor) -> bool:
    """Whether a call goes there and back, sync and async."""

    async def there_and_back() -> int:
        return await (await task.adelay(3, 4))

    task: Task[..., int] = app.tasks.get("test_connect.add") or app.task(add)  # type: ignore[assignment]
    with Player(app):
        return task.delay(1, 2).wait(SOON) == 3 and run(app, there_and_back()) == 7


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server to pause."""
    with Server() as server:
        yield server


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
    (f"redis://:{SECRET}@db:6379/0", "cannot be read: give the port as a number, and percent-enc"),
    (f"redis://:{QUOTED}@db:http", "'redis://db:http' cannot be read: give the port as a number"),
    ("redis://db?socket_timeout=soon", "cannot be read"),
    ("redis://db?passwort=x", "has an option 'passwort' that redis-py does not know: did you mean"),
    ("redis+cluster://db/3", "'redis+cluster://db/3' names a database: a cluster has only one"),
    ("redis+sentinel://a,b", "names no service: use redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"),
    ("redis+sentinel:///main", "names no service"),
    ("redis+sentinel://a:x/main", "cannot be read: give the port as a number"),
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
            assert works(app)
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
                assert works(app)
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
        manager = redis.sentinel.Sentinel([("127.0.0.1", one.port) for one in sentinel.sentinels])  # type: ignore[no-untyped-call]
        with manager.master_for("mymaster") as shared:
            for number, broker in enumerate((sentinel.url, shared)):
                with Conveyor(f"sentinel-{number}", broker=broker) as app:
                    assert app.client.broker.server.address.startswith("redis+sentinel://127.0.0.1")
                    assert works(app)
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
        assert works(app)
        assert works(app)
        address = app.client.broker.server.address
    assert address in (f"redis://127.0.0.1:{guarded.port}", f"unix://{guarded.dir}/server.sock")
    if kind is redis.Redis:
        assert client.ping()
        client.close()
    else:
        asyncio.run(_ping_and_close(client))


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


# Event loops


def test_async_calls_never_block_the_loop(own_server: Server) -> None:
    with Conveyor("beating", broker=own_server.url) as app:
        run(app, _beat_while_paused(app, own_server))


async def _beat_while_paused(app: Conveyor, server: Server) -> None:
    task = app.task(add)
    result = await task.adelay(1)
    ended = await task.adelay(2)
    await asyncio.to_thread(end, app, "success", 1)
    server.pause()
    calls = [
        asyncio.ensure_future(call)
        for call in (
            task.adelay(1), task.aschedule(1, after=60), task.amap([(1,)]), result.astatus(),
            result.atask(), ended.acancel(), app.amap([task.call(1)]), result._await_end(),
            task.call(1).adelay(), task.call(1).aschedule(after=60),
        )
    ]  # fmt: skip
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert not any(call.done() for call in calls)
    server.resume()
    await asyncio.wait_for(asyncio.gather(*calls), SOON)


def test_many_calls_at_once_use_few_connections(own_server: Server) -> None:
    async def use() -> None:
        results = await asyncio.gather(*(app.task(add).adelay(n) for n in range(2000)))
        assert len({result.id for result in results}) == 2000
        assert own_server.call("INFO", "clients")["connected_clients"] < 30

    with Conveyor("many", broker=own_server.url) as app:
        run(app, use())
        assert Engine(app, stopped=False).counts() == {"queued": 2000}


def test_of_many_calls_at_once_each_hears_in_time_of_a_hanging_server(own_server: Server) -> None:
    async def use() -> None:
        await app.task(add).adelay(0)
        own_server.pause()
        calls = (app.task(add).adelay(n) for n in range(500))
        began = time.monotonic()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 2 * PROMPT
        assert {type(error) for error in errors} == {BrokerUnavailable}

    with Conveyor("many-hanging", broker=own_server.url) as app:
        run(app, use())


def test_every_loop_has_its_own_connections(server: Server) -> None:
    with Conveyor("loops", broker=server.url) as app:
        task = app.task(add)
        for n in range(3):
            assert run(app, task.adelay(n)).created
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda n: run(app, task.adelay(n)), range(20)))
        assert all(result.created for result in results)


# Threads and forks


def test_sixteen_threads_share_an_app(server: Server) -> None:
    with Conveyor("threads", broker=server.url) as app, ThreadPoolExecutor(16) as pool, Player(app):
        assert list(pool.map(lambda n: each_reply_is_its_own(app, n), range(16))) == [True] * 16


def each_reply_is_its_own(app: Conveyor, number: int) -> bool:
    """Whether what comes back belongs to what was sent, for calls of all kinds."""
    task: Task[..., int] = app.tasks.get("test_connect.add") or app.task(add)  # type: ignore[assignment]
    for turn in range(5):
        mine = number * 1000 + turn
        result = task.options(id=f"{os.getpid()}-{mine}").delay(mine, 1)
        record = result.task()
        many = task.map([(mine, n) for n in range(3)])
        if record is None or record.args != (mine, 1) or result.wait(SOON) != mine + 1:
            return False
        if [one.wait(SOON) for one in many] != [mine, mine + 1, mine + 2]:
            return False
    return True


def in_children(count: int, work: Callable[[], bool]) -> list[int]:
    """The exit codes of forks that each do this: 0 for True."""
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 2
            try:
                code = 0 if work() else 1
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_app_used_before_a_fork_works_on_both_sides(server: Server) -> None:
    def child() -> bool:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda n: each_reply_is_its_own(app, n), range(4)))
        app.close()
        return all(done)

    with Conveyor("forks", broker=server.url) as app:
        assert works(app)
        waiting = app.task(add).options(queue="later").delay(1, 1)
        with ThreadPoolExecutor(17) as pool, Player(app):
            ours = [pool.submit(each_reply_is_its_own, app, n) for n in range(16)]
            theirs = pool.submit(waiting.wait, SOON)
            assert in_children(4, child) == [0] * 4
            assert all(done.result(SOON) for done in ours)
            end(app, "success", 2, queue="later")
            assert theirs.result(SOON) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_may_happen_while_others_connect(server: Server) -> None:
    """Whatever lock another thread holds in that moment, the child must not wait for it."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            with Conveyor(f"forked-{turn}", broker=server.url) as app:
                task = app.task(add)
                connecting = [pool.submit(task.delay, n) for n in range(8)]
                assert in_children(1, lambda: works_alone(app)) == [0]
                assert all(one.result(SOON).created for one in connecting)


def works_alone(app: Conveyor) -> bool:
    result = app.task(add).options(queue="child").delay(1, 2)
    end(app, "success", 3, queue="child")
    return result.wait(SOON) == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_event_loop_of_a_child_is_its_own(server: Server) -> None:
    def child() -> bool:
        async def use() -> bool:
            result = await app.task(add).adelay(1, 2)
            await asyncio.to_thread(end, app, "success", 3)
            return await result == 3

        return run(app, use())

    async def parent() -> None:
        result = await app.task(add).options(queue="parent").adelay(1, 2)
        waiting = asyncio.ensure_future(result._await_end())
        assert await asyncio.to_thread(in_children, 2, child) == [0, 0]
        await asyncio.to_thread(end, app, "success", 3, queue="parent")
        assert await waiting == 3

    with Conveyor("forked-loops", broker=server.url) as app:
        run(app, parent())


def test_an_embedded_server_that_is_killed_comes_back(tmp_path: Path) -> None:
    with Conveyor("revived", broker=f"embedded://{tmp_path}/own") as app:
        task = app.task(add)
        result = task.delay(1)
        client: Any = app.client.broker.server.client()
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        assert task.delay(2).created
        assert result.status == "queued"
        assert claim(app)[1].id == result.id
