"""A task's signature: which calls fit it, and the names of its arguments."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from typing_extensions import Format, get_annotations

from conveyor.errors import ConfigurationError
from conveyor.forms import resolved, types_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_RESERVED = ("at", "after")
#: Python 3.14 looks annotations up when they are asked for, and a name may not be there yet.
_LENIENT: dict[str, Any] = (
    {"annotation_format": Format.STRING} if sys.version_info >= (3, 14) else {}
)


class Signature:
    """What arguments a task takes.

    Args:
        function: The task's function.
        name: The task's name, for errors.
        bind: Whether the first parameter is the `Context`, which callers do not pass.

    Raises:
        ConfigurationError: A parameter is named `at` or `after`, which `schedule` needs.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, bind: bool) -> None:
        self._name = name
        signature = inspect.signature(function, **_LENIENT)
        parameters = list(signature.parameters.values())
        if bind:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                raise ConfigurationError(
                    f"task {name}: bind=True needs a first parameter for the Context"
                )
            parameters = parameters[1:]
        for parameter in parameters:
            if parameter.name in _RESERVED:
                raise ConfigurationError(
                    f"task {name} has a parameter named {parameter.name!r}, "
                    "which schedule() needs: give it another name"
                )
        self._signature = signature.replace(parameters=parameters)
        positional = [p for p in parameters if p.kind in _POSITIONAL]
        self.names = tuple(p.name for p in positional)
        self._fewest = sum(p.default is p.empty for p in positional)
        self._most = len(positional)
        self._simple = all(
            p.kind in _POSITIONAL or p.default is not p.empty or p.kind is p.VAR_KEYWORD
            for p in parameters
            if p.kind is not p.VAR_POSITIONAL
        )

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in one canonical form: whatever can be positional is.

        Raises:
            TypeError: They do not fit; the text names the task.
        """
        if not kwargs and self._simple and self._fewest <= len(args) <= self._most:
            return args, kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}{self._signature}: {error}") from None
        return bound.args, bound.kwargs


def annotated_types(function: Callable[..., Any], frame: FrameType | None = None) -> set[type]:
    """The dataclasses and enums that a function's annotations name.

    An annotation that cannot be resolved (a name imported for type checkers only) names none.

    Args:
        function: Whose.
        frame: Where it is decorated; if the function is local to it, its names may be.
    """
    own = {one.__name__: one for one in getattr(function, "__type_params__", ())}
    plain: Any = inspect.unwrap(function)
    names = {**getattr(plain, "__globals__", {}), **_local_names(plain, frame), **_enclosed(plain)}
    annotations = get_annotations(function, format=Format.FORWARDREF)
    return {kind for one in resolved(annotations, names, own) for kind in types_in(one)}


def _local_names(function: Any, frame: FrameType | None) -> dict[str, Any]:
    """What the frame has, if the function is defined in it."""
    if frame is None:
        return {}
    inside = f"{frame.f_code.co_qualname}.<locals>.{getattr(function, '__name__', '')}"
    return frame.f_locals if getattr(function, "__qualname__", "") == inside else {}


def _enclosed(function: Any) -> dict[str, Any]:
    """What a function's body takes from those around it, as far as it is there yet."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # it is empty
            found[name] = cell.cell_contents
    return found
