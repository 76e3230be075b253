"""Tasks as their callers see them: a function that can also be sent to a worker.

`delay` follows this path: the arguments are bound to the signature and encoded, both of which fail
here and now; the record is packed from a template; one script call enqueues it under an id fixed
beforehand, so that sending it again after a lost reply adds nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, cast

from typing_extensions import Unpack

from conveyor.broker.commands import NewTask
from conveyor.context import current_task
from conveyor.errors import ConfigurationError, PayloadTooLarge
from conveyor.options import (
    CALL_OPTIONS,
    CallOptions,
    Moment,
    Plan,
    due_text,
    make_plan,
    refuse_unknown,
)
from conveyor.records import Template
from conveyor.result import result_by_id
from conveyor.sending import Sending, asend, asend_all, in_turns, send, send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from conveyor.client import Client
    from conveyor.moments import Duration
    from conveyor.result import TaskResult
    from conveyor.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Longest name of a task, in characters.
MAX_NAME = 500


def check_task_name(name: object) -> str:
    """Returns the name of a task if it is a valid one.

    Raises:
        ConfigurationError: It is no text, empty, too long, or not printable.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > MAX_NAME:
        raise ConfigurationError(
            f"task name {name!r} is not valid: use 1 to {MAX_NAME} printable characters"
        )
    return name


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
        self.client = client
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

    def options(self, **options: Unpack[CallOptions]) -> Self:
        """The same task with other options for the calls made through what is returned.

        Example:
            >>> add.options(queue="fast", priority=9).delay(1, 2)

        Raises:
            ConfigurationError: An option does not exist or has a value that is not allowed.
        """
        refuse_unknown(options, CALL_OPTIONS, f"a call of {self.name}")
        if callable(options.get("backoff")):
            raise ConfigurationError(
                f"a call of {self.name} cannot have a function as backoff, for it cannot travel:"
                " give it to @app.task(backoff=...), or use constant(), linear() or exponential()"
            )
        changed = type(self)(self.client, self.definition, {**self._chosen, **options})
        changed.plan()
        return changed

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Sends a call to be run as soon as a worker is free.

        Raises:
            TypeError: The arguments do not fit the function.
            SerializationError: An argument cannot be encoded.
            PayloadTooLarge: Together they are over `max_payload`.
            BrokerUnavailable: The server cannot be reached.
            QueueFull: It is out of memory.
            IdConflict: The custom id belongs to another task.
        """
        return send(self.client, self._prepare(args, kwargs, ""))

    def schedule(
        self,
        /,
        *args: Any,
        at: Moment | None = None,
        after: Duration | None = None,
        **kwargs: Any,
    ) -> TaskResult[R]:
        """Sends a call to be queued later; errors are those of `delay`.

        Args:
            *args: As for the function.
            at: An aware datetime or POSIX seconds; a moment that has passed means now.
            after: Seconds or a timedelta from now, by the server's clock.
            **kwargs: As for the function.
        """
        due = due_text(at, after, self.client.timezone, self.name)
        return send(self.client, self._prepare(args, kwargs, due))

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call with checked arguments, to keep, pass on, `map`, or send later."""
        bound, named = self.definition.signature.bind(args, kwargs)
        return Call(self, bound, named)

    def map(self, items: Iterable[tuple[Any, ...] | Call[R]]) -> list[TaskResult[R]]:
        """Sends many calls in bounded batches, each atomic.

        Raises:
            TypeError: An item is neither a tuple of arguments nor a Call.
            PartialEnqueue: Some were sent, then a batch failed or an id was another task's; its
                text says how to send the rest.
        """
        return send_all(self.client, [self._as_call(item) for item in items])

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """The async twin of `delay`."""
        return await asend(self.client, self._prepare(args, kwargs, ""))

    async def aschedule(
        self,
        /,
        *args: Any,
        at: Moment | None = None,
        after: Duration | None = None,
        **kwargs: Any,
    ) -> TaskResult[R]:
        """The async twin of `schedule`."""
        due = due_text(at, after, self.client.timezone, self.name)
        return await asend(self.client, self._prepare(args, kwargs, due))

    async def amap(self, items: Iterable[tuple[Any, ...] | Call[R]]) -> list[TaskResult[R]]:
        """The async twin of `map`."""
        return await asend_all(self.client, await in_turns(self._as_call, items))

    def result(self, id: str) -> TaskResult[R]:
        """A handle of a task that was sent before, from its id.

        Raises:
            TypeError: The id is no text.
            ConfigurationError: No task can have it.
        """
        return result_by_id(self.client, self.plan().queue, id)

    def plan(self) -> Plan:
        """The options of calls made through this task, checked."""
        if self._plan is None:
            self._plan = make_plan(
                {**self.definition.options, **self._chosen},
                self.client.settings,
                queue=self.definition.queue,
                is_async=self.definition.is_async,
                timezone=self.client.timezone,
            )
        return self._plan

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context = (current_task(),) if self.definition.bind else ()
        return self.definition.function(*context, *args, **kwargs)

    def _as_call(self, item: tuple[Any, ...] | Call[R]) -> Call[R]:
        if isinstance(item, Call):
            return item
        if not isinstance(item, tuple):
            raise TypeError(
                f"{self.name}.map(): {item!r} is neither a tuple of arguments nor a Call:"
                f" write ({item!r},)"
            )
        bound, named = self.definition.signature.bind(item, {})
        return Call(self, bound, named)

    def pack(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], due: str = "", task_id: str = ""
    ) -> Sending:
        """Encodes a call whose arguments are bound; nothing is sent.

        Args:
            args: Positional arguments.
            kwargs: The rest.
            due: When: see `due_text`; "" is now.
            task_id: The id it has if the options name none; "" makes a new one.

        Raises:
            SerializationError: An argument cannot be encoded.
            PayloadTooLarge: Together they are over `max_payload`.
        """
        plan = self.plan()
        call = self._encode(args, kwargs)
        custom = plan.id or task_id
        record = self._template_for(custom).record(call)
        new = NewTask(custom or uuid.uuid4().hex, due, plan.expires, record)
        # An id that is not the user's is one that was sent before: then its task is ours.
        return Sending(plan.queue, new, plan.on_existing if plan.id else "return")

    def _encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        names = self.definition.signature.names
        call = self.client.codec.encode_call(self.name, args, kwargs, names)
        most = self.client.settings.max_payload
        if len(call) > most:
            raise PayloadTooLarge(
                f"{self.name}(): the arguments are {len(call):,} bytes, over max_payload"
                f" ({most:,}): pass a reference to the data instead"
            )
        return call

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any], due: str) -> Sending:
        bound, named = self.definition.signature.bind(args, kwargs)
        return self.pack(bound, named, due)

    def _template_for(self, custom_id: str) -> Template:
        """Under a custom id a call has a nonce, which tells its repetition from another call."""
        plan = self.plan()
        if custom_id:
            return Template(self.name, plan.limits, plan.options.pack(uuid.uuid4().bytes[:8]))
        if self._template is None:
            self._template = Template(self.name, plan.limits, plan.options.pack())
        return self._template


