"""What every caller of one app shares: the brokers, the codec, and how ended tasks are heard of.

Tasks send through it and results read through it, so neither knows the app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from conveyor.broker import commands
from conveyor.broker.aio import AsyncBroker
from conveyor.broker.broker import PATIENCE, Broker
from conveyor.broker.commands import Command
from conveyor.broker.outcomes import Outcomes
from conveyor.broker.process import PerProcess
from conveyor.errors import SerializationError
from conveyor.plugins import Plugins
from conveyor.records import TaskRecord, decode_task, left_beside

if TYPE_CHECKING:
    from datetime import tzinfo

    from conveyor.broker.commands import Snapshot
    from conveyor.broker.connect import Server
    from conveyor.codec import Codec
    from conveyor.settings import Settings

log = logging.getLogger("conveyor.client")

T = TypeVar("T")

#: What is to be asked of the server, one command after the other, and what follows from the
#: answers: written once, and run by `Client.drive` or `Client.adrive`.
Steps: TypeAlias = Generator[Command[Any] | tuple[Any, ...], Any, T]


class Client:
    """The caller's side of one namespace on one server; safe across threads and forks.

    Args:
        server: Which server; nothing is opened before it is needed.
        namespace: Whose queues.
        codec: For arguments and results.
        settings: The app's defaults.
        timezone: In which naive datetimes are meant, or None to refuse them.

    Attributes:
        broker: Runs commands, sync.
        abroker: Runs commands, async.
        plugins: The app's.
    """

    def __init__(
        self,
        server: Server,
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
        self.broker = Broker(server, namespace)
        self.abroker = AsyncBroker(self.broker)
        self.plugins = Plugins()
        self._outcomes = PerProcess(lambda: Outcomes(self.broker), Outcomes.close)

    @property
    def outcomes(self) -> Outcomes:
        """Tells this process how tasks ended."""
        return self._outcomes.get()

    def decode(self, queue: str, task_id: str, found: Snapshot) -> TaskRecord:
        """Turns what the server has into a record; what cannot be read in it is `REDACTED`."""
        try:
            return decode_task(task_id, queue, found.record, found.extras, self.codec)
        except SerializationError as error:
            record = decode_task(
                task_id, queue, found.record, found.extras, self.codec, reveal=False
            )
            log.warning("task %r on queue %r is shown in part: %s", task_id, queue, error)
            return record

    def decode_claimed(self, queue: str, task_id: str, record: bytes) -> TaskRecord:
        """Turns what a worker has claimed into a record, with what earlier runs left beside it."""
        try:
            return decode_task(task_id, queue, record, left_beside(record), self.codec)
        except SerializationError as error:
            log.warning("task %r on queue %r has no history: %s", task_id, queue, error)
            return decode_task(task_id, queue, record, {}, self.codec)

    def task(self, queue: str, task_id: str) -> TaskRecord | None:
        """Reads a task."""
        (found,) = self.broker.run(commands.read(self.broker.keys(queue), [task_id]))
        return None if found is None else self.decode(queue, task_id, found)

    async def atask(self, queue: str, task_id: str) -> TaskRecord | None:
        """Reads a task."""
        (found,) = await self.abroker.run(commands.read(self.broker.keys(queue), [task_id]))
        return None if found is None else self.decode(queue, task_id, found)

    def drive(self, steps: Steps[T], *, patience: float = PATIENCE) -> T:
        """Asks the server what the steps say; returns what they return.

        Args:
            steps: What to ask.
            patience: Seconds for which an unreachable server is tried again, at each step.
        """
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Command):
                answer = self.broker.run(step, patience=patience)
            else:
                answer = self.broker.execute(step, patience=patience)

    async def adrive(self, steps: Steps[T]) -> T:
        """The async twin of `drive`."""
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Command):
                answer = await self.abroker.run(step)
            else:
                answer = await self.abroker.execute(step)

    def close(self) -> None:
        """Closes what this process opened, but for the clients of event loops; waits end."""
        outcomes = self._outcomes.take()
        try:
            if outcomes is not None:
                outcomes.close()
        finally:
            self.broker.close()

    async def aclose(self) -> None:
        """Closes the running event loop's client and all that `close` does."""
        await self.abroker.aclose()
        await asyncio.to_thread(self.close)
