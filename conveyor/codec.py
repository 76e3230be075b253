"""Values to bytes and back: every one comes back equal and of the same type, or is refused.

On the wire a payload is msgpack. What msgpack knows (None, bool, int, float, str, bytes, list,
dict) travels as itself. Any other value is a *node*: an array of two, the mark `ext(1, name)` and
the value in simpler terms:

    (1, 2)           [ext(1, "tuple"), [1, 2]]
    Decimal("1.5")   [ext(1, "decimal"), "1.5"]
    Point(x=1)       [ext(1, "app.shapes:Point"), {"x": 1}]
    Color.RED        [ext(1, "app.shapes:Color"), "RED"]

No user value is encoded as a mark, so none can imitate a node. Encoding first lowers a value to
msgpack's own types (there exact types, depth and cycles are checked), then packs it in C. Decoding
is one pass in C that builds nodes from the inside out, so it never recurses.

Whatever goes wrong is a `SerializationError`. A value is refused before anything is sent: a type
that cannot travel, a subclass that would come back as its base, text that is not UTF-8, more than
200 levels. Bytes that are truncated, altered or hostile are refused in bounded time and memory. A
name in a payload is only looked up among the registered types, never imported; an unknown one
becomes an `Opaque`, which encodes to what it was decoded from.
"""

# Its values are of any type, and msgpack has no types.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from msgpack import ExtType, Packer, unpackb

from conveyor.errors import ConfigurationError, ConveyorError, SerializationError

#: The msgpack extension code of a mark.
_MARK = 1

#: The other extensions that there may be; -1 is a timestamp.
_FOREIGN = {f"ext:{code}": code for code in range(-128, 128) if code not in (_MARK, -1)}

#: Most containers inside one another; each is at most two of msgpack's, whose least limit is 511.
_DEPTH = 200

#: What msgpack writes as it is, but for an int beyond 64 bits, and what names an argument.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_NAMES = frozenset({str})


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


