"""Runs commands against the server, for sync callers.

A command may be sent again after a lost reply, so connection errors are retried for `PATIENCE`
seconds: long enough for a stale connection or a short restart, short enough that a caller whose
server is down hears of it within 5 s. Then `BrokerUnavailable` says so: a call is never reported as
done when it may not be.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from conveyor.broker.connect import TRANSIENT, Server
from conveyor.broker.keys import QueueKeys, known_queues
from conveyor.errors import BrokerUnavailable, QueueFull

if TYPE_CHECKING:
    from conveyor.broker.commands import Command

T = TypeVar("T")

#: Seconds for which an unreachable server is tried again.
PATIENCE = 2.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25


class Broker:
    """Runs commands for one namespace on one server.

    Args:
        server: Where to.
        namespace: Whose queues.
    """

    def __init__(self, server: Server, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self._keys: dict[str, QueueKeys] = {}
        self._announced: set[tuple[int, str]] = set()

    def keys(self, queue: str) -> QueueKeys:
        """The keys of one of the namespace's queues."""
        keys = self._keys.get(queue)
        if keys is None:
            keys = self._keys[queue] = QueueKeys(self.namespace, queue)
        return keys

    def run(self, command: Command[T]) -> T:
        """Runs a command and returns its answer.

        Raises:
            BrokerUnavailable: The server could not be reached in time.
            QueueFull: It is out of memory and refuses new work.
        """
        return command.parse(self.execute(script_call(command), script_source(command)))

    def execute(self, call: tuple[Any, ...], fallback: tuple[Any, ...] | None = None) -> Any:
        """Runs one plain server command; `fallback` is sent where the script is not known."""
        deadline = time.monotonic() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                return self.server.client().execute_command(*call, NEVER_DECODE=True)
            except redis.exceptions.NoScriptError:
                if fallback is None:
                    raise
                call = fallback
                continue
            except TRANSIENT as error:
                if time.monotonic() >= deadline:
                    raise unavailable(self.server, error) from error
            except redis.RedisError as error:
                if not out_of_memory(error):
                    raise
                raise queue_full(self.server) from error
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def announce(self, queue: str) -> None:
        """Makes the queue known to people, once a process."""
        mark = (os.getpid(), queue)
        if mark not in self._announced:
            self.execute(("SADD", known_queues(self.namespace), queue))
            self._announced.add(mark)

    def queues(self) -> list[str]:
        """The queues that are known, by name."""
        return sorted(
            name.decode() for name in self.execute(("SMEMBERS", known_queues(self.namespace)))
        )

    def close(self) -> None:
        """Closes what this process opened."""
        self.server.close()


def script_call(command: Command[Any]) -> tuple[Any, ...]:
    """The command by its script's hash."""
    return ("EVALSHA", command.script.sha, 2, *command.keys, *command.args)


def script_source(command: Command[Any]) -> tuple[Any, ...]:
    """The command with its script's whole text, which also makes the server know it."""
    return ("EVAL", command.script.source, 2, *command.keys, *command.args)


def out_of_memory(error: redis.RedisError) -> bool:
    """Whether the server refused a script because it is full."""
    return "OOM" in str(error)[:40]


def queue_full(server: Server) -> QueueFull:
    """The error for a server that is out of memory."""
    return QueueFull(
        f"{server.address} is out of memory and takes no new tasks: let workers drain it or raise maxmemory"
    )


def unavailable(server: Server, error: Exception) -> BrokerUnavailable:
    """The error for a server that cannot be reached: address, cause and next step in one line."""
    cause = " ".join(str(error).split()) or type(error).__name__
    return BrokerUnavailable(
        f"cannot reach {server.address}: {cause}. Is it running, and is CONVEYOR_BROKER or broker= right?"
    )
