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

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from msgpack import ExtType, Packer, unpackb

from conveyor.errors import ConfigurationError, ConveyorError, SerializationError
from conveyor.forms import (
    BUILTIN,
    BUILTIN_NAMES,
    DICT,
    INT,
    MARK,
    Form,
    Opaque,
    Refused,
    dataclass_form,
    enum_form,
    is_buildable,
    may_travel,
    opaque_form,
    title_of,
    types_in,
    wire_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Codec", "Opaque", "types_in"]

#: The other extensions that there may be; -1 is a timestamp.
_FOREIGN = {f"ext:{code}": code for code in range(-128, 128) if code not in (MARK, -1)}

#: Most containers inside one another; each is at most two of msgpack's, whose least limit is 511.
_DEPTH = 200

#: What msgpack writes as it is, but for an int beyond 64 bits, and what names an argument.
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_NAMES = frozenset({str})


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
        self._by_type = {form.kind: form for form in BUILTIN}
        self._by_name = {form.name: form for form in BUILTIN}
        self._later: dict[str, Callable[[], Iterable[type]]] = {}
        self.register(*types)

    def register(self, *types: type) -> None:
        """Let more dataclasses and Enums travel, with those that their fields' annotations name.

        Registering a type again changes nothing; another class of the same module and name (a
        module reloaded, a notebook cell run again) takes the place of the former.

        Raises:
            ConfigurationError: A type is neither a dataclass nor an Enum.
        """
        for kind in types:
            if not may_travel(kind):
                raise ConfigurationError(
                    f"{kind!r} is neither a dataclass nor an Enum; take it out of types="
                )
            for found in types_in(kind):
                self._add(found)

    def register_later(self, task: str, find: Callable[[], Iterable[type]]) -> None:
        """Register what else a task names, once a value is met of a type that is not known yet.

        Args:
            task: Its name; only the last that was given for it counts.
            find: Gives the types; none takes the place of one that is known by its name.

        Example:
            >>> codec.register_later("app.draw", partial(annotated_types, draw))  # and those below
        """
        self._later[task] = find

    def _add(self, kind: type) -> None:
        """Threads may add the same type at once, and an exception may end it anywhere."""
        if kind in self._by_type or not is_buildable(kind):
            return
        form = enum_form(kind) if issubclass(kind, Enum) else dataclass_form(kind)
        former = self._by_name.get(form.name)
        self._by_type[kind] = form
        self._by_name[form.name] = form
        if former and former.kind is not kind:
            self._by_type.pop(former.kind, None)

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
        reader = _Reader(self._form_named)
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
                raise Refused("a keyword argument's name is not a str; rename it")
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
            raise Refused(_TOO_DEEP)
        if kind is list:
            if _PLAIN.issuperset(map(type, value)):
                return value
            return [self._lower(item, room - 1) for item in value]
        if kind is dict:
            return self._lower_dict(value, room - 1)
        if kind is Opaque:
            return self._lower_opaque(value, room - 1)
        form = self._by_type.get(kind) or self._form_of(kind)
        simpler = self._lower(form.simplify(value), room)
        if kind is set or kind is frozenset:
            simpler = sorted(simpler, key=_pack)  # equal sets give equal bytes
        return form.mark, simpler

    def _lower_dict(self, value: dict[Any, Any], room: int) -> Any:
        if not _PLAIN.issuperset(map(type, value)):
            # Lowered, its keys may not be hashable.
            return DICT.mark, [self._lower(item, room) for item in DICT.simplify(value)]
        if _PLAIN.issuperset(map(type, value.values())):
            return value
        return {key: self._lower(item, room) for key, item in value.items()}

    def _lower_opaque(self, value: Opaque, room: int) -> Any:
        if value.type in _FOREIGN and type(value.value) is bytes:
            # By _make, as the constructor refuses codes that msgpack reserves.
            return ExtType._make((_FOREIGN[value.type], value.value))
        form = opaque_form(value.type)
        if form.name in BUILTIN_NAMES:
            raise Refused(f"Opaque of the builtin type {value.type!r}; send the value itself")
        return form.mark, self._lower(value.value, room)

    def _form_of(self, kind: type) -> Form:
        self._register_rest()
        form = self._by_type.get(kind)
        if form is None:
            raise Refused(self._why_not(kind))
        return form

    def _form_named(self, name: bytes) -> Form:
        form = self._by_name.get(name)
        if form is None:
            self._register_rest()
            form = self._by_name.get(name) or opaque_form(name.decode())
        return form

    def _register_rest(self) -> None:
        for task, find in tuple(self._later.items()):
            try:
                for kind in find():
                    if wire_name(kind).encode() not in self._by_name:
                        self._add(kind)
            finally:
                self._later.pop(task, None)

    def _why_not(self, kind: type) -> str:
        """Return why a value of this type is refused, and what to do."""
        title = title_of(kind)
        if may_travel(kind):
            if not is_buildable(kind):
                return f"{title} is a dataclass on top of a builtin type; make that a field of it"
            if wire_name(kind).encode() in self._by_name:
                return f"{title} is not the class known by that name; rename one of the two"
            names = f"the task's annotations or in Conveyor(types=[{kind.__name__}])"
            return f"{title} is not a registered type; name it in {names}"
        for base in (bytes,) if kind in (bytearray, memoryview) else kind.__mro__:
            if base in _PLAIN or base is list or base in self._by_type:
                return f"{title} would come back as {title_of(base)}; convert it to that"
        return f"{title} cannot travel; send builtin types or a dataclass of them"


_TOO_DEEP = f"circular, or more than {_DEPTH} containers in one another; flatten it"


def _reason(error: Exception) -> str:
    if isinstance(error, Refused):
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


def _lower_int(value: int) -> Any:
    return INT.mark, INT.simplify(value)


def _pack(lowered: Any) -> bytes:
    # One Packer serves one call at a time, while threads, signal handlers and finalizers may all
    # enqueue. A new one costs 50 ns.
    packed: bytes = Packer(default=_lower_int).pack(lowered)
    return packed


@dataclass(slots=True)
class _Reader:
    """The hooks of one decoding; `unread` counts the marks whose node has not ended."""

    form_named: Callable[[bytes], Form]
    unread: int = 0

    def read_ext(self, code: int, data: bytes) -> object:
        if code != MARK:
            return Opaque(f"ext:{code}", data)
        self.unread += 1
        return self.form_named(data)

    def read_list(self, items: list[Any]) -> Any:
        if len(items) != 2 or type(items[0]) is not Form:
            return items
        self.unread -= 1
        return items[0].build(items[1])