class Codec:
    """Encodes and decodes calls and values; one may be shared by threads and across a fork.

    A dataclass is built without running its code (`__new__`, `__init__`, `__post_init__`,
    `__setattr__`): its fields, those with `init=False` too, are set to what they held. What is not
    a field does not travel. Python itself calls `__hash__` and `__eq__` of what is in a set or a
    dict's key, the setter of a field that is a property, and a Flag's `_missing_`.

    Args:
        types: Dataclasses and Enums that may travel besides the builtin types.

    Raises:
        ConfigurationError: One of `types` is neither a dataclass nor an Enum.

    Example:
        >>> codec = Codec([Point])
        >>> codec.decode(codec.encode(Point(x=1), "result"))
        Point(x=1)
    """

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._by_type = {form.kind: form for form in _BUILTIN}
        self._by_name = {form.name: form for form in _BUILTIN}
        self.register(*types)

    def register(self, *types: type) -> None:
        """Let more dataclasses and Enums travel, with those that their fields' annotations name.

        Registering a type again changes nothing; another class of the same module and name (a
        module reloaded, a notebook cell run again) takes the place of the former.

        Raises:
            ConfigurationError: A type is neither a dataclass nor an Enum.
        """
        for kind in types:
            if not _may_travel(kind):
                raise ConfigurationError(
                    f"{kind!r} is neither a dataclass nor an Enum; take it out of types="
                )
            for found in types_in(kind):
                if found in self._by_type or not _is_buildable(found):
                    continue
                form = _enum_form(found) if issubclass(found, Enum) else _dataclass_form(found)
                former = self._by_name.get(form.name)
                self._by_name[form.name] = self._by_type[found] = form
                if former:
                    del self._by_type[former.kind]

    def encode(self, value: object, what: str) -> bytes:
        """Return `value` as bytes; the message of an error begins with `what` it is.

        Raises:
            SerializationError: The value, or one inside it, cannot travel.
        """
        try:
            return _pack(self._lower(value, _DEPTH))
        except ConveyorError:  # a timeout or a cancellation of the run we are in
            raise
        except Exception as error:
            raise SerializationError(f"{what}: {_reason(error)}") from None

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value that `data` was encoded from.

        A msgpack timestamp, which Conveyor does not write, becomes a `datetime` in UTC.

        Raises:
            SerializationError: The bytes are malformed, or a registered type has changed since.
        """
        reader = _Reader(self._by_name)
        try:
            # The lengths it may declare are bounded by its own, which is msgpack's default.
            value = unpackb(
                data,
                ext_hook=reader.read_ext,
                list_hook=reader.read_list,
                strict_map_key=False,
                timestamp=3,
            )
        except ConveyorError:
            raise
        except Exception as error:
            # Without text and chain, which may quote an argument.
            raise _malformed(type(error).__name__) from None
        if reader.unread:
            raise _malformed("a mark that marks nothing")
        return value

    def encode_call(
        self,
        task: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parameters: Sequence[str] = (),
    ) -> bytes:
        """Return the arguments of a call as bytes: `[list(args), kwargs]`.

        Args:
            task: The task's name, for the message of an error.
            args: Positional arguments.
            kwargs: Keyword arguments.
            parameters: Names of the positional parameters, for the message of an error.

        Raises:
            SerializationError: An argument cannot travel (`add(): argument 'y': ...`).
        """
        try:
            if kwargs and not _NAMES.issuperset(map(type, kwargs)):
                raise _Refused("a keyword argument's name is not a str; rename it")
            return _pack((self._lower(list(args), _DEPTH + 1), self._lower(kwargs, _DEPTH + 1)))
        except ConveyorError:
            raise
        except Exception as error:
            reason = _reason(error)
        for number, value in enumerate(args):
            name = repr(parameters[number]) if number < len(parameters) else number + 1
            self.encode(value, f"{task}(): argument {name}")
        for name, value in kwargs.items():
            self.encode(value, f"{task}(): argument {name!r}")
        raise SerializationError(f"{task}(): {reason}")

    def decode_call(self, data: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments that `data` was encoded from.

        Raises:
            SerializationError: As for `decode`, or the bytes are no call.
        """
        match self.decode(data):
            case [list() as args, dict() as kwargs] if _NAMES.issuperset(map(type, kwargs)):
                return tuple(args), kwargs
            case _:
                raise _malformed("not a call")

    def _lower(self, value: Any, room: int) -> Any:
        """Return `value` in the types that msgpack writes, a node being a tuple of two."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if not room:
            raise _Refused(_TOO_DEEP)
        if kind is list:
            if _PLAIN.issuperset(map(type, value)):
                return value
            return [self._lower(item, room - 1) for item in value]
        if kind is dict:
            return self._lower_dict(value, room - 1)
        if kind is Opaque:
            return self._lower_opaque(value, room - 1)
        form = self._by_type.get(kind)
        if form is None:
            raise _Refused(self._why_not(kind))
        simpler = self._lower(form.simplify(value), room)
        if kind is set or kind is frozenset:
            simpler = sorted(simpler, key=_pack)  # equal sets give equal bytes
        return form.mark, simpler

    def _lower_dict(self, value: dict[Any, Any], room: int) -> Any:
        if not _PLAIN.issuperset(map(type, value)):
            # Lowered, its keys may not be hashable.
            return _DICT.mark, [self._lower(item, room) for item in _DICT.simplify(value)]
        if _PLAIN.issuperset(map(type, value.values())):
            return value
        return {key: self._lower(item, room) for key, item in value.items()}

    def _lower_opaque(self, value: Opaque, room: int) -> Any:
        if value.type in _FOREIGN and type(value.value) is bytes:
            # By _make, as the constructor refuses codes that msgpack reserves.
            return ExtType._make((_FOREIGN[value.type], value.value))
        form = _opaque_form(value.type)
        if form.name in _BUILTIN_NAMES:
            raise _Refused(f"Opaque of the builtin type {value.type!r}; send the value itself")
        return form.mark, self._lower(value.value, room)

    def _why_not(self, kind: type) -> str:
        """Return why a value of this type is refused, and what to do."""
        title = _title(kind)
        if _may_travel(kind):
            if not _is_buildable(kind):
                return f"{title} is a dataclass on top of a builtin type; make that a field of it"
            if _name(kind).encode() in self._by_name:
                return f"{title} is not the class known by that name; rename one of the two"
            names = f"the task's annotations or in Conveyor(types=[{kind.__name__}])"
            return f"{title} is not a registered type; name it in {names}"
        for base in (bytes,) if kind in (bytearray, memoryview) else kind.__mro__:
            if base in _PLAIN or base is list or base in self._by_type:
                return f"{title} would come back as {_title(base)}; convert it to that"
        return f"{title} cannot travel; send builtin types or a dataclass of them"


def types_in(annotation: object) -> set[type]:
    """Return the dataclasses and Enums that an annotation names, and those that their fields name.

    It looks into generics, unions, `Annotated`, `Literal`, `NewType`, type aliases and the bounds
    of type variables. A field's annotation that only type checkers can resolve names nothing.

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
        if _may_travel(item):
            found.add(item)
            todo += _field_types(item)
        elif isinstance(item, Enum):  # in a Literal
            todo.append(type(item))
        elif not isinstance(item, type):
            origin, arguments = typing.get_origin(item), typing.get_args(item)
            todo += arguments[:1] if origin is typing.Annotated else (origin, *arguments)
            if behind := _BEHIND.get(type(item).__name__):
                todo.append(getattr(item, behind))
    return found


#: Where the annotation is that one of these stands for; Python 3.11 has no TypeAliasType.
_BEHIND = {"NewType": "__supertype__", "TypeAliasType": "__value__", "TypeVar": "__bound__"}


