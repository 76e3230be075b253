"""Tasks as their callers see them: a function that can also be sent to a worker.

`delay` follows this path: the arguments are bound to the signature and encoded, both of which fail
here and now; the record is packed from a template; one script call enqueues it under an id fixed
beforehand, so that sending it again after a lost reply adds nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from typing_extensions import Unpack

from conveyor.broker import commands
from conveyor.broker.commands import BATCH, BATCH_BYTES, NewTask
from conveyor.errors import IdConflict, PartialEnqueue, PayloadTooLarge
from conveyor.options import (
    CALL_OPTIONS,
    CallOptions,
    Moment,
    Plan,
    due_text,
    make_plan,
    refuse_unknown,
)
from conveyor.records import Template, payload_of
from conveyor.result import TaskResult

if TYPE_CHECKING:
    from conveyor.client import Client
    from conveyor.moments import Duration
    from conveyor.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Definition:
    """What a task is, apart from how it is sent.

    Attributes:
        name: The task type, by which a worker looks it up.
        function: What it runs.
        signature: What it takes.
        bind: Whether the first argument is the `Context`.
        is_async: Whether it is an `async def`.
        options: As given to the decorator.
        queue: The app's default queue.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    bind: bool
    is_async: bool
    options: Mapping[str, Any]
    queue: str


