"""The app: a name, a broker, a registry of tasks, and the assembly of everything below."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterable
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    overload,
)
from weakref import WeakSet
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from typing_extensions import Unpack

from conveyor import debugging
from conveyor.amanager import AsyncManager
from conveyor.broker.connect import Server
from conveyor.broker.keys import check_name
from conveyor.client import Client
from conveyor.codec import Codec
from conveyor.errors import ConfigurationError
from conveyor.forms import real_module
from conveyor.listener import Listener
from conveyor.manager import Manager
from conveyor.operations import Operations
from conveyor.options import TASK_OPTIONS, TaskOptions, refuse_unknown, retried_errors
from conveyor.recurring import (
    add_entry,
    check_declared,
    list_entries,
    make_entry,
    remove_entry,
)
from conveyor.result import result_by_id
from conveyor.sending import asend_all, send_all
from conveyor.settings import find_broker, resolve_settings
from conveyor.signature import Signature, annotated_types
from conveyor.task import AsyncTask, BaseTask, Call, Definition, Task, check_task_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import FrameType, TracebackType

    from conveyor.broker.target import Client as RedisClient
    from conveyor.context import Context
    from conveyor.options import RecurringOptions
    from conveyor.plugins import Plugin
    from conveyor.recurrence import RecurringRecord
    from conveyor.result import TaskResult

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Decorator(Protocol):
    """What `@app.task(...)` returns: makes tasks of functions."""

    # An `async def` fits both; the first that fits is taken, and a coroutine is never the result.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundDecorator(Protocol):
    """What `@app.task(bind=True, ...)` returns: the function's first parameter is the `Context`."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...


