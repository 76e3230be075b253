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
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.exceptions import ClusterError, NoScriptError, OutOfMemoryError
from redis.sentinel import MasterNotFoundError

from conveyor.broker.connect import TIMEOUT, TRANSIENT, Server
from conveyor.broker.keys import QueueKeys, known_queues
from conveyor.broker.shared import PoolExhausted
from conveyor.errors import BrokerUnavailable, QueueFull, SerializationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conveyor.broker.commands import Command
    from conveyor.errors import ConveyorError

T = TypeVar("T")

#: Seconds for which an unreachable server is tried again.
PATIENCE = 2.5
#: Seconds in which a call has all of its tries behind it.
LONGEST_CALL = PATIENCE + TIMEOUT
#: Seconds between two tries: the first, and the longest as they double.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25


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

    def run(self, command: Command[T], *, patience: float = PATIENCE) -> T:
        """Runs a command and returns its answer.

        Args:
            command: What to run.
            patience: Seconds for which an unreachable server is tried again.

        Raises:
            BrokerUnavailable: The server could not be reached in time, or refused the command.
            QueueFull: It is out of memory and refuses new work.
        """
        reply = self.execute(script_call(command), script_source(command), patience=patience)
        return command.parse(reply)

    def execute(
        self,
        call: tuple[Any, ...],
        fallback: tuple[Any, ...] | None = None,
        *,
        patience: float = PATIENCE,
    ) -> Any:
        """Runs one plain server command; `fallback` is sent where the script is not known."""
        deadline = time.monotonic() + patience
        pause = FIRST_PAUSE
        stale = False
        while True:
            try:
                if stale:
                    self.server.refresh()
                client: Any = self.server.client()
                return client.execute_command(*call, NEVER_DECODE=True)
            except NoScriptError as error:
                if fallback is None:
                    raise refused(self.server, error) from error
                call, fallback = fallback, None
                continue
            except TRANSIENT as error:
                if time.monotonic() >= deadline or isinstance(error, redis.AuthenticationError):
                    raise unavailable(self.server, error) from error
                stale = self.server.outdated(error)
            except redis.RedisError as error:
                raise refused(self.server, error) from error
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def announce(self, queue: str) -> None:
        """Makes the queue known to people, once a process."""
        mark = (os.getpid(), queue)
        if mark not in self._announced:
            self.execute(("SADD", known_queues(self.namespace), queue))
            self._announced.add(mark)

    def unannounce(self, queue: str) -> None:
        """Has the queue announced again when it is used next."""
        self._announced.discard((os.getpid(), queue))

    def queues(self) -> list[str]:
        """The queues that are known, by name."""
        return read_names(self.execute(("SMEMBERS", known_queues(self.namespace))))

    def close(self) -> None:
        """Closes what this process opened."""
        self.server.close()


def read_names(reply: Iterable[bytes]) -> list[str]:
    """The members of a set, sorted."""
    return sorted(name.decode() for name in reply)


def script_call(command: Command[Any]) -> tuple[Any, ...]:
    """The command by its script's hash."""
    return ("EVALSHA", command.script.sha, 2, *command.keys, *command.args)


def script_source(command: Command[Any]) -> tuple[Any, ...]:
    """The command with its script's whole text, which also makes the server know it."""
    return ("EVAL", command.script.source, 2, *command.keys, *command.args)


def refused(server: Server, error: redis.RedisError) -> ConveyorError:
    """The error for a command that the server refused, or that cannot be sent."""
    if isinstance(error, redis.DataError):
        return SerializationError(f"a value cannot be sent: {_cause(error)}")
    if isinstance(error, OutOfMemoryError):
        return QueueFull(
            f"{server.address} is out of memory and takes no new tasks:"
            " let workers drain it, or raise its maxmemory"
        )
    return BrokerUnavailable(
        f"{server.address} refused a command: {_cause(error)}."
        " Is it meant for Conveyor, and is its user allowed to do this?"
    )


def unavailable(server: Server, error: Exception) -> BrokerUnavailable:
    """The error for a server that cannot be reached: address, cause and next step in one line.

    One that says so already is returned as it is.
    """
    if isinstance(error, BrokerUnavailable):
        return error
    if isinstance(error, PoolExhausted):
        return BrokerUnavailable(
            f"the client shared for {server.address} has no connection to spare: {error}."
            " Raise its max_connections, or end what holds them"
        )
    return BrokerUnavailable(
        f"cannot reach {server.address}: {_cause(error)}."
        " Is it running, and is CONVEYOR_BROKER or broker= right?"
    )


def _cause(error: Exception) -> str:
    if type(error) is ClusterError:
        return "redirected too often, as while the slot is being moved to another node"
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, MasterNotFoundError | AsyncMasterNotFoundError):
        # What follows are the sentinels' connections with all their arguments.
        text, _, failures = text.partition(" : ")
        text += ", for not every sentinel answers" * bool(failures)
    return text