class BaseTask(Generic[P, R]):
    """What `Task` and `AsyncTask` share: everything but the plain call."""

    def __init__(
        self, client: Client, definition: Definition, chosen: Mapping[str, Any] | None = None
    ) -> None:
        self._client = client
        self.definition = definition
        self._chosen = dict(chosen or {})
        self._plan: Plan | None = None
        self._template: Template | None = None
        self.__name__ = definition.function.__name__
        self.__doc__ = definition.function.__doc__
        self.__wrapped__ = definition.function

    def __repr__(self) -> str:
        """The kind and the name."""
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """The task type, by which a worker looks it up."""
        return self.definition.name

    def options(self, **options: Unpack[CallOptions]) -> Any:
        """The same task with other options for the calls made through what is returned.

        Example:
            >>> add.options(queue="fast", priority=9).delay(1, 2)

        Raises:
            ConfigurationError: An option does not exist or has a value that is not allowed.
        """
        refuse_unknown(options, CALL_OPTIONS, f"a call of {self.name}")
        changed = type(self)(self._client, self.definition, {**self._chosen, **options})
        changed.plan()
        return changed

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Sends a call to be run as soon as a worker is free.

        Raises:
            TypeError: The arguments do not fit the function.
            SerializationError: An argument cannot be encoded.
            PayloadTooLarge: Together they are over `max_payload`.
            BrokerUnavailable: The server cannot be reached.
            QueueFull: It is out of memory.
            IdConflict: The custom id belongs to another task.
        """
        return self._send(self._prepare(args, kwargs, ""))

    def schedule(
        self, *args: Any, at: Moment | None = None, after: Duration | None = None, **kwargs: Any
    ) -> TaskResult[R]:
        """Sends a call to be queued later; errors are those of `delay`.

        Args:
            *args: As for the function.
            at: An aware datetime or POSIX seconds; a moment that has passed means now.
            after: Seconds or a timedelta from now, by the server's clock.
            **kwargs: As for the function.
        """
        due = due_text(at, after, self._client.timezone, self.name)
        return self._send(self._prepare(args, kwargs, due))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call with checked arguments, to keep, pass on, `map`, or send later."""
        bound, named = self.definition.signature.bind(args, kwargs)
        return Call(self, bound, named)

    def map(self, items: Iterable[tuple[Any, ...] | Call[R]]) -> list[TaskResult[R]]:
        """Sends many calls in bounded batches, each atomic.

        Raises:
            TypeError: An item is neither a tuple of arguments nor a Call.
            PartialEnqueue: Some batches were sent and then one failed.
        """
        return send_all(self._client, [self._as_call(item) for item in items])

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """The async twin of `delay`."""
        return await self._asend(self._prepare(args, kwargs, ""))

    async def aschedule(
        self, *args: Any, at: Moment | None = None, after: Duration | None = None, **kwargs: Any
    ) -> TaskResult[R]:
        """The async twin of `schedule`."""
        due = due_text(at, after, self._client.timezone, self.name)
        return await self._asend(self._prepare(args, kwargs, due))

    async def amap(self, items: Iterable[tuple[Any, ...] | Call[R]]) -> list[TaskResult[R]]:
        """The async twin of `map`."""
        return await asend_all(self._client, [self._as_call(item) for item in items])

    def result(self, task_id: str) -> TaskResult[R]:
        """A handle of a task that was sent before, from its id."""
        return TaskResult(self._client, self.plan().queue, task_id, created=False)

    def plan(self) -> Plan:
        """The options of calls made through this task, checked."""
        if self._plan is None:
            self._plan = make_plan(
                {**self.definition.options, **self._chosen},
                self._client.settings,
                queue=self.definition.queue,
                is_async=self.definition.is_async,
                timezone=self._client.timezone,
            )
        return self._plan

    def _as_call(self, item: tuple[Any, ...] | Call[R]) -> Call[R]:
        if isinstance(item, Call):
            return item
        if not isinstance(item, tuple):
            raise TypeError(
                f"{self.name}.map(): {item!r} is neither a tuple of arguments nor a Call: write ({item!r},)"
            )
        bound, named = self.definition.signature.bind(item, {})
        return Call(self, bound, named)

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], due: str, task_id: str = ""
    ) -> _Sending:
        bound, named = self.definition.signature.bind(args, kwargs)
        return self._packed(bound, named, due, task_id)

    def _packed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], due: str, task_id: str = ""
    ) -> _Sending:
        plan = self.plan()
        call = self._client.codec.encode_call(
            f"{self.name}()", args, kwargs, self.definition.signature.names
        )
        if len(call) > self._client.settings.max_payload:
            raise PayloadTooLarge(
                f"{self.name}(): the arguments are {len(call):,} bytes, over max_payload "
                f"({self._client.settings.max_payload:,}): pass a reference to the data instead"
            )
        custom = plan.id or task_id
        record = self._template_for(custom).record(call)
        new = NewTask(custom or uuid.uuid4().hex, due, plan.expires, record)
        return _Sending(plan.queue, new, plan.on_existing if custom else "return", self.name)

    def _template_for(self, custom_id: str) -> Template:
        """A call under a custom id carries a nonce, by which sending it again is told from another call."""
        plan = self.plan()
        if custom_id:
            return Template(self.name, plan.limits, plan.options.pack(uuid.uuid4().bytes[:8]))
        if self._template is None:
            self._template = Template(self.name, plan.limits, plan.options.pack())
        return self._template

    def _send(self, sending: _Sending) -> TaskResult[R]:
        broker = self._client.broker
        broker.announce(sending.queue)
        keys = broker.keys(sending.queue)
        (existing,) = broker.run(commands.enqueue(keys, [sending.task], sending.on_existing))
        return _result(self._client, sending, existing)

    async def _asend(self, sending: _Sending) -> TaskResult[R]:
        broker = self._client.abroker
        await broker.announce(sending.queue)
        keys = self._client.broker.keys(sending.queue)
        (existing,) = await broker.run(commands.enqueue(keys, [sending.task], sending.on_existing))
        return _result(self._client, sending, existing)


class Task(BaseTask[P, R]):
    """A plain function that can be sent to a worker; made by `@app.task`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here and now."""
        return self.definition.function(*args, **kwargs)  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def options(self, **options: Unpack[CallOptions]) -> Task[P, R]:
            """See `BaseTask.options`."""
            ...


