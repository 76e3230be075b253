"""Plugins: code of yours that Conveyor calls at fixed moments of a task's and a worker's life.

A plugin overrides the hooks that it wants; the others cost nothing, since what each plugin
overrides is found once, when it is registered. Hooks are called in the order in which their
plugins were registered, those named `after` too. A hook may be an `async def`: callers await it in
`adelay`, `aschedule` and `amap`, and workers await it wherever the task runs.

An exception in `on_before_enqueue_task` reaches the caller, and nothing is enqueued. Any other hook
that raises is logged (`conveyor.plugins`), and changes nothing.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from conveyor.records import TaskRecord
    from conveyor.worker.worker import Worker

    Done: TypeAlias = Awaitable[None] | None
    Headers: TypeAlias = Mapping[str, str] | None

log = logging.getLogger("conveyor.plugins")


class Plugin:
    """Override the hooks you want, as plain functions or `async def`.

    Example:
        >>> class Tenants(Plugin):
        ...     def on_before_enqueue_task(self, task: TaskRecord) -> dict[str, str]:
        ...         return {"tenant": current_tenant()}
        >>> app = Conveyor("myapp", plugins=[Tenants()])
    """

    def on_before_enqueue_task(self, task: TaskRecord) -> Headers | Awaitable[Headers]:
        """Called by whoever sends a task, before anything is sent; an exception reaches them.

        Args:
            task: What is to be sent, `created_at` by the caller's clock.

        Returns:
            Headers to add to the task's own, or None.
        """
        return None

    def on_after_enqueue_task(self, task: TaskRecord) -> Done:
        """Called by whoever sent a task, once the server has it; not for an id that existed."""

    def on_before_task_processing(self, task: TaskRecord) -> Done:
        """Called in the child before each run of a task."""

    def on_after_task_processing(self, task: TaskRecord) -> Done:
        """Called in the child after each run, the last of its hooks.

        Args:
            task: As it is after the run. Progress, data and earlier attempts are not known here.
        """

    def on_after_task_success(self, task: TaskRecord) -> Done:
        """Called in the child after a run that succeeded, before its result is sent."""

    def on_after_task_error(self, task: TaskRecord, error: BaseException) -> Done:
        """Called in the child after a run that raised, timed out or returned what cannot travel."""

    def on_after_task_fail(self, task: TaskRecord, error: BaseException) -> Done:
        """Called after `on_after_task_error` when that error was the last: no retry follows."""

    def on_child_start(self) -> Done:
        """Called in each child before it runs anything."""

    def on_child_shutdown(self) -> Done:
        """Called in each child that is let go, once it has run everything; not if it is killed."""

    def on_worker_start(self, worker: Worker) -> Done:
        """Called in the parent, beside its loop, once its first children are there."""

    def on_worker_shutdown(self, worker: Worker) -> Done:
        """Called in the parent, beside its loop, once its last child is gone."""


Hook: TypeAlias = "Callable[..., Any]"

HOOKS: Final = tuple(name for name in vars(Plugin) if name.startswith("on_"))
_ENQUEUE: Final = ("on_before_enqueue_task", "on_after_enqueue_task")
_RUN: Final = (
    "on_before_task_processing",
    "on_after_task_processing",
    "on_after_task_success",
    "on_after_task_error",
    "on_after_task_fail",
)
_CHILD: Final = (*_RUN, "on_child_start", "on_child_shutdown")


class Plugins:
    """The plugins of one app, by the hooks that they override.

    Attributes:
        enqueue: Whether callers have any hook to call.
        run: Whether children have any to call around a run.
        wait_for: In a child, waits for what an `async def` hook returned; None elsewhere.
    """

    def __init__(self) -> None:
        self._plugins: tuple[Plugin, ...] = ()
        self._hooks: dict[str, tuple[Hook, ...]] = dict.fromkeys(HOOKS, ())
        self.enqueue = False
        self.run = False
        self.wait_for: Callable[[Awaitable[Any]], Any] | None = None

    def register(self, plugins: Iterable[Plugin]) -> None:
        """Adds plugins after those there are; one that is there already stays where it is.

        Raises:
            ConfigurationError: One is no plugin.
        """
        found = list(self._plugins)
        for plugin in plugins:
            if not isinstance(plugin, Plugin):
                raise ConfigurationError(_no_plugin(plugin))
            if not any(plugin is known for known in found):
                found.append(plugin)
        self._plugins = tuple(found)
        self._hooks = {name: _overridden(found, name) for name in HOOKS}
        self.enqueue = any(self._hooks[name] for name in _ENQUEUE)
        self.run = any(self._hooks[name] for name in _RUN)

    def hooks(self, name: str) -> tuple[Hook, ...]:
        """Those that override a hook, in order."""
        return self._hooks[name]

    def any_async_in_child(self) -> bool:
        """Whether a child needs an event loop for hooks."""
        return any(is_async(hook) for name in (*_CHILD, *_ENQUEUE) for hook in self._hooks[name])

    def refuse_async(self) -> None:
        """For who cannot await: raises for the first enqueue hook that would have to be.

        Raises:
            ConfigurationError: It names the plugin.
        """
        for name in _ENQUEUE:
            for hook in self._hooks[name]:
                if is_async(hook):
                    raise cannot_await(hook)


def is_async(hook: Hook) -> bool:
    """Whether a hook is an `async def`."""
    return inspect.iscoroutinefunction(hook)


def name_of(hook: Hook) -> str:
    """A hook as errors name it: `Tenants.on_before_enqueue_task`."""
    owner = getattr(hook, "__self__", None)
    name = getattr(hook, "__name__", repr(hook))
    return f"{type(owner).__qualname__}.{name}" if isinstance(owner, Plugin) else name


def cannot_await(hook: Hook) -> ConfigurationError:
    """For an async hook met in sync code."""
    return ConfigurationError(
        f"{name_of(hook)} is async, which delay(), schedule() and map() cannot await: use"
        " adelay(), aschedule() and amap(), or make it a plain function"
    )


def report(hook: Hook) -> None:
    """Logs the exception that a hook has just raised."""
    log.exception("%s raised; no task is the worse for it", name_of(hook))


def _overridden(plugins: Iterable[Plugin], name: str) -> tuple[Hook, ...]:
    plain = getattr(Plugin, name)
    bound = (getattr(plugin, name) for plugin in plugins)
    return tuple(hook for hook in bound if getattr(hook, "__func__", hook) is not plain)


def _no_plugin(given: object) -> str:
    if isinstance(given, type) and issubclass(given, Plugin):
        return f"plugin {given.__qualname__} is a class: create one, {given.__qualname__}()"
    return f"{given!r} is no plugin: derive its class from conveyor.Plugin"