def _field_types(kind: Any) -> Iterator[Any]:
    """Yield the annotations of a dataclass's fields."""
    for field in () if issubclass(kind, Enum) else fields(kind):
        # Text means something in the module of the class that declares the field. Its own names
        # come after the module's: `date: date | None = None` would hide its type.
        owner = next(b for b in kind.__mro__[::-1] if _may_travel(b) and field in fields(b))
        names = {**vars(owner), owner.__name__: owner}
        module = getattr(sys.modules.get(owner.__module__), "__dict__", {})
        probe = SimpleNamespace(__annotations__={field.name: field.type})
        try:
            yield from typing.get_type_hints(probe, names, module).values()
        except (AttributeError, NameError, SyntaxError, TypeError):
            continue  # `encode` will refuse such a value and say what to do


def _may_travel(kind: object) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Enum))


def _is_buildable(kind: type) -> bool:
    """Tell whether an object of this type is its fields alone; an Exception, say, holds more."""
    return issubclass(kind, Enum) or not any(
        isinstance(vars(base).get("__new__"), BuiltinFunctionType)
        for base in kind.__mro__
        if base is not object
    )


def _name(kind: type) -> str:
    """Return `module:qualname`, for a script run as a program with the name to import it by."""
    module = kind.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{module}:{kind.__qualname__}"


def _title(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


class _Refused(Exception):
    """Why a value cannot travel and what to do, without what it is, which the caller knows."""


_TOO_DEEP = f"circular, or more than {_DEPTH} containers in one another; flatten it"


def _reason(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, UnicodeEncodeError):
        return "str with a lone surrogate, for which UTF-8 has no form; send bytes"
    return f"it cannot be read ({type(error).__name__}: {error}); send plain values"


def _malformed(cause: str) -> SerializationError:
    return SerializationError(
        f"the payload is malformed ({cause}), damaged or not written by Conveyor; send it again"
    )


def _hashable(value: Any) -> Any:
    """Return what is hashable, as far as what it holds is, and equal for equal values."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return frozenset(value) if isinstance(value, set) else value


def _pack(lowered: Any) -> bytes:
    # One Packer serves one call at a time, while threads, signal handlers and finalizers may all
    # enqueue. A new one costs 50 ns.
    packed: bytes = Packer(default=_lower_int).pack(lowered)
    return packed


@dataclass(slots=True)
class _Reader:
    """The hooks of one decoding; `unread` counts the marks whose node has not ended."""

    by_name: dict[bytes, _Form]
    unread: int = 0

    def read_ext(self, code: int, data: bytes) -> object:
        if code != _MARK:
            return Opaque(f"ext:{code}", data)
        self.unread += 1
        return self.by_name.get(data) or _opaque_form(data.decode())

    def read_list(self, items: list[Any]) -> Any:
        if len(items) != 2 or type(items[0]) is not _Form:
            return items
        self.unread -= 1
        return items[0].build(items[1])


_Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """How values of one type travel: `simplify` takes them apart and `build` puts them together."""

    kind: type
    name: bytes
    mark: Any
    simplify: _Step
    build: _Step


def _form(kind: type, name: str, simplify: _Step, build: _Step) -> _Form:
    encoded = name.encode()
    return _Form(kind, encoded, ExtType(_MARK, encoded), simplify, build)


def _opaque_form(name: str) -> _Form:
    return _form(Opaque, name, lambda opaque: opaque.value, partial(Opaque, name))


def _dataclass_form(kind: Any) -> _Form:
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

    return _form(kind, _name(kind), simplify, build)


def _enum_form(kind: Any) -> _Form:
    """Members travel by name; those of a Flag by number, as combinations need not have names."""
    is_flag = issubclass(kind, Flag)

    def simplify(member: Any) -> Any:
        if is_flag:
            return member._value_
        if kind.__members__.get(member._name_) is not member:
            raise _Refused(f"{_title(kind)} does not list this member; send its value")
        return member._name_

    def build(simple: Any) -> Any:
        try:
            member = kind(simple) if is_flag else kind.__members__[simple]
        except (KeyError, ValueError):
            raise _changed(kind, "other members") from None
        if is_flag and (type(member) is not kind or member._value_ != simple):
            raise _changed(kind, "other members")
        return member

    return _form(kind, _name(kind), simplify, build)


def _changed(kind: type, how: str) -> SerializationError:
    return SerializationError(
        f"{_title(kind)} had {how} where this was encoded; run the same version on both sides"
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
        raise _Refused(f"tzinfo {_title(type(zone))} cannot travel; use a zoneinfo.ZoneInfo by key")
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
        raise _Refused("path that its text does not stand for; send it as str")
    return str(path)


def _simplify_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _lower_int(value: int) -> Any:
    return _INT.mark, _INT.simplify(value)


_INT = _form(int, "int", _simplify_int, partial(int.from_bytes, byteorder="big", signed=True))
_DICT = _form(dict, "dict", lambda d: [x for pair in d.items() for x in pair], _build_dict)
_BUILTIN = (
    _INT,
    _DICT,
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
_BUILTIN_NAMES = frozenset(form.name for form in _BUILTIN)