class AsyncTask(BaseTask[P, R]):
    """An `async def` that can be sent to a worker; made by `@app.task`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Runs the coroutine function here and now."""
        return self.definition.function(*args, **kwargs)  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def options(self, **options: Unpack[CallOptions]) -> AsyncTask[P, R]:
            """See `BaseTask.options`."""
            ...


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A task with its arguments: nothing is sent before one of its methods is called.

    Attributes:
        task: What to run.
        args: Positional arguments.
        kwargs: The rest.
        id: The id it will have, or "" for a new one each time it is sent.
    """

    task: BaseTask[..., R]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    id: str = ""

    def delay(self) -> TaskResult[R]:
        """Sends it to be run as soon as a worker is free."""
        return self.task._send(self._packed(""))

    def schedule(self, *, at: Moment | None = None, after: Duration | None = None) -> TaskResult[R]:
        """Sends it to be queued later; see `Task.schedule`."""
        return self.task._send(self._packed(self._due(at, after)))

    async def adelay(self) -> TaskResult[R]:
        """The async twin of `delay`."""
        return await self.task._asend(self._packed(""))

    async def aschedule(
        self, *, at: Moment | None = None, after: Duration | None = None
    ) -> TaskResult[R]:
        """The async twin of `schedule`."""
        return await self.task._asend(self._packed(self._due(at, after)))

    def _due(self, at: Moment | None, after: Duration | None) -> str:
        return due_text(at, after, self.task._client.timezone, self.task.name)

    def _packed(self, due: str) -> _Sending:
        return self.task._packed(self.args, self.kwargs, due, self.id)


class _Sending(NamedTuple):
    """A packed call on its way."""

    queue: str
    task: NewTask
    on_existing: str
    name: str


def send_all(client: Client, calls: list[Call[Any]]) -> list[TaskResult[Any]]:
    """Sends calls in batches; see `Task.map`."""
    broker = client.broker
    sendings = [call._packed("") for call in calls]
    results: list[TaskResult[Any]] = []
    for batch in _batches(sendings):
        try:
            broker.announce(batch[0].queue)
            keys = broker.keys(batch[0].queue)
            tasks = [sending.task for sending in batch]
            replies = broker.run(commands.enqueue(keys, tasks, batch[0].on_existing))
        except Exception as error:
            raise _partial(calls, sendings, results, error) from error
        results.extend(_results(client, batch, replies))
    return results


async def asend_all(client: Client, calls: list[Call[Any]]) -> list[TaskResult[Any]]:
    """The async twin of `send_all`."""
    broker = client.abroker
    sendings = [call._packed("") for call in calls]
    results: list[TaskResult[Any]] = []
    for batch in _batches(sendings):
        try:
            await broker.announce(batch[0].queue)
            keys = client.broker.keys(batch[0].queue)
            tasks = [sending.task for sending in batch]
            replies = await broker.run(commands.enqueue(keys, tasks, batch[0].on_existing))
        except Exception as error:
            raise _partial(calls, sendings, results, error) from error
        results.extend(_results(client, batch, replies))
    return results


def _batches(sendings: list[_Sending]) -> Iterable[list[_Sending]]:
    """Consecutive calls of one queue and one treatment of existing ids, bounded in number and bytes."""
    batch: list[_Sending] = []
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
    client: Client, batch: list[_Sending], replies: list[bytes | None]
) -> list[TaskResult[Any]]:
    return [_result(client, sending, reply) for sending, reply in zip(batch, replies, strict=True)]


def _partial(
    calls: list[Call[Any]],
    sendings: list[_Sending],
    results: list[TaskResult[Any]],
    error: Exception,
) -> PartialEnqueue:
    pending = [
        Call(call.task, call.args, call.kwargs, sending.task.id)
        for call, sending in zip(calls[len(results) :], sendings[len(results) :], strict=True)
    ]
    return PartialEnqueue(
        f"{len(results):,} of {len(calls):,} tasks were sent, then: {error}; "
        "app.map(error.pending) sends the rest, none of them twice",
        results,
        pending,
    )


def _result(client: Client, sending: _Sending, existing: bytes | None) -> TaskResult[Any]:
    if existing is not None:
        _refuse_conflict(client, sending, existing)
    return TaskResult(client, sending.queue, sending.task.id, created=existing is None)


def _refuse_conflict(client: Client, sending: _Sending, existing: bytes) -> None:
    theirs, ours = payload_of(existing), payload_of(sending.task.record)
    task_id = sending.task.id
    if theirs.name != ours.name:
        raise IdConflict(
            f"task id {task_id!r} belongs to a {theirs.name}, not a {ours.name}: choose another id"
        )
    if theirs.call != ours.call and client.codec.decode_call(
        theirs.call
    ) != client.codec.decode_call(ours.call):
        raise IdConflict(
            f"task id {task_id!r} belongs to a {ours.name} with other arguments: choose another id"
        )
    if sending.on_existing == "error":
        raise IdConflict(f"task id {task_id!r} exists already (on_existing='error')")
