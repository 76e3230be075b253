"""Values on the command line: arguments read from words, results written as JSON."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, cast

from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def read_arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads ``ARG… NAME=ARG…``: each ARG is one JSON value, else the text itself.

    Raises:
        ConfigurationError: A name is given twice, or something positional follows a name.

    Example:
        >>> read_arguments(["1", "two", "3=4", '"x=y"', "z=[5]"])
        ([1, 'two', '3=4', 'x=y'], {'z': [5]})
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            if named:
                raise ConfigurationError(
                    f"{word!r} comes after NAME=ARG: put it before, or name it too"
                )
            positional.append(_read(word))
        elif name in named:
            raise ConfigurationError(f"{name}= is given twice: give it once")
        else:
            named[name] = _read(text)
    return positional, named


def to_json(value: Any) -> str:
    """Writes a result as one line of JSON.

    What JSON cannot hold becomes the nearest thing that it can: a tuple or a set a list, a
    dataclass an object of its fields, an Enum its member's value, a moment, date or time its ISO
    8601 text, a timedelta its seconds, bytes their base64, an infinite number, NaN and anything
    else its text; so does the key of a dict.
    """
    return json.dumps(_lowered(value), ensure_ascii=False, allow_nan=False)


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")


def _lowered(value: Any) -> Any:
    match value:
        case Enum():
            return _lowered(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case dict():
            return {_key(key): _lowered(value[key]) for key in cast("Iterable[Any]", value)}
        case list() | tuple() | set() | frozenset():
            return [_lowered(member) for member in cast("Iterable[Any]", value)]
        case _ if is_dataclass(value):
            return {field.name: _lowered(getattr(value, field.name)) for field in fields(value)}
        case _:
            return str(value)


def _key(key: Any) -> str:
    lowered = _lowered(key)
    return lowered if isinstance(lowered, str) else json.dumps(lowered, ensure_ascii=False)
