"""What every caller of one app shares: the brokers, the codec, and how ended tasks are heard of.

Tasks send through it and results read through it, so neither knows the app.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from conveyor.broker import commands
from conveyor.broker.aio import AsyncBroker
from conveyor.broker.broker import Broker
from conveyor.broker.connect import Server
from conveyor.broker.outcomes import Outcomes
from conveyor.codec import Codec
from conveyor.records import TaskRecord, decode_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from conveyor.broker.commands import Snapshot
    from conveyor.settings import Settings


class Client:
    """The caller's side of one namespace on one server.

    Args:
        connect: Makes the server's address object when it is first needed.
        namespace: Whose queues.
        codec: For arguments and results.
        settings: The app's defaults.
        timezone: In which naive datetimes are meant, or None to refuse them.
    """

    def __init__(
        self,
        connect: Callable[[], Server],
        namespace: str,
        *,
        codec: Codec,
        settings: Settings,
        timezone: tzinfo | None,
    ) -> None:
        self.codec = codec
        self.settings = settings
        self.timezone = timezone
        self.namespace = namespace
        self._connect = connect
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._abroker: AsyncBroker | None = None
        self._outcomes: Outcomes | None = None
        self._pid = os.getpid()

    @property
    def broker(self) -> Broker:
        """Runs commands, sync."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = Broker(self._connect(), self.namespace)
        return self._broker

    @property
    def abroker(self) -> AsyncBroker:
        """Runs commands, async."""
        self._after_fork()
        if self._abroker is None:
            self._abroker = AsyncBroker(self.broker)
        return self._abroker

    @property
    def outcomes(self) -> Outcomes:
        """Tells this process how tasks ended."""
        self._after_fork()
        if self._outcomes is None:
            with self._lock:
                if self._outcomes is None:
                    self._outcomes = Outcomes(self.broker)
        return self._outcomes

    def decode(self, queue: str, task_id: str, found: Snapshot) -> TaskRecord:
        """Turns what the server has into a record."""
        return decode_task(task_id, queue, found.record, found.extras, self.codec)

    def task(self, queue: str, task_id: str) -> TaskRecord | None:
        """Reads a task."""
        (found,) = self.broker.run(commands.read(self.broker.keys(queue), [task_id]))
        return None if found is None else self.decode(queue, task_id, found)

    async def atask(self, queue: str, task_id: str) -> TaskRecord | None:
        """Reads a task."""
        (found,) = await self.abroker.run(commands.read(self.broker.keys(queue), [task_id]))
        return None if found is None else self.decode(queue, task_id, found)

    def close(self) -> None:
        """Closes what this process opened, but for the clients of event loops."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, None
            broker, self._broker = self._broker, None
        if outcomes is not None and self._pid == os.getpid():
            outcomes.close()
        if broker is not None:
            broker.close()

    async def aclose(self) -> None:
        """Closes the running event loop's client and all that `close` does."""
        if self._abroker is not None:
            await self._abroker.aclose()
        self.close()

    def _after_fork(self) -> None:
        """A child has none of its parent's threads and must not touch its sockets."""
        if self._pid != os.getpid():
            self._outcomes = self._abroker = None
            self._lock = threading.Lock()
            self._pid = os.getpid()
