"""The codec: what cannot travel is refused, and named; also what is too deep."""

from __future__ import annotations

import array
import collections
import enum
import functools
import io
import os
import sys
import types
from dataclasses import dataclass
from datetime import datetime, time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from codec_samples import (
    Line,
    Moment,
    Node,
    OddZone,
    Pair,
    Point,
    Shape,
    Str,
    Unregistered,
    refusal,
    trip,
)

from conveyor.codec import Codec, Opaque
from conveyor.errors import ConveyorError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable


class Mean:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class IsList(list):  # type: ignore[type-arg]
    pass


REFUSED = [
    (bytearray(b"a"), "bytearray would come back as bytes; convert it to that"),
    (memoryview(b"a"), "memoryview would come back as bytes; convert it to that"),
    (Pair(1, 2), "codec_samples.Pair would come back as tuple; convert it to that"),
    (collections.OrderedDict(), "collections.OrderedDict would come back as dict; convert"),
    (collections.defaultdict(int), "collections.defaultdict would come back as dict; convert"),
    (collections.Counter(), "collections.Counter would come back as dict; convert"),
    (Str("a"), "codec_samples.Str would come back as str; convert it to that"),
    (IsList(), "test_codec_refusals.IsList would come back as list; convert it to that"),
    (Moment(2026, 1, 1), "codec_samples.Moment would come back as datetime.datetime; convert"),
    (msgpack.ExtType(1, b"tuple"), "msgpack.ext.ExtType would come back as tuple; convert"),
    (msgpack.Timestamp(1), "msgpack.ext.Timestamp cannot travel; send builtin types or a datacl"),
    (object(), "object cannot travel; send builtin types or a dataclass of them"),
    (int, "type cannot travel"),
    (len, "builtin_function_or_method cannot travel"),
    (Mean(), "test_codec_refusals.Mean cannot travel"),
    (Fraction(1, 2), "fractions.Fraction cannot travel"),
    (range(3), "range cannot travel"),
    ((i for i in ()), "generator cannot travel"),
    (io.BytesIO(), "_io.BytesIO cannot travel"),
    (array.array("i"), "array.array cannot travel"),
    (collections.deque(), "collections.deque cannot travel"),
    (types.MappingProxyType({}), "mappingproxy cannot travel"),
    (ValueError("x"), "ValueError cannot travel"),
    (Unregistered(1), "codec_samples.Unregistered is not a registered type; name it in the task's "
     "annotations or in Conveyor(types=[Unregistered])"),
    (Shape.UNREGISTERED, "codec_samples.Shape is not a registered type; name it in the task's "
     "annotations or in Conveyor(types=[Shape])"),
    ("\ud800", "str with a lone surrogate, for which UTF-8 has no form; send bytes"),
    (Path(os.fsdecode(b"\xff")), "str with a lone surrogate"),
    (datetime(2026, 1, 1, tzinfo=OddZone()), "tzinfo codec_samples.OddZone cannot travel; use"),
    (time(1, tzinfo=OddZone()), "tzinfo codec_samples.OddZone cannot travel"),
    (Opaque("tuple", [1]), "Opaque of the builtin type 'tuple'; send the value itself"),
    (Opaque(5, 1), "it cannot be read (AttributeError: "),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_travel_is_refused_wherever_it_is(
    codec: Codec, value: Any, message: str
) -> None:
    assert refusal(codec, value).startswith(message)
    for outer in ([value], [1, {"k": value}], (value,), Point(value), Opaque("a:B", [value])):
        assert refusal(codec, outer).startswith(message)
    try:
        hash(value)
    except TypeError:
        return
    for outer in ({value}, frozenset({value}), {value: 1}, {(1, value): 1}):
        assert refusal(codec, outer).startswith(message)


def test_zone_made_from_a_file_has_no_key_and_is_refused(codec: Codec) -> None:
    utc = b"TZif" + bytes(16 + 16) + bytes([0, 0, 0, 1, 0, 0, 0, 4]) + bytes(6) + b"UTC\0"
    zone = ZoneInfo.from_file(io.BytesIO(utc))
    assert refusal(codec, time(1, tzinfo=zone)).startswith("tzinfo zoneinfo.ZoneInfo cannot travel")


def test_dataclass_on_top_of_a_builtin_type_is_refused() -> None:
    @dataclass
    class Oops(Exception):
        code: int

    text = refusal(Codec([Oops]), Oops(1))
    assert text.endswith(".Oops is a dataclass on top of a builtin type; make that a field of it")


def test_subclass_of_a_registered_dataclass_is_refused(codec: Codec) -> None:
    class Special(Point):
        pass

    assert "Special is not a registered type" in refusal(codec, Special(1))


def test_field_that_was_never_set_is_refused(codec: Codec) -> None:
    value = object.__new__(Point)
    text = refusal(codec, value)
    assert text.startswith("it cannot be read (AttributeError: ")
    assert text.endswith("Point' object has no attribute 'x'); send plain values")


def test_error_of_a_value_s_own_code_is_a_refusal() -> None:
    @dataclass
    class Sour:
        x: int

        def __getattribute__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    assert "(ZeroDivisionError: x)" in refusal(Codec([Sour]), object.__new__(Sour))


def test_end_of_the_run_is_not_taken_for_a_refusal() -> None:
    @dataclass
    class Late:
        x: int

        def __getattribute__(self, name: str) -> Any:
            raise ConveyorError("timed out, as a signal handler would raise")

    with pytest.raises(ConveyorError, match="timed out") as caught:
        Codec([Late]).encode(object.__new__(Late), "")
    assert not isinstance(caught.value, SerializationError)


def test_enum_member_that_its_class_does_not_list_is_refused() -> None:
    class Open(enum.Enum):
        ONE = 1

        @classmethod
        def _missing_(cls, value: object) -> Open:
            member = object.__new__(cls)
            member._name_, member._value_ = f"N{value}", value
            return member

    codec = Codec([Open])
    trip(codec, Open.ONE)
    assert refusal(codec, Open(2)).endswith("Open does not list this member; send its value")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, bytearray()), {}, "add(): argument 'y': bytearray would come back as bytes; convert"),
        ((bytearray(),), {}, "add(): argument 'x': bytearray would"),
        ((1, 2, "\ud800"), {}, "add(): argument 3: str with a lone surrogate"),
        ((1, [(2**70, {"a": b"", "b": {object()}})]), {}, "add(): argument 'y': object cannot"),
        ((2**70,), {"y": Pair(1, 2)}, "add(): argument 'y': codec_samples.Pair would"),
        (
            (1,),
            {"a\n": Unregistered(1)},
            "add(): argument 'a\\n': codec_samples.Unregistered is not",
        ),
        ((1,), {"\ud800": 1}, "add(): str with a lone surrogate, for which UTF-8"),
        ((1,), {5: 1}, "add(): a keyword argument's name is not a str; rename it"),
        ((1,), {Str("y"): 1}, "add(): a keyword argument's name is not a str; rename it"),
    ],
)
def test_refused_argument_is_named(
    codec: Codec, args: tuple[Any, ...], kwargs: dict[Any, Any], message: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        codec.encode_call("add", args, kwargs, ("x", "y"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_refusal_never_shows_the_value(codec: Codec) -> None:
    for value in (bytearray(b"hunter2"), "hunter2\ud800", Unregistered(x="hunter2")):  # type: ignore[arg-type]
        assert "hunter2" not in refusal(codec, {"password": [value]})


NESTS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "dict": lambda inner: {"k": inner},
    "dict with other keys": lambda inner: {(): inner},
    "tuple": lambda inner: (inner,),
    "frozenset": lambda inner: frozenset([inner]),
    "key": lambda inner: {(inner,): 1} if isinstance(inner, int) else {"k": inner},
    "dataclass": Point,
    "linked list": lambda inner: Node(1, inner),
    "opaque": lambda inner: Opaque("gone:Type", inner),
    "mixture": lambda inner: [Point((inner,))],
}


@pytest.mark.parametrize("build", NESTS.values(), ids=NESTS.keys())
def test_deep_value_comes_back_or_is_refused(
    codec: Codec, build: Callable[[Any], Any], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(5000)  # the limit is the codec's own
    outcomes: list[str] = []
    value: Any = 1
    for depth in range(1, 1200):
        value = build(value)
        if depth % 50 in (0, 1, 2, 49):
            try:
                data = codec.encode_call("deep", (value,), {"k": value})
            except SerializationError as error:
                outcomes.append(str(error))
            else:
                (arg,), kwargs = codec.decode_call(data)
                outcomes.append("same" if arg == kwargs["k"] == value else "different")
    reason = "circular, or more than 200 containers in one another; flatten it"
    refused = outcomes.count(f"deep(): argument 1: {reason}")
    assert 60 < refused < len(outcomes)
    assert outcomes[:-refused] == ["same"] * (len(outcomes) - refused)


def test_circular_value_is_refused(codec: Codec) -> None:
    loop: list[Any] = [1]
    loop.append({"k": (loop, loop)})
    assert refusal(codec, loop).startswith("circular, or more than 200")
    line = Line(Point(1))
    line.end = Point(line)
    assert refusal(codec, line).startswith("circular, or more than 200")


def test_little_stack_left_is_a_refusal_too(codec: Codec) -> None:
    value: Any = 1
    for _ in range(100):
        value = (value, [Point(2)])
    data = codec.encode(value, "")

    def descend(frames: int, action: Callable[[], Any]) -> Any:
        return descend(frames - 1, action) if frames else action()

    depth = len(list(iter_frames()))
    outcomes: set[str] = set()
    for left in range(30, 900, 20):
        frames = sys.getrecursionlimit() - depth - left
        assert descend(frames, functools.partial(codec.decode, data)) is not None
        try:
            assert descend(frames, functools.partial(codec.encode, value, "deep")) == data
            outcomes.add("encoded")
        except SerializationError as error:
            outcomes.add(str(error)[:14])
    assert outcomes == {"encoded", "deep: circular"}


def iter_frames() -> Any:
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]
