"""Clients of redis-py that apps share: run it with `python examples/shared_client.py`.

A program that talks to Redis anyway has a client, with its own logins, limits and certificates. Its
app, worker and orchestrator use that client's connections, and leave it as it is.

    1 + 2 = 3
    meanwhile the client reads text: True
    the app is closed, the client open: True
    3 + 4 = 7, on an asyncio client
    the app is closed, the client open: True
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis
import redis.asyncio

from conveyor import Conveyor, Worker

if TYPE_CHECKING:
    from collections.abc import Generator


def add(x: int, y: int) -> int:
    return x + y


def share(client: redis.Redis) -> None:
    client.set("colour", "blue")
    with Conveyor("shared", broker=client) as app:
        task = app.task(add)
        worker = Worker(app, concurrency=1)
        worker.start()
        print(f"1 + 2 = {task.delay(1, 2).wait(timeout=30)}")
        print(f"meanwhile the client reads text: {client.get('colour') == 'blue'}")
        worker.shutdown()
    print(f"the app is closed, the client open: {client.exists('colour') == 1}")


async def share_async(client: redis.asyncio.Redis) -> None:
    async with Conveyor("shared", broker=client) as app:
        task = app.task(add)
        worker = Worker(app, concurrency=1)
        worker.start()
        print(f"3 + 4 = {await (await task.adelay(3, 4))}, on an asyncio client")
        worker.shutdown()
    print(f"the app is closed, the client open: {await client.exists('colour') == 1}")
    await client.aclose()


@contextmanager
def server() -> Generator[str]:
    """A server to talk to: the path of its socket. Usually there is one already."""
    conveyor = [sys.executable, "-m", "conveyor", "server"]
    with tempfile.TemporaryDirectory() as directory:
        place = ["--dir", f"{directory}/server", "--json"]
        started = subprocess.run([*conveyor, "start", *place], check=True, capture_output=True)
        yield json.loads(started.stdout)["socket"]
        subprocess.run([*conveyor, "stop", *place], check=True, capture_output=True)


if __name__ == "__main__":
    with server() as socket:
        with redis.Redis(unix_socket_path=socket, decode_responses=True) as client:
            share(client)
        asyncio.run(share_async(redis.asyncio.Redis(unix_socket_path=socket)))
