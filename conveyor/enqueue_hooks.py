"""Calls the plugins of whoever sends tasks: before anything is sent, and once the server has it.

The hooks are called for every call of a batch before anything of it is sent, so one that raises
leaves nothing enqueued. Once the server has a task, a hook that raises is logged: the task exists.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from conveyor.broker.commands import Snapshot
from conveyor.errors import ConfigurationError
from conveyor.moments import from_ms
from conveyor.plugins import cannot_await, name_of, report
from conveyor.records import TaskStatus, with_headers
from conveyor.rules import are_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conveyor.client import Client
    from conveyor.plugins import Hook
    from conveyor.records import TaskRecord
    from conveyor.sending import Sending


def before_enqueue(client: Client, sendings: list[Sending]) -> list[Sending]:
    """Calls the hooks before anything is sent; gives the calls with the headers that they added.

    Raises:
        ConfigurationError: A hook returned no headers, or is async and this is not.
    """
    if not client.plugins.enqueue:
        return sendings
    if client.plugins.wait_for is None or _in_loop():
        client.plugins.refuse_async()
    return [one if one.again else _before(client, one) for one in sendings]


async def abefore_enqueue(client: Client, sendings: list[Sending]) -> list[Sending]:
    """The async twin of `before_enqueue`."""
    if not client.plugins.enqueue:
        return sendings
    return [one if one.again else await _abefore(client, one) for one in sendings]


def after_enqueue(
    client: Client, batch: Sequence[Sending], replies: list[bytes | None]
) -> list[bytes | None]:
    """Calls the hooks for what was created; gives the replies."""
    if client.plugins.enqueue:
        for hook, task in _created(client, batch, replies):
            try:
                _wait_for(client, hook, hook(task))
            except Exception:
                report(hook)
    return replies


async def aafter_enqueue(
    client: Client, batch: Sequence[Sending], replies: list[bytes | None]
) -> list[bytes | None]:
    """The async twin of `after_enqueue`."""
    if client.plugins.enqueue:
        for hook, task in _created(client, batch, replies):
            try:
                answer = hook(task)
                if inspect.isawaitable(answer):
                    await answer
            except Exception:
                report(hook)
    return replies


def _before(client: Client, sending: Sending) -> Sending:
    task = before = _preview(client, sending)
    for hook in client.plugins.hooks("on_before_enqueue_task"):
        task = _with_added(task, hook, _wait_for(client, hook, hook(task)))
    return sending if task is before else _with_headers(sending, task.headers)


async def _abefore(client: Client, sending: Sending) -> Sending:
    task = before = _preview(client, sending)
    for hook in client.plugins.hooks("on_before_enqueue_task"):
        answer = hook(task)
        task = _with_added(task, hook, await answer if inspect.isawaitable(answer) else answer)
    return sending if task is before else _with_headers(sending, task.headers)


def _wait_for(client: Client, hook: Hook, answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    wait_for = client.plugins.wait_for
    if wait_for is not None and not _in_loop():
        return wait_for(answer)
    if inspect.iscoroutine(answer):
        answer.close()
    raise cannot_await(hook)


def _with_added(task: TaskRecord, hook: Hook, headers: object) -> TaskRecord:
    if headers is None:
        return task
    if not are_texts(headers):
        raise ConfigurationError(
            f"{name_of(hook)} returned {headers!r}: return headers, a dict of str to str, of valid"
            " Unicode, or None"
        )
    return replace(task, headers={**task.headers, **headers}) if headers else task


def _with_headers(sending: Sending, headers: Mapping[str, str]) -> Sending:
    record = with_headers(sending.task.record, headers)
    return sending._replace(task=sending.task._replace(record=record))


def _created(
    client: Client, batch: Sequence[Sending], replies: Sequence[bytes | None]
) -> Iterator[tuple[Hook, TaskRecord]]:
    hooks = client.plugins.hooks("on_after_enqueue_task")
    if not hooks:
        return
    for sending, existing in zip(batch, replies, strict=True):
        if existing is None:
            task = _preview(client, sending)
            for hook in hooks:
                yield hook, task


def _preview(client: Client, sending: Sending) -> TaskRecord:
    """The task as the server will have it, by this host's clock."""
    _, due_text, expires_text, record = sending.task
    now = datetime.now(UTC)
    due = _moment(due_text, now)
    scheduled = due is not None and due > now
    return replace(
        client.decode(sending.queue, sending.task.id, Snapshot(record, {})),
        status=TaskStatus.SCHEDULED if scheduled else TaskStatus.QUEUED,
        created_at=now,
        queued_at=None if scheduled else now,
        enqueue_after=due,
        expires_at=_moment(expires_text, max(due or now, now)),
    )


def _moment(text: str, base: datetime) -> datetime | None:
    """See `moment` in enqueue.lua."""
    if not text:
        return None
    ms = int(text)
    return from_ms(round(base.timestamp() * 1000) + ms if text.startswith("+") else ms)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