class Task(BaseTask[P, R]):
    """A plain function that can be sent to a worker; made by `@app.task`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here and now; with `bind=True` only inside a task's run."""
        return cast("R", self._run(args, kwargs))


class AsyncTask(BaseTask[P, R]):
    """An `async def` that can be sent to a worker; made by `@app.task`."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Runs the coroutine function here and now; with `bind=True` only inside a task's run."""
        return cast("Coroutine[Any, Any, R]", self._run(args, kwargs))


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """A task with its arguments: nothing is sent before one of its methods is called.

    Attributes:
        task: What to run.
        args: Positional arguments.
        kwargs: The rest.
        id: The id it will have, or "" for a new one each time it is sent.
        due: When it is to be queued unless it is scheduled: see `due_text`; "" is at once.
        sending: What it was sent as, if that may have failed: sent again it is the very same.
    """

    task: BaseTask[..., R_co]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    id: str = ""
    due: str = ""
    sending: Sending | None = field(default=None, repr=False)

    def delay(self) -> TaskResult[R_co]:
        """Sends it to be run as soon as a worker is free."""
        return send(self.task.client, self.pack())

    def schedule(
        self, *, at: Moment | None = None, after: Duration | None = None
    ) -> TaskResult[R_co]:
        """Sends it to be queued later; see `Task.schedule`."""
        return send(self.task.client, self.pack(self._due(at, after)))

    async def adelay(self) -> TaskResult[R_co]:
        """The async twin of `delay`."""
        return await asend(self.task.client, self.pack())

    async def aschedule(
        self, *, at: Moment | None = None, after: Duration | None = None
    ) -> TaskResult[R_co]:
        """The async twin of `schedule`."""
        return await asend(self.task.client, self.pack(self._due(at, after)))

    def pack(self, due: str = "") -> Sending:
        """Encodes it; nothing is sent. See `BaseTask.pack`."""
        if self.sending is not None and not due:
            return self.sending
        return self.task.pack(self.args, self.kwargs, due or self.due, self.id)

    def _due(self, at: Moment | None, after: Duration | None) -> str:
        return due_text(at, after, self.task.client.timezone, self.task.name)
