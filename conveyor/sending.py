"""Packed calls on their way: one at once, or many in bounded batches, each atomic.

A batch is one script call, under ids fixed beforehand, so that sending it again after a lost reply
adds nothing. What has the same id already is compared: it is ours, or a conflict. A conflict among
many stops them after its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, BATCH_BYTES, NewTask
from conveyor.enqueue_hooks import (
    aafter_enqueue,
    abefore_enqueue,
    after_enqueue,
    before_enqueue,
)
from conveyor.errors import ConfigurationError, ConveyorError, IdConflict, PartialEnqueue
from conveyor.records import payload_of
from conveyor.result import TaskResult

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from conveyor.broker.commands import Command
    from conveyor.client import Client
    from conveyor.task import Call

log = logging.getLogger("conveyor.client")

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class Sending(NamedTuple):
    """A packed call on its way; `again` once plugins were told of it and it may have been sent."""

    queue: str
    task: NewTask
    on_existing: str
    again: bool = False


def send_all(client: Client, calls: list[Call[R]]) -> list[TaskResult[R]]:
    """Sends calls in batches; see `Task.map`."""
    sendings = [_pack(client, call) for call in calls]
    many = _Many(client, calls, before_enqueue(client, sendings))
    for batch in _batches(many.sendings):
        with many.explained():
            many.take(batch, _send_batch(client, batch))
    return many.results


async def asend_all(client: Client, calls: list[Call[R]]) -> list[TaskResult[R]]:
    """The async twin of `send_all`."""
    sendings = await in_turns(partial(_pack, client), calls)
    many = _Many(client, calls, await abefore_enqueue(client, sendings))
    for batch in _batches(many.sendings):
        with many.explained():
            many.take(batch, await _asend_batch(client, batch))
    return many.results


@dataclass(slots=True)
class _Many(Generic[R]):
    """Calls on their way, and what has become of those that the server has answered.

    Attributes:
        client: Whose.
        calls: All of them.
        sendings: The same, packed.
        results: Handles of the tasks that are there, in order.
        conflicts: Which of the calls have ids of other tasks.
        answered: How many calls the server has answered.
    """

    client: Client
    calls: list[Call[R]]
    sendings: list[Sending]
    results: list[TaskResult[R]] = field(default_factory=list["TaskResult[R]"])
    conflicts: list[int] = field(default_factory=list[int])
    answered: int = 0

    def take(self, batch: list[Sending], replies: list[bytes | None]) -> None:
        """Takes the answers to a batch.

        Raises:
            IdConflict: The first of them, once all are taken.
        """
        conflict: IdConflict | None = None
        for sending, reply in zip(batch, replies, strict=True):
            try:
                self.results.append(_result(self.client, sending, reply))
            except IdConflict as error:
                conflict = conflict or error
                self.conflicts.append(self.answered)
            self.answered += 1
        if conflict is not None:
            raise conflict

    @contextlib.contextmanager
    def explained(self) -> Generator[None]:
        """Makes of an error that stops it one that knows what was sent and what was not."""
        try:
            yield
        except ConveyorError as error:
            raise self._partial(error) from error

    def _partial(self, error: ConveyorError) -> PartialEnqueue:
        left = [*self.conflicts, *range(self.answered, len(self.calls))]
        pending = [
            replace(
                self.calls[number],
                id=self.sendings[number].task.id,
                sending=self.sendings[number]._replace(again=True),
            )
            for number in left
        ]
        rest, without = "error.pending", ""
        if count := len(self.conflicts):
            rest += f"[{count}:]"
            without = f" without {'it' if count == 1 else f'the {count} that conflict'}"
        return PartialEnqueue(
            f"{len(self.results):,} of {len(self.calls):,} tasks were sent, then: {error};"
            f" app.map({rest}) sends the rest{without}, none of them twice",
            self.results,
            pending,
        )


async def in_turns(change: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Changes each item; however many there are, the event loop has its turn in between."""
    changed: list[T] = []
    for item in [*items]:  # as they are now, whatever is done to them meanwhile
        changed.append(change(item))
        if len(changed) % BATCH == 0:
            await asyncio.sleep(0)
    return changed


def _pack(client: Client, call: Call[Any]) -> Sending:
    if call.task.client is not client:
        raise ConfigurationError(f"{call.task.name} belongs to another app: map it there")
    return call.pack()


def send(client: Client, sending: Sending) -> TaskResult[Any]:
    """Sends one call."""
    (sending,) = before_enqueue(client, [sending])
    (existing,) = _send_batch(client, [sending])
    return _result(client, sending, existing)


async def asend(client: Client, sending: Sending) -> TaskResult[Any]:
    """The async twin of `send`."""
    (sending,) = await abefore_enqueue(client, [sending])
    (existing,) = await _asend_batch(client, [sending])
    return _result(client, sending, existing)


def _send_batch(client: Client, batch: list[Sending]) -> list[bytes | None]:
    client.broker.announce(batch[0].queue)
    return after_enqueue(client, batch, client.broker.run(_enqueue(client, batch)))


async def _asend_batch(client: Client, batch: list[Sending]) -> list[bytes | None]:
    await client.abroker.announce(batch[0].queue)
    return await aafter_enqueue(client, batch, await client.abroker.run(_enqueue(client, batch)))


def _enqueue(client: Client, batch: list[Sending]) -> Command[list[bytes | None]]:
    keys = client.broker.keys(batch[0].queue)
    if log.isEnabledFor(logging.DEBUG):
        _report(batch)
    return commands.enqueue(keys, [sending.task for sending in batch], batch[0].on_existing)


def _report(batch: list[Sending]) -> None:
    for queue, task, *_ in batch:
        name = payload_of(task.record).name
        extra = {"task": name, "id": task.id, "queue": queue}
        log.debug("sending %s[%s] to %s", name, task.id[:8], queue, extra=extra)


def _batches(sendings: list[Sending]) -> Iterable[list[Sending]]:
    """Consecutive calls of one queue that treat existing ids alike, bounded in number and bytes."""
    batch: list[Sending] = []
    size = 0
    for sending in sendings:
        size += len(sending.task.record)
        if batch and (
            len(batch) >= BATCH
            or size > BATCH_BYTES
            or (sending.queue, sending.on_existing) != (batch[0].queue, batch[0].on_existing)
        ):
            yield batch
            batch, size = [], len(sending.task.record)
        batch.append(sending)
    if batch:
        yield batch


def _result(client: Client, sending: Sending, existing: bytes | None) -> TaskResult[Any]:
    if existing is not None:
        _refuse_conflict(client, sending, existing)
    return TaskResult(client, sending.queue, sending.task.id, created=existing is None)


def _refuse_conflict(client: Client, sending: Sending, existing: bytes) -> None:
    theirs, ours = payload_of(existing), payload_of(sending.task.record)
    decode = client.codec.decode_call
    text = f"task id {sending.task.id!r} on queue {sending.queue!r}"
    if theirs.name != ours.name:
        raise IdConflict(f"{text} belongs to a {theirs.name}, not a {ours.name}: use another id")
    if theirs.call != ours.call and decode(theirs.call) != decode(ours.call):
        raise IdConflict(f"{text} belongs to a {ours.name} with other arguments: use another id")
    if sending.on_existing == "error":
        raise IdConflict(f"{text} exists already, and on_existing is 'error': use another id")
