"""What the value of a setting or an option may be: in words, as a check, and read from a text.

A rule raises a bare ``TypeError`` or ``ValueError``: whoever applies it knows the name and the
origin of the value, and says them together with the words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard, cast

from conveyor.moments import to_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: A whole number, or ``math.inf`` for unlimited.
Limit: TypeAlias = int | float

#: The largest count: it fits the 32 bits, one a sign, that records have for it.
LARGEST_COUNT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be.

    Attributes:
        allowed: The words; they end the sentence "use …".
        check: Returns the value as it is kept, or raises a ``TypeError`` or ``ValueError``.
        read: Turns a text, such as an environment variable's, into what ``check`` takes; raises
            a ``ValueError``.
    """

    allowed: str
    check: Callable[[Any], Any]
    read: Callable[[str], Any] = str


def whole(least: int, most: int = LARGEST_COUNT, *, unlimited: bool = False) -> Rule:
    """A whole number; with ``unlimited`` also ``math.inf``."""

    def check(value: object) -> Limit:
        if unlimited and value == math.inf:
            return math.inf
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(value)
        return value

    allowed = f"a whole number from {least} to {most:,}"
    return Rule(allowed + ", or math.inf" * unlimited, check, _read_whole)


def duration(*, zero: bool) -> Rule:
    """A duration, kept as seconds or ``math.inf``; ``zero`` tells whether it may be 0."""

    def check(value: Any) -> float:
        ms = to_ms(value, "it")
        if ms == 0 and not zero:
            raise ValueError(value)
        return math.inf if ms is None else ms / 1_000

    least = "of 0 or more" if zero else "over 0"
    return Rule(f"seconds {least} (a number or a timedelta), or math.inf", check, float)


def choice(*choices: str) -> Rule:
    """One of a few words, in upper or lower case."""

    def check(value: object) -> str:
        for word in choices:
            if isinstance(value, str) and value.lower() == word.lower():
                return word
        raise ValueError(value)

    return Rule(f"{', '.join(choices[:-1])} or {choices[-1]}", check)


def flag() -> Rule:
    """True or False."""
    return Rule("true or false", _check_flag, _read_flag)


def size() -> Rule:
    """Bytes, also as ``"200M"`` (K, M and G are powers of 1,024), or ``math.inf``."""
    return Rule('bytes (209715200 or "200M"), or math.inf', _check_size, _read_size)


def exceptions() -> Rule:
    """Exception classes, kept as a tuple; only code can give them."""
    return Rule("an exception class or a list of them, in code", _check_classes, _read_nothing)


def texts() -> Rule:
    """Texts by name; in a text they are JSON."""
    return Rule("a dict of str to str, of valid Unicode", _check_texts, json.loads)


def _check_classes(value: Any) -> tuple[type[BaseException], ...]:
    many = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else (value,)
    if all(isinstance(each, type) and issubclass(each, BaseException) for each in many):
        return tuple(many)
    raise TypeError("no exception classes")


def _read_nothing(text: str) -> object:
    raise ValueError(text)


def _check_texts(value: object) -> dict[str, str]:
    if not are_texts(value):
        raise TypeError("no texts by name")
    return dict(value)


def are_texts(value: object) -> TypeGuard[Mapping[str, str]]:
    """Whether it is a mapping of texts to texts that can be encoded: a lone surrogate cannot."""
    if not isinstance(value, Mapping):
        return False
    given = cast("Mapping[object, object]", value)
    return all(_is_encodable(text) for item in given.items() for text in item)


def _is_encodable(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_whole(text: str) -> Limit:
    return math.inf if text.lower() == "inf" else int(text)


def _check_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _read_flag(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(text)


def _check_size(value: object) -> Limit:
    if isinstance(value, str):
        value = _read_size(value)
    if value == math.inf:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _read_size(text: str) -> Limit:
    parts = re.fullmatch(r"(\d+)\s*([KMG]?)(iB|B)?", text.strip(), re.IGNORECASE)
    if parts is None:
        return _read_whole(text)
    return int(parts[1]) << 10 * " KMG".index(parts[2].upper() or " ")
