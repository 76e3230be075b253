"""Asyncio clients of redis-py that an app shares: in their event loop, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from playing import Player, run
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from sharing import PATIENT, add, arefusal, ids, pool_size, sharing

from conveyor import Conveyor

if TYPE_CHECKING:
    from servers import Server


def async_client(url: str, **options: Any) -> Any:
    return redis.asyncio.Redis.from_url(url, **options)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    "pool", [redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool]
)
def test_async_calls_go_through_the_clients_own_connections(
    own_server: Server, pool: Any, decode: bool, protocol: int
) -> None:
    async def main() -> None:
        client = redis.asyncio.Redis(
            connection_pool=pool.from_url(
                own_server.url, decode_responses=decode, protocol=protocol, max_connections=3
            )
        )
        await client.set("name", "ü")
        async with Conveyor("shared", broker=client) as app:
            task = app.task(add)
            result = await task.adelay(1, 2)
            assert await result.astatus() == "queued"
            assert len(ids(own_server)) == 1
            many = await asyncio.gather(*(task.adelay(n) for n in range(100)))
            assert len({one.id for one in many}) == 100
            assert len(ids(own_server)) == pool_size(client) <= 3
            assert await client.get("name") == ("ü" if decode else "ü".encode())
            with Player(app):
                assert await result == 3
        assert await client.get("name") == ("ü" if decode else "ü".encode())
        await client.aclose()
        await client.connection_pool.disconnect()

    asyncio.run(main())
    assert not ids(own_server)


def test_an_asyncio_client_stays_on_its_loop(own_server: Server) -> None:
    """Other loops, and sync calls, have connections of their own."""

    async def main() -> None:
        client = async_client(own_server.url)
        await client.ping()
        with sharing(client) as (app, task):
            await task.adelay(1)
            assert len(client.connection_pool._available_connections) == 1
            assert await asyncio.to_thread(lambda: run(app, task.adelay(2))) is not None
            assert (await asyncio.to_thread(task.delay, 3)).created
            assert await client.ping()
            assert len(client.connection_pool._available_connections) == 1
            await app.aclose()
            assert await client.ping()
        await client.aclose()

    asyncio.run(main())


def test_an_asyncio_client_serves_one_loop_after_another(own_server: Server) -> None:
    client = async_client(own_server.url)
    with sharing(client) as (app, task):
        for n in range(3):
            assert run(app, task.adelay(n)).created
            assert len(client.connection_pool._available_connections) == 1
    asyncio.run(client.aclose())


def test_a_patient_asyncio_client_of_a_server_that_hangs(own_server: Server) -> None:
    async def main() -> None:
        retry = AsyncRetry(ConstantBackoff(5), 100)
        client = async_client(own_server.url, retry=retry, **PATIENT)
        async with Conveyor("shared", broker=client) as app:
            task = app.task(add)
            await task.adelay(1)
            own_server.pause()
            assert "Timeout" in await arefusal(task)
            own_server.kill()
            assert "Connect call failed" in await arefusal(task)
            own_server.restart()
            assert (await task.adelay(2)).created
            (connection,) = client.connection_pool._available_connections
            assert connection.retry.get_retries() == 100
            assert connection.socket_timeout == 60
        await client.aclose()

    asyncio.run(main())


def test_an_asyncio_pool_that_is_exhausted(own_server: Server) -> None:
    async def main() -> None:
        client = async_client(own_server.url, max_connections=1)
        async with Conveyor("shared", broker=client) as app:
            task = app.task(add)
            held = await client.connection_pool.get_connection()
            assert "has no connection to spare: all 1 connections are in use" in await arefusal(
                task
            )
            await client.connection_pool.release(held)
            assert (await task.adelay(1)).created
        await client.aclose()

    asyncio.run(main())


def test_an_async_call_that_is_cancelled_leaves_no_reply_behind(own_server: Server) -> None:
    async def main() -> None:
        client = async_client(own_server.url, decode_responses=True, max_connections=1)
        await client.set("mine", "mine")
        async with Conveyor("shared", broker=client) as app:
            task = app.task(add)
            await task.adelay(1)
            own_server.pause()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task.adelay(2), 0.2)
            own_server.resume()
            assert await client.get("mine") == "mine"
            assert (await task.adelay(3)).created
        await client.aclose()

    asyncio.run(main())