class Conveyor:
    """A distributed task queue: tasks are declared on it, sent through it and run by its workers.

    Creating one, importing tasks and decorating never open a connection.

    Args:
        name: Whatever you call it; also the namespace unless that is given.
        broker: A URL or a client of redis-py to share; None takes `CONVEYOR_BROKER` from the
            environment, else `broker` under `[tool.conveyor]` in pyproject.toml, else the embedded
            server.
        queue: Where tasks go that name no queue.
        namespace: Apps on one server never meet unless they share it.
        timezone: In which naive datetimes are meant; None refuses them.
        plugins: What to call at fixed moments; see `Plugin`.
        types: Dataclasses and enums, beside those in annotations, that may travel.
        **settings: Any field of `Settings`.

    Raises:
        ConfigurationError: A name or a setting is not valid.

    Example:
        >>> app = Conveyor("myapp")
        >>> @app.task(retry_limit=3)
        ... def add(x: int, y: int) -> int:
        ...     return x + y
    """

    def __init__(
        self,
        name: str,
        *,
        broker: str | RedisClient | None = None,
        queue: str = "default",
        namespace: str | None = None,
        timezone: str | tzinfo | None = None,
        plugins: Iterable[Plugin] = (),
        types: Iterable[type] = (),
        **settings: Any,
    ) -> None:
        if patterns := os.environ.get("CONVEYOR_DEBUG"):
            debugging.turn_on(patterns)
        self.name = check_name(name, "app name")
        self.namespace = check_name(name if namespace is None else namespace, "namespace")
        self.queue = check_name(queue, "queue")
        self.module = _calling_module()
        directory = self.module.parent if self.module else Path.cwd()
        self.settings, self.origins = resolve_settings(
            settings, environ=os.environ, directory=directory
        )
        self._listeners: WeakSet[Listener] = WeakSet()
        self.tasks: dict[str, BaseTask[..., Any]] = {}
        if broker is None:
            broker = find_broker(environ=os.environ, directory=directory) or "embedded://"
        self.client = Client(
            Server(broker, module=self.module),
            self.namespace,
            codec=Codec(_several(types, "types", "dataclasses and Enums")),
            settings=self.settings,
            timezone=_timezone(timezone),
        )
        self.register_plugins(*_several(plugins, "plugins", "plugins, such as [Mine()]"))

    def __repr__(self) -> str:
        """The name."""
        return f"<Conveyor {self.name}>"

    @overload
    def task(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, /, *, bind: Literal[True], **options: Unpack[TaskOptions]) -> BoundDecorator: ...
    @overload
    def task(
        self, /, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Decorator: ...
    def task(
        self, function: Callable[..., Any] | None = None, /, *, bind: bool = False, **options: Any
    ) -> Any:
        """Makes a task of a function, with or without options.

        Raises:
            ConfigurationError: An option does not exist or has a value that is not allowed, a
                parameter is named `at` or `after`, or another task has this name.
        """

        def declare(function: Callable[..., Any]) -> BaseTask[..., Any]:
            return self._declare(function, bind, options)

        return declare if function is None else declare(function)

    def register_plugins(self, *plugins: Plugin) -> None:
        """Adds plugins after those there are; a worker's children know those there at its start.

        Raises:
            ConfigurationError: One is no plugin.

        Example:
            >>> app.register_plugins(Tenants(), Metrics())
        """
        self.client.plugins.register(plugins)

    def result(self, id: str, queue: str | None = None) -> TaskResult[Any]:
        """A handle of a task that was sent before, from its id.

        Args:
            id: The task's id.
            queue: The queue it was sent to; None is the app's.

        Raises:
            TypeError: The id is no text.
            ConfigurationError: No task or queue can be called so.
        """
        queue = self.queue if queue is None else check_name(queue, "queue")
        return result_by_id(self.client, queue, id)

    def map(self, calls: Iterable[Call[R]]) -> list[TaskResult[R]]:
        """Sends many calls, of any tasks, in bounded batches, each atomic; see `Task.map`."""
        return send_all(self.client, _only_calls(calls))

    async def amap(self, calls: Iterable[Call[R]]) -> list[TaskResult[R]]:
        """The async twin of `map`."""
        return await asend_all(self.client, _only_calls(calls))

    def manager(self, queue: str | None = None) -> Manager:
        """Looks after one queue: its tasks, its workers, its rate limit, pausing and emptying it.

        Args:
            queue: Which; None is the app's.

        Example:
            >>> app.manager("reports").get_task_counts().queued
            0
        """
        return Manager(self._operations(queue))

    def amanager(self, queue: str | None = None) -> AsyncManager:
        """The async twin of `manager`: the same methods, awaited."""
        return AsyncManager(self._operations(queue))

    def listener(self, *queues: str) -> Listener:
        """Listens to what happens in queues, until it is closed or the app is.

        Args:
            *queues: Names; none is the app's queue.

        Raises:
            BrokerUnavailable: The server cannot be reached.

        Example:
            >>> listener = app.listener()
            >>> listener.on("task_complete", lambda event: print(event.task.id))
        """
        names = [check_name(queue, "queue") for queue in queues or (self.queue,)]
        listener = Listener(self.client, list(dict.fromkeys(names)))
        self._listeners.add(listener)
        return listener

    def queues(self) -> list[str]:
        """The queues that the namespace has had tasks on, by name."""
        return self.client.broker.queues()

    async def aqueues(self) -> list[str]:
        """The async twin of `queues`."""
        return await self.client.abroker.queues()

    def add_recurring(
        self, name: str, call: Call[Any], **options: Unpack[RecurringOptions]
    ) -> None:
        """Has a call recur until `remove_recurring`, or changes the entry of this name.

        It is kept on the call's queue, and each firing's task has the id `name@moment` (UTC).

        Args:
            name: 1 to 64 letters, digits, `_`, `.` or `-`.
            call: What to send each time.
            **options: `cron` or `every`, and the rest of `RecurringOptions`.

        Raises:
            ConfigurationError: Something of it cannot work.
            BrokerUnavailable: The server cannot be reached.

        Example:
            >>> app.add_recurring("nightly", report.call("sales"), cron="0 3 * * *")
        """
        entry = make_entry(self.client, name, call, options)
        self.client.drive(add_entry(self.client, entry))

    async def aadd_recurring(
        self, name: str, call: Call[Any], **options: Unpack[RecurringOptions]
    ) -> None:
        """The async twin of `add_recurring`."""
        entry = make_entry(self.client, name, call, options)
        await self.client.adrive(add_entry(self.client, entry))

    def remove_recurring(self, name: str, queue: str | None = None) -> bool:
        """Removes a recurring entry; tasks that it has sent stay.

        One that code declares is back as soon as a process declares it again: change the code.

        Args:
            name: The entry's.
            queue: Where it is; None looks on every queue of the app.

        Returns:
            Whether there was one.
        """
        return self.client.drive(remove_entry(self.client, name, queue))

    async def aremove_recurring(self, name: str, queue: str | None = None) -> bool:
        """The async twin of `remove_recurring`."""
        return await self.client.adrive(remove_entry(self.client, name, queue))

    def recurring(self, queue: str | None = None) -> list[RecurringRecord]:
        """The recurring entries of a queue, the next to fire first; None is the app's queue."""
        queue = self.queue if queue is None else queue
        return self.client.drive(list_entries(self.client, queue))

    async def arecurring(self, queue: str | None = None) -> list[RecurringRecord]:
        """The async twin of `recurring`."""
        queue = self.queue if queue is None else queue
        return await self.client.adrive(list_entries(self.client, queue))

    def close(self) -> None:
        """Closes what this process opened; a shared client stays open."""
        self._close_listeners()
        self.client.close()

    async def aclose(self) -> None:
        """Closes what this process opened, the running event loop's connections included."""
        await asyncio.to_thread(self._close_listeners)
        await self.client.aclose()

    def __enter__(self) -> Self:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    async def __aenter__(self) -> Self:
        """Nothing to open."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        await self.aclose()

    def _operations(self, queue: str | None) -> Operations:
        name = self.queue if queue is None else check_name(queue, "queue")
        return Operations(self.client, self.tasks, name)

    def _close_listeners(self) -> None:
        for listener in list(self._listeners):
            listener.close()

    def _declare(
        self, function: Callable[..., Any], bind: bool, options: Mapping[str, Any]
    ) -> BaseTask[..., Any]:
        name = _task_name(function, options.get("name"))
        refuse_unknown(options, TASK_OPTIONS, f"task {name}")
        is_async = inspect.iscoroutinefunction(function)
        definition = Definition(
            name=name,
            function=function,
            signature=Signature(function, name, bind=bind),
            bind=bind,
            is_async=is_async,
            options={**retried_errors(self.settings), **options},
            queue=self.queue,
        )
        task: BaseTask[..., Any] = (
            AsyncTask(self.client, definition) if is_async else Task(self.client, definition)
        )
        task.plan()
        check_declared(task)
        self._register(task)
        self.client.codec.register(*annotated_types(function, _calling_frame()))
        self.client.codec.register_later(name, partial(annotated_types, function))
        return task

    def _register(self, task: BaseTask[..., Any]) -> None:
        known = self.tasks.get(task.name)
        if known is not None and _origin(known) != _origin(task):
            raise ConfigurationError(
                f"there are two tasks named {task.name!r}: give one of them another name= "
                f"({_origin(known)} and {_origin(task)})"
            )
        self.tasks[task.name] = task


def _several(values: Iterable[T], name: str, what: str) -> list[T]:
    if isinstance(values, type) or not isinstance(values, Iterable):
        raise ConfigurationError(f"{name}= cannot be {values!r}: use a list of {what}")
    return list(values)


def _only_calls(calls: Iterable[Call[R]]) -> list[Call[R]]:
    found = list(calls)
    for call in found:
        if not isinstance(call, Call):
            raise TypeError(f"app.map(): {call!r} is not a Call: make one with task.call(...)")
    return found


def _task_name(function: Any, given: object) -> str:
    if not callable(function) or inspect.isclass(function) or not hasattr(function, "__qualname__"):
        raise ConfigurationError(f"{function!r} cannot be a task: decorate a function")
    own = f"{real_module(function.__module__)}.{function.__qualname__}"
    return check_task_name(own if given is None else given)


def _origin(task: BaseTask[..., Any]) -> str:
    """Where a task is written: a module that is loaded twice declares the same one again."""
    function = inspect.unwrap(task.definition.function)
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{function.__qualname__}" if code else repr(function)


def _calling_frame() -> FrameType | None:
    """Where this module is called."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame


def _calling_module() -> Path | None:
    """The file of the module that creates the app."""
    frame = _calling_frame()
    file = None if frame is None else frame.f_globals.get("__file__")
    return Path(file).resolve() if file else None


def _timezone(value: object) -> tzinfo | None:
    if value is None or isinstance(value, tzinfo):
        return value
    try:
        return ZoneInfo(str(value))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"timezone {value!r} is not known: use a name such as 'Europe/Berlin'"
        ) from error
