"""How one type travels: taken apart into simpler terms and put together again, and which types may.

A `Form` is both ways of one type. The builtin ones are in the table at the end; those of
dataclasses and Enums are made when a type is registered. Taking apart raises `Refused` for a value
that would not come back the same; putting together raises whatever malformed terms make it raise.
"""

# Its values are of any type, and msgpack has no types.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import BuiltinFunctionType, SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgpack import ExtType
from typing_extensions import Format, get_annotations, is_typeddict

from conveyor.errors import SerializationError

#: The msgpack extension code of a mark.
MARK = 1


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of a type this process does not know; it encodes to what it was decoded from.

    Attributes:
        type: The type's name, `"module:qualname"`, or `"ext:N"` for a foreign msgpack extension.
        value: A dataclass's fields as a dict, an Enum member's name, a Flag's number, or bytes.

    Example:
        >>> Codec().decode(Codec([Color]).encode(Color.RED, "result"))
        Opaque(type='app.shapes:Color', value='RED')
    """

    type: str
    value: Any

    def __hash__(self) -> int:
        # It takes the place of a hashable value in a set or as a dict's key, whatever it holds.
        return hash((self.type, _hashable(self.value)))


def types_in(annotation: object) -> set[type]:
    """Return the dataclasses and Enums that an annotation names, and those that their fields name.

    It looks into generics, unions, `Annotated`, `Literal`, `NewType`, `TypedDict`, type aliases and
    the bounds and constraints of type variables. A field's annotation that only type checkers can
    resolve names nothing.

    Example:
        >>> types_in(dict[str, Point | None])
        {<class 'app.shapes.Point'>}
    """
    found: set[type] = set()
    seen: set[int] = set()
    todo: list[Any] = [annotation]
    for item in todo:  # it grows on the way, and keeps alive what `seen` identifies
        if id(item) in seen:
            continue
        seen.add(id(item))
        if may_travel(item):
            found.add(item)
            todo += _field_types(item)
        elif isinstance(item, Enum):  # in a Literal
            todo.append(type(item))
        elif is_typeddict(item):
            module = getattr(sys.modules.get(item.__module__), "__dict__", {})
            todo += resolved(get_annotations(item, format=Format.FORWARDREF), module, {})
        elif not isinstance(item, type):
            origin, arguments = typing.get_origin(item), typing.get_args(item)
            todo += arguments[:1] if origin is typing.Annotated else (origin, *arguments)
            todo += getattr(item, "__constraints__", ())
            if behind := _BEHIND.get(type(item).__name__):
                todo.append(getattr(item, behind))
    return found


def resolved(
    annotations: Mapping[str, Any], module: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[Any]:
    """Yield what annotations mean, but for those that only type checkers can resolve.

    Args:
        annotations: By name; what is text in them is looked up.
        module: Where first.
        own: And then where.
    """
    names = {**own, **module}
    for name, annotation in annotations.items():
        probe = SimpleNamespace(__annotations__={name: annotation})
        try:
            found = typing.get_type_hints(probe, names, include_extras=True)
        except (AttributeError, NameError, SyntaxError, TypeError):
            continue  # `encode` will refuse such a value and say what to do
        yield from found.values()


#: Where the annotation is that one of these stands for; Python 3.11 has no TypeAliasType.
_BEHIND = {"NewType": "__supertype__", "TypeAliasType": "__value__", "TypeVar": "__bound__"}


def _field_types(kind: Any) -> Iterator[Any]:
    """Yield the annotations of a dataclass's fields."""
    for field in () if issubclass(kind, Enum) else fields(kind):
        # Text means something in the module of the class that declares the field. Its own names
        # come after the module's: `date: date | None = None` would hide its type.
        owner = next(b for b in kind.__mro__[::-1] if may_travel(b) and field in fields(b))
        names = {**vars(owner), owner.__name__: owner}
        module = getattr(sys.modules.get(owner.__module__), "__dict__", {})
        yield from resolved({field.name: field.type}, module, names)


def may_travel(kind: object) -> bool:
    """Tell whether it is a dataclass or an Enum."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Enum))


def is_buildable(kind: type) -> bool:
    """Tell whether an object of this type is its fields alone; an Exception, say, holds more."""
    return issubclass(kind, Enum) or not any(
        isinstance(vars(base).get("__new__"), BuiltinFunctionType)
        for base in kind.__mro__
        if base is not object
    )


def wire_name(kind: type) -> str:
    """Return `module:qualname`, the module by the name to import it by."""
    return f"{real_module(kind.__module__)}:{kind.__qualname__}"


def real_module(name: str) -> str:
    """Return by what name others import a module, also a script that is being run.

    `__mp_main__` is that script in a process that `multiprocessing` has started.
    """
    if name not in ("__main__", "__mp_main__"):
        return name
    main = sys.modules[name]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec else Path(file).stem if file else "__main__"


def title_of(kind: type) -> str:
    """Return what a message calls a type."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


class Refused(Exception):
    """Why a value cannot travel and what to do, without what it is, which the caller knows."""


