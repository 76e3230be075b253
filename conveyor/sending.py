"""Packed calls on their way: one at once, or many in bounded batches, each atomic.

A batch is one script call, under ids fixed beforehand, so that sending it again after a lost reply
adds nothing. What has the same id already is compared: it is ours, or a conflict.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
    from collections.abc import Iterable

    from conveyor.broker.commands import Command
    from conveyor.client import Client
    from conveyor.task import Call

log = logging.getLogger("conveyor.client")

R = TypeVar("R")


class Sending(NamedTuple):
    """A packed call on its way; `again` once plugins were told of it and it may have been sent."""

    queue: str
    task: NewTask
    on_existing: str
    again: bool = False


def send_all(client: Client, calls: list[Call[R]]) -> list[TaskResult[R]]:
    """Sends calls in batches; see `Task.map`."""
    sendings = before_enqueue(client, _pack_all(client, calls))
    results: list[TaskResult[R]] = []
    for batch in _batches(sendings):
        try:
            replies = _send_batch(client, batch)
        except IdConflict:
            raise
        except ConveyorError as error:
            raise _partial(calls, sendings, results, error) from error
        results.extend(_results(client, batch, replies))
    return results


async def asend_all(client: Client, calls: list[Call[R]]) -> list[TaskResult[R]]:
    """The async twin of `send_all`."""
    sendings = await abefore_enqueue(client, _pack_all(client, calls))
    results: list[TaskResult[R]] = []
    for batch in _batches(sendings):
        try:
            replies = await _asend_batch(client, batch)
        except IdConflict:
            raise
        except ConveyorError as error:
            raise _partial(calls, sendings, results, error) from error
        results.extend(_results(client, batch, replies))
    return results


def _pack_all(client: Client, calls: list[Call[R]]) -> list[Sending]:
    for call in calls:
        if call.task.client is not client:
            raise ConfigurationError(f"{call.task.name} belongs to another app: map it there")
    return [call.pack() for call in calls]


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


def _results(
    client: Client, batch: list[Sending], replies: list[bytes | None]
) -> list[TaskResult[Any]]:
    return [_result(client, sending, reply) for sending, reply in zip(batch, replies, strict=True)]


def _partial(
    calls: list[Call[R]],
    sendings: list[Sending],
    results: list[TaskResult[R]],
    error: ConveyorError,
) -> PartialEnqueue:
    pending = [
        replace(call, id=sending.task.id, sending=sending._replace(again=True))
        for call, sending in zip(calls[len(results) :], sendings[len(results) :], strict=True)
    ]
    return PartialEnqueue(
        f"{len(results):,} of {len(calls):,} tasks were sent, then: {error};"
        " app.map(error.pending) sends the rest, none of them twice",
        results,
        pending,
    )


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
