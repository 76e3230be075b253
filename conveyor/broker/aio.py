"""Runs commands against the server, for async callers: the twin of `broker.py`.

Each event loop has a client of its own, made when it first runs a command and closed by `aclose`.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from conveyor.broker.broker import (
    PATIENCE,
    Broker,
    out_of_memory,
    queue_full,
    script_call,
    script_source,
    unavailable,
)
from conveyor.broker.connect import TRANSIENT, AsyncClient
from conveyor.broker.keys import known_queues

if TYPE_CHECKING:
    from conveyor.broker.commands import Command

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25


class AsyncBroker:
    """Runs commands for one namespace on one server, in any event loop.

    Args:
        broker: The sync twin, whose server and keys it shares.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = (
            weakref.WeakKeyDictionary()
        )
        self._announced: set[str] = set()

    async def run(self, command: Command[T]) -> T:
        """Runs a command and returns its answer; errors are those of `Broker.run`."""
        reply = await self.execute(script_call(command), script_source(command))
        return command.parse(reply)

    async def execute(self, call: tuple[Any, ...], fallback: tuple[Any, ...] | None = None) -> Any:
        """Runs one plain server command; `fallback` is sent where the script is not known."""
        server = self._broker.server
        deadline = time.monotonic() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                client = await self._client()
                return await client.execute_command(*call, NEVER_DECODE=True)
            except redis.exceptions.NoScriptError:
                if fallback is None:
                    raise
                call = fallback
                continue
            except TRANSIENT as error:
                if time.monotonic() >= deadline:
                    raise unavailable(server, error) from error
            except redis.RedisError as error:
                if not out_of_memory(error):
                    raise
                raise queue_full(server) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def announce(self, queue: str) -> None:
        """Makes the queue known to people, once."""
        if queue not in self._announced:
            await self.execute(("SADD", known_queues(self._broker.namespace), queue))
            self._announced.add(queue)

    async def aclose(self) -> None:
        """Closes the running event loop's client."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _client(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # Starting an embedded server and checking the version take a moment: not on the loop.
            await asyncio.to_thread(self._broker.server.client)
            client = self._clients.get(loop)
            if client is None:
                client = self._clients[loop] = self._broker.server.async_client()
        return client