def _hashable(value: Any) -> Any:
    """Return what is hashable, as far as what it holds is, and equal for equal values."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return frozenset(value) if isinstance(value, set) else value


_Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How values of one type travel: `simplify` takes them apart and `build` puts them together."""

    kind: type
    name: bytes
    mark: Any
    simplify: _Step
    build: _Step


def _form(kind: type, name: str, simplify: _Step, build: _Step) -> Form:
    encoded = name.encode()
    return Form(kind, encoded, ExtType(MARK, encoded), simplify, build)


def opaque_form(name: str) -> Form:
    """Return how a value of an unknown type travels."""
    return _form(Opaque, name, lambda opaque: opaque.value, partial(Opaque, name))


def dataclass_form(kind: Any) -> Form:
    """Instances travel as a dict of their fields."""
    names = [field.name for field in fields(kind)]

    def simplify(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def build(simple: dict[str, Any]) -> Any:
        if simple.keys() != set(names):
            raise _changed(kind, "other fields")
        built = object.__new__(kind)
        for name, value in simple.items():
            object.__setattr__(built, name, value)
        return built

    return _form(kind, wire_name(kind), simplify, build)


def enum_form(kind: Any) -> Form:
    """Members travel by name; those of a Flag by number, as combinations need not have names."""
    is_flag = issubclass(kind, Flag)

    def simplify(member: Any) -> Any:
        if is_flag:
            return member._value_
        if kind.__members__.get(member._name_) is not member:
            raise Refused(f"{title_of(kind)} does not list this member; send its value")
        return member._name_

    def build(simple: Any) -> Any:
        try:
            member = kind(simple) if is_flag else kind.__members__[simple]
        except (KeyError, ValueError):
            raise _changed(kind, "other members") from None
        if is_flag and (type(member) is not kind or member._value_ != simple):
            raise _changed(kind, "other members")
        return member

    return _form(kind, wire_name(kind), simplify, build)


def _changed(kind: type, how: str) -> SerializationError:
    return SerializationError(
        f"{title_of(kind)} had {how} where this was encoded; run the same version on both sides"
    )


def _simplify_moment(moment: Any) -> list[Any]:
    return [moment.replace(tzinfo=None).isoformat(), _simplify_zone(moment.tzinfo), moment.fold]


def _build_moment(kind: Any, simple: list[Any]) -> Any:
    text, zone, fold = simple
    return kind.fromisoformat(text).replace(tzinfo=_build_zone(zone), fold=fold)


def _simplify_zone(zone: tzinfo | None) -> Any:
    """Return None, a ZoneInfo's key, or a timezone's [microseconds, and the name it was given]."""
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    if type(zone) is not timezone:
        raise Refused(f"tzinfo {title_of(type(zone))} cannot travel; use a ZoneInfo with a key")
    offset, name = zone.utcoffset(None), zone.tzname(None)
    named = [] if name == timezone(offset).tzname(None) else [name]
    return [offset // timedelta(microseconds=1), *named]


def _build_zone(simple: Any) -> tzinfo | None:
    if simple is None:
        return None
    if isinstance(simple, str):
        try:
            return ZoneInfo(simple)
        except ZoneInfoNotFoundError:
            unknown = f"time zone {simple[:64]!r} is not known here; install tzdata"
            raise SerializationError(unknown) from None
    microseconds, *name = simple
    return timezone(timedelta(microseconds=microseconds), *name)


def _build_dict(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _simplify_path(path: PurePath) -> str:
    if type(path)(str(path)) != path:
        raise Refused("path that its text does not stand for; send it as str")
    return str(path)


def _simplify_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


INT = _form(int, "int", _simplify_int, partial(int.from_bytes, byteorder="big", signed=True))
DICT = _form(dict, "dict", lambda d: [x for pair in d.items() for x in pair], _build_dict)
BUILTIN = (
    INT,
    DICT,
    _form(tuple, "tuple", list, tuple),
    _form(set, "set", list, set),
    _form(frozenset, "frozenset", list, frozenset),
    _form(complex, "complex", lambda c: [c.real, c.imag], lambda terms: complex(*terms)),
    _form(Decimal, "decimal", str, Decimal),
    _form(UUID, "uuid", lambda u: u.bytes, lambda u: UUID(bytes=u)),
    _form(date, "date", date.isoformat, date.fromisoformat),
    _form(datetime, "datetime", _simplify_moment, partial(_build_moment, datetime)),
    _form(time, "time", _simplify_moment, partial(_build_moment, time)),
    _form(
        timedelta,
        "timedelta",
        lambda d: [d.days, d.seconds, d.microseconds],
        lambda d: timedelta(*d),
    ),
    _form(type(Path()), "path", _simplify_path, Path),
    _form(PurePosixPath, "pureposixpath", _simplify_path, PurePosixPath),
    _form(PureWindowsPath, "purewindowspath", _simplify_path, PureWindowsPath),
)
BUILTIN_NAMES = frozenset(form.name for form in BUILTIN)
