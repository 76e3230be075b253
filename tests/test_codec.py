"""The codec: what travels comes back equal and of the same type; all else is refused."""

from __future__ import annotations

import abc
import array
import collections
import contextlib
import enum
import functools
import io
import math
import os
import pathlib
import string
import subprocess
import sys
import threading
import time as clock
import tracemalloc
import types
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, fields, is_dataclass, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from conveyor.codec import Codec, Opaque, types_in
from conveyor.errors import ConfigurationError, ConveyorError, SerializationError

if TYPE_CHECKING:
    from nowhere import Ghost

PARIS = ZoneInfo("Europe/Paris")
T = TypeVar("T")


class Color(enum.Enum):
    RED = "r"
    ROUGE = "r"
    GREEN = (0, 255, 0)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 9


class Mood(enum.StrEnum):
    FINE = enum.auto()


class Perm(enum.Flag):
    R = enum.auto()
    W = enum.auto()


class IntPerm(enum.IntFlag):
    R = 1
    W = 2


@dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = 0


@dataclass
class Line:
    start: Point
    end: Point | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Node:
    value: Any
    next: Node | None = None


@dataclass(kw_only=True)
class Careful:
    """Whose code must not run when it is built again."""

    log: ClassVar[list[str]] = []
    width: int
    height: int
    scale: InitVar[int] = 1
    area: int = field(init=False)
    cache: dict[str, int] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __new__(cls, **_: Any) -> Careful:
        cls.log.append("new")
        return super().__new__(cls)

    def __post_init__(self, scale: int) -> None:
        self.log.append("post_init")
        self.area = self.width * self.height * scale

    def __setattr__(self, name: str, value: object) -> None:
        self.log.append("setattr")
        super().__setattr__(name, value)


@dataclass
class Empty:
    pass


@dataclass(frozen=True)
class Box(Generic[T]):
    item: T


@dataclass(frozen=True)
class Boxed(Box[int]):
    """A dataclass that inherits its fields."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """Hashable whatever it holds."""

    key: int
    rows: Any

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass
class Body:
    mass: int


class Planet(Body, enum.Enum):
    EARTH = 6


class Shape(enum.Enum):
    UNREGISTERED = 1


@dataclass
class Unregistered:
    x: int


class Pair(NamedTuple):
    x: int
    y: int


class Str(str):
    __slots__ = ()


class Moment(datetime):
    pass


class OddZone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=1)


KNOWN = (
    Color,
    Level,
    Mood,
    Perm,
    IntPerm,
    Point,
    Line,
    Node,
    Careful,
    Empty,
    Box,
    Boxed,
    Keyed,
    Planet,
)
TWICE = datetime(2026, 10, 25, 2, 30)


@pytest.fixture
def codec() -> Codec:
    return Codec(KNOWN)


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types all the way down; NaN is NaN and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    match a:
        case float():
            return (
                math.isnan(a)
                if math.isnan(b)
                else (a, math.copysign(1, a))
                == (
                    b,
                    math.copysign(1, b),
                )
            )
        case complex():
            return same(a.real, b.real) and same(a.imag, b.imag)
        case Decimal():
            return a.as_tuple() == b.as_tuple()
        case list() | tuple():
            return len(a) == len(b) and all(map(same, a, b))
        case dict():
            return same(list(a.keys()), list(b.keys())) and same(list(a.values()), list(b.values()))
        case set() | frozenset():
            return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
        case datetime() | time():
            return (
                a.replace(tzinfo=None) == b.replace(tzinfo=None)
                and a.fold == b.fold
                and same_zone(a.tzinfo, b.tzinfo)
            )
        case enum.Enum():
            return a is b
        case _ if is_dataclass(a):
            return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def same_zone(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, timezone):
        return a == b and a.tzname(None) == b.tzname(None)
    return a is b


def trip(codec: Codec, value: Any) -> Any:
    data = codec.encode(value, "value")
    assert type(data) is bytes
    back = codec.decode(data)
    assert same(back, value), f"{back!r} is not {value!r}"
    assert same(codec.decode(memoryview(data)), value)
    return back


def refusal(codec: Codec, value: Any) -> str:
    with pytest.raises(SerializationError) as caught:
        codec.encode(value, "result of add()")
    text = str(caught.value)
    assert text.startswith("result of add(): ")
    assert "\n" not in text
    return text.removeprefix("result of add(): ")


def ext(code: int, data: bytes) -> bytes:
    return bytes([0xC7, len(data), code & 0xFF]) + data


def node(name: str, value: Any) -> bytes:
    """A node as it lies on the wire, whether or not it makes sense."""
    return b"\x92" + ext(1, name.encode()) + msgpack.packb(value)


# -- What travels ----------------------------------------------------------------------------------


VALUES = [
    None, True, False,
    0, 1, -1, 127, 128, -32, -33, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63),
    -(2**63) - 1, 10**5000, -(10**5000), -(2**127), 2**127,
    0.0, -0.0, 1.5, 1e308, 5e-324, math.inf, -math.inf, math.nan,
    "", "a", "é\0\U0001f600", "x" * 70_000, b"", b"\0\xff", b"x" * 70_000,
    [], [[]], {}, {"a": {}}, [None, [1, "a", [2.5]]], list(range(70_000)),
    {1: "int", "a": 1, None: 2, b"b": 3, 2.5: 4}, {True: 1},
    {(1, (2, "x")): [1], frozenset({1}): 2},
    {2**70: 1}, {math.nan: 1}, {Decimal("1.5"): {1}, UUID(int=5): {}}, {"a": (1,), "b": [(2,)]},
    (), (1,), ((),), (1, (2, (3, []))), ([1], {"a": (2,)}),
    set(), {1, 2, 3}, {"a", 1, None, 2.5, b"x", (1, 2)}, {frozenset({1}), frozenset()},
    frozenset(), frozenset({1, "a"}), {math.nan},
    0j, complex(1.5, -0.0), complex(-0.0, math.nan), complex(math.inf, -math.inf),
    Decimal(0), Decimal("-0"), Decimal("1.50"), Decimal("1E+5"), Decimal("1E-400000"),
    Decimal("NaN"), Decimal("-NaN123"), Decimal("sNaN7"), Decimal("-Infinity"),
    Decimal("0." + "1" * 300),
    UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"),
    date.min, date.max, date(2026, 2, 28),
    datetime.min, datetime.max, datetime(2026, 1, 2, 3, 4, 5, 6), TWICE.replace(fold=1),
    datetime(2026, 1, 2, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(seconds=1, microseconds=-1))),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1), "CET")),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(0), "GMT")),
    TWICE.replace(tzinfo=PARIS), TWICE.replace(tzinfo=PARIS, fold=1),
    datetime(2026, 7, 1, tzinfo=ZoneInfo("UTC")),
    time.min, time.max, time(1, 2, 3, 4, tzinfo=UTC), time(1, 2, tzinfo=PARIS, fold=1),
    timedelta(0), timedelta.min, timedelta.max, timedelta(microseconds=-1),
    Path(), Path("a/b"), Path("/"), Path("/é\n"), PurePosixPath("a/../b"), PurePosixPath("//a"),
    PureWindowsPath("C:\\a\\b"), PureWindowsPath("a/b"), PureWindowsPath("\\\\host\\share\\x"),
    Color.RED, Color.ROUGE, Color.GREEN, Level.HIGH, Mood.FINE, {Mood.FINE: Level.LOW},
    Perm.R, Perm.R | Perm.W, Perm(0), ~Perm.R, IntPerm.R, IntPerm.R | IntPerm.W, IntPerm(12),
    Point(1), Point(Point(1, 2), [Point(3)]), Line(Point(1), Point(2), ["a"]), Empty(),
    {Point(1): 1}, Planet.EARTH,
    Node(1, Node((2,), Node({3}))), Box(Box(1)), Boxed(5), {Keyed(1, [2])}, [Keyed(1, [])],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_equal_and_of_the_same_type(codec: Codec, value: Any) -> None:
    trip(codec, value)
    trip(codec, [value, {"k": value}, (value,)])


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**64) - 2, 2**65)
    | st.floats()
    | st.text()
    | st.binary()
)
ZONES = (
    st.none()
    | st.just(UTC)
    | st.sampled_from([PARIS, ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")])
    | st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text())
)
PATHS = st.text(string.ascii_letters + "./\\ ~é", max_size=12)
LEAVES = (
    PLAIN
    | st.builds(lambda t, zone, fold: t.replace(tzinfo=zone, fold=fold),
                st.datetimes() | st.times(), ZONES, st.integers(0, 1))
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=True)
    | st.uuids()
    | st.complex_numbers()
    | PATHS.map(Path)
    | PATHS.map(PurePosixPath)
    | st.sampled_from([*Color, *Level, *Mood, *Perm, Perm(3), Perm(0), *IntPerm, IntPerm(255)])
)  # fmt: skip
HASHABLE = st.recursive(
    LEAVES.filter(lambda value: not isinstance(value, Decimal) or not value.is_snan()),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.frozensets(inner, max_size=4)
        | st.builds(Point, inner, inner)
        | st.builds(Box, inner)
    ),
    max_leaves=5,
)
ANY = st.recursive(
    LEAVES | HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.sets(HASHABLE, max_size=5)
        | st.dictionaries(HASHABLE, inner, max_size=5)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.builds(Point, inner, inner)
        | st.builds(Line, inner, inner, inner)
        | st.builds(Opaque, st.just("gone:Type"), inner)
    ),
    max_leaves=20,
)
EXAMPLES = settings(max_examples=200, deadline=None)


@EXAMPLES
@given(ANY)
def test_any_value_comes_back(value: Any) -> None:
    codec = Codec(KNOWN)
    trip(codec, value)
    assert codec.encode(codec.decode(codec.encode(value, "")), "") == codec.encode(value, "")


@EXAMPLES
@given(st.lists(ANY, max_size=3).map(tuple), st.dictionaries(st.text(), ANY, max_size=3))
def test_any_call_comes_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    codec = Codec(KNOWN)
    assert same(codec.decode_call(codec.encode_call("add", args, kwargs)), (args, kwargs))


@EXAMPLES
@given(ANY)
def test_a_process_that_knows_no_type_passes_a_value_on_unchanged(value: Any) -> None:
    knows, ignorant = Codec(KNOWN), Codec()
    data = knows.encode(value, "")
    passed_on = ignorant.encode(ignorant.decode(data), "")
    assert same(knows.decode(passed_on), value)


@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath, Path])
@EXAMPLES
@given(parts=st.lists(st.text("ab:/\\. ~", max_size=5), max_size=4))
def test_odd_path_comes_back_or_is_refused(kind: Any, parts: list[str]) -> None:
    codec = Codec()
    path = kind(*parts)
    try:
        data = codec.encode(path, "path")
    except SerializationError as error:
        refused = str(error)
    else:
        refused = ""
        assert same(codec.decode(data), path)
    assert refused in ("", "path: path that its text does not stand for; send it as str")


def test_plain_calls_are_plain_msgpack(codec: Codec) -> None:
    kwargs = {"c": {"d": None}}
    assert codec.encode_call("add", (1, "b"), kwargs) == msgpack.packb([[1, "b"], kwargs])
    assert codec.encode_call("add", (), {}) == b"\x92\x90\x80"


def test_encoding_leaves_its_argument_alone(codec: Codec) -> None:
    value = {"a": [(1, {2}), {"b": Point(1)}], (1,): [2]}
    codec.encode_call("add", (value,), {"k": value})
    assert same(value, {"a": [(1, {2}), {"b": Point(1)}], (1,): [2]})


def test_utc_comes_back_as_utc_itself(codec: Codec) -> None:
    assert trip(codec, datetime(2026, 1, 1, tzinfo=UTC)).tzinfo is UTC


def test_dict_keeps_its_order(codec: Codec) -> None:
    assert list(trip(codec, {(2,): 0, "z": 1, 1: 2, "a": 3})) == [(2,), "z", 1, "a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({0, 8}, {8, 0}),
        (frozenset([0, 8, 16, "a"]), frozenset(["a", 16, 8, 0])),
        (
            {frozenset([0, 8]), (1, frozenset([8, 16]))},
            {(1, frozenset([16, 8])), frozenset([8, 0])},
        ),
    ],
)
def test_equal_sets_give_equal_bytes(codec: Codec, one: Any, other: Any) -> None:
    assert one == other
    assert codec.encode(one, "") == codec.encode(other, "")


def test_nested_sets_are_encoded_in_polynomial_time(codec: Codec) -> None:
    value = frozenset({0})
    for number in range(1, 150):
        value = frozenset({number, value})
    trip(codec, value)


def test_dataclass_is_built_without_running_its_code(codec: Codec) -> None:
    value = Careful(width=2, height=3, scale=5)
    value.cache["a"] = 1
    Careful.log.clear()
    back = codec.decode(codec.encode(value, ""))
    assert Careful.log == []
    assert (back.width, back.height, back.area, back.cache) == (2, 3, 30, {"a": 1})
    assert back == value


def test_codec_is_reentrant() -> None:
    """As when a signal handler, a finalizer or a property of a value enqueues on its own."""

    @dataclass
    class Nosy:
        x: int

        def __getattribute__(self, name: str) -> Any:
            if name == "x":
                assert codec.decode(codec.encode(inner, "")) == inner
            return super().__getattribute__(name)

    inner = [(1, 2**80), "a"]
    codec = Codec([Nosy])
    trip(codec, [1, (2, 2**90), Nosy(3), {4}])


def test_one_codec_serves_many_threads(codec: Codec, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    wrong: list[Any] = []

    def work(seed: int) -> None:
        value = [Point(seed, (seed,)), {seed, "a"}, "x" * seed, [2**70 + seed] * 50]
        for _ in range(100):
            try:
                back = codec.decode(codec.encode(value, ""))
            except Exception as error:
                back = error
            if not same(back, value):
                wrong.append(back)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- What is refused -------------------------------------------------------------------------------


class Mean:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class IsList(list):  # type: ignore[type-arg]
    pass


REFUSED = [
    (bytearray(b"a"), "bytearray would come back as bytes; convert it to that"),
    (memoryview(b"a"), "memoryview would come back as bytes; convert it to that"),
    (Pair(1, 2), "test_codec.Pair would come back as tuple; convert it to that"),
    (collections.OrderedDict(), "collections.OrderedDict would come back as dict; convert"),
    (collections.defaultdict(int), "collections.defaultdict would come back as dict; convert"),
    (collections.Counter(), "collections.Counter would come back as dict; convert"),
    (Str("a"), "test_codec.Str would come back as str; convert it to that"),
    (IsList(), "test_codec.IsList would come back as list; convert it to that"),
    (Moment(2026, 1, 1), "test_codec.Moment would come back as datetime.datetime; convert"),
    (msgpack.ExtType(1, b"tuple"), "msgpack.ext.ExtType would come back as tuple; convert"),
    (msgpack.Timestamp(1), "msgpack.ext.Timestamp cannot travel; send builtin types or a datacl"),
    (object(), "object cannot travel; send builtin types or a dataclass of them"),
    (int, "type cannot travel"),
    (len, "builtin_function_or_method cannot travel"),
    (Mean(), "test_codec.Mean cannot travel"),
    (Fraction(1, 2), "fractions.Fraction cannot travel"),
    (range(3), "range cannot travel"),
    ((i for i in ()), "generator cannot travel"),
    (io.BytesIO(), "_io.BytesIO cannot travel"),
    (array.array("i"), "array.array cannot travel"),
    (collections.deque(), "collections.deque cannot travel"),
    (types.MappingProxyType({}), "mappingproxy cannot travel"),
    (ValueError("x"), "ValueError cannot travel"),
    (Unregistered(1), "test_codec.Unregistered is not a registered type; name it in the task's "
     "annotations or in Conveyor(types=[Unregistered])"),
    (Shape.UNREGISTERED, "test_codec.Shape is not a registered type; name it in the task's "
     "annotations or in Conveyor(types=[Shape])"),
    ("\ud800", "str with a lone surrogate, for which UTF-8 has no form; send bytes"),
    (Path(os.fsdecode(b"\xff")), "str with a lone surrogate"),
    (datetime(2026, 1, 1, tzinfo=OddZone()), "tzinfo test_codec.OddZone cannot travel; use"),
    (time(1, tzinfo=OddZone()), "tzinfo test_codec.OddZone cannot travel"),
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
        ((2**70,), {"y": Pair(1, 2)}, "add(): argument 'y': test_codec.Pair would"),
        ((1,), {"a\n": Unregistered(1)}, "add(): argument 'a\\n': test_codec.Unregistered is not"),
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


# -- Depth -----------------------------------------------------------------------------------------


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


# -- Registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [int, dict, Pair, object, 5, "Point", Point(1), list[Point]])
def test_only_dataclasses_and_enums_can_be_registered(what: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Codec([Point, what])
    assert str(caught.value) == (
        f"{what!r} is neither a dataclass nor an Enum; take it out of types="
    )


def test_registering_again_changes_nothing_and_fields_types_come_along() -> None:
    codec = Codec()
    assert "Line is not a registered type" in refusal(codec, Line(Point(1)))
    codec.register(Line)
    codec.register(Line, Line)
    trip(codec, Line(Point(1)))
    trip(codec, Opaque("gone:Type", 1))
    codec.register(Opaque)
    trip(codec, Opaque("gone:Type", 1))


def test_class_defined_anew_takes_the_place_of_the_former() -> None:
    def define() -> type:
        @dataclass
        class Again:
            x: int

        return Again

    former, latter = define(), define()
    codec = Codec([former, latter])
    trip(codec, latter(1))
    text = refusal(codec, former(1))
    assert text.endswith("Again is not the class known by that name; rename one of the two")


def test_script_s_types_are_those_of_the_module_it_is(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from dataclasses import dataclass\n"
        "import sys\n"
        "from conveyor.codec import Codec\n"
        "@dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "if __name__ == '__main__':\n"
        "    sys.stdout.buffer.write(Codec([Order]).encode(Order(5), ''))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for command in (["shop.py"], ["-m", "shop"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        )
        assert Codec().decode(done.stdout) == Opaque("shop:Order", {"number": 5})


# -- Types in annotations --------------------------------------------------------------------------


UserPoint = NewType("UserPoint", Point)
Bound = TypeVar("Bound", bound=Empty)
Points = TypeAliasType("Points", list[Point])


class Endless:
    def __getattr__(self, name: str) -> Endless:
        return Endless()


class Abstract(abc.ABC):
    @abc.abstractmethod
    def area(self) -> int: ...


@dataclass
class Family:
    parent: Family | None
    date: date | None
    ghost: Ghost
    ghosts: list[Ghost | Color]
    mood: Annotated[Mood | None, "a note"] = None
    limit: ClassVar[Level] = Level.LOW


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, set()),
        (None, set()),
        (Any, set()),
        ("Point", set()),
        (Ellipsis, set()),
        (Pair, set()),
        (Abstract, set()),
        (Point, {Point}),
        (Color, {Color}),
        (list[Point], {Point}),
        (dict[str, Point | None], {Point}),
        (dict[Color, tuple[Level, ...]], {Color, Level}),
        (Optional[Point], {Point}),  # noqa: UP045
        (Annotated[list[Color], Level, Endless()], {Color}),
        (Literal[Color.RED, 1], {Color}),
        (Callable[[Point], Color], {Color}),
        (UserPoint, {Point}),
        (Bound, {Empty}),
        (Points, {Point}),
        (dict[str, Points] | UserPoint, {Point}),
        (Box[Color], {Box, Color}),
        (Line, {Line, Point}),
        (list[Node], {Node}),
        (Boxed, {Boxed}),
        (Family, {Family, Mood}),
    ],
)
def test_types_in_an_annotation(annotation: Any, expected: set[type]) -> None:
    assert types_in(annotation) == expected


def test_types_in_ends_for_an_alias_of_itself() -> None:
    tree: Any = type("TypeAliasType", (), {})()
    tree.__value__ = dict[str, tree] | Point
    assert types_in(tree) == {Point}


def test_types_in_a_field_inherited_from_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from enum import Enum\n"
        "class Kind(Enum):\n"
        "    A = 1\n"
        "@dataclass\n"
        "class Base:\n"
        "    kind: Kind\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import elsewhere  # type: ignore[import-not-found]

    @dataclass
    class Derived(elsewhere.Base):  # type: ignore[misc]
        point: Point

    assert types_in(Derived) == {Derived, Point, elsewhere.Kind}


# -- Unknown and changed types ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "opaque"),
    [
        (Point(1, "a"), Opaque("test_codec:Point", {"x": 1, "y": "a"})),
        (Color.GREEN, Opaque("test_codec:Color", "GREEN")),
        (Perm.R | Perm.W, Opaque("test_codec:Perm", 3)),
        ({Keyed(1, [2])}, {Opaque("test_codec:Keyed", {"key": 1, "rows": [2]})}),
        ({Keyed(1, {2})}, {Opaque("test_codec:Keyed", {"key": 1, "rows": {2}})}),
        ({Point((1,)): 1}, {Opaque("test_codec:Point", {"x": (1,), "y": 0}): 1}),
        ([(Point({1}),)], [(Opaque("test_codec:Point", {"x": {1}, "y": 0}),)]),
        (frozenset({Node(1)}), frozenset({Opaque("test_codec:Node", {"value": 1, "next": None})})),
    ],
)
def test_unknown_type_becomes_an_opaque_that_encodes_to_the_same_bytes(
    codec: Codec, value: Any, opaque: Any
) -> None:
    data = codec.encode(value, "")
    ignorant = Codec()
    assert ignorant.decode(data) == opaque
    assert ignorant.encode(ignorant.decode(data), "") == data
    assert same(codec.decode(data), value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ext:1", b"x"), ("ext:-1", b""), ("ext:300", b"x"), ("ext:5", [1]), ("", 1), ("é:\n", 1)],
)
def test_opaque_made_up_by_hand_comes_back(codec: Codec, name: str, value: Any) -> None:
    trip(codec, Opaque(name, value))


@pytest.mark.parametrize("code", [0, 2, 5, 127, -2, -128])
@pytest.mark.parametrize("data", [b"", b"x", b"ab", b"x" * 16, b"y" * 300])
def test_unknown_extension_becomes_an_opaque_that_encodes_to_the_same_bytes(
    codec: Codec, code: int, data: bytes
) -> None:
    payload = msgpack.packb([1, msgpack.ExtType._make((code, data))])
    assert codec.decode(payload) == [1, Opaque(f"ext:{code}", data)]
    assert codec.encode(codec.decode(payload), "") == payload


def test_foreign_timestamp_becomes_a_datetime(codec: Codec) -> None:
    assert codec.decode(msgpack.packb(msgpack.Timestamp(1, 5000))) == (
        datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)
    )


def remade(kind: Any) -> Any:
    kind.__module__, kind.__qualname__ = "test_codec", kind.__name__
    return kind


@pytest.mark.parametrize(
    ("value", "changed", "text"),
    [
        (Point(1), make_dataclass("Point", ["x"]), "test_codec.Point had other fields"),
        (Point(1), make_dataclass("Point", ["x", "y", "z"]), "test_codec.Point had other fields"),
        (Point(1), make_dataclass("Point", ["x", "z"]), "test_codec.Point had other fields"),
        (Color.RED, enum.Enum("Color", ["GREEN"]), "test_codec.Color had other members"),
        (Perm.W, enum.Flag("Perm", ["R"]), "test_codec.Perm had other members"),
        (Perm.W, enum.Flag("Perm", ["R"], boundary=enum.CONFORM), "test_codec.Perm had other memb"),
        (
            Perm.W,
            enum.Flag("Perm", ["R"], boundary=enum.EJECT),
            "test_codec.Perm had other members",
        ),
        (Color.RED, enum.Flag("Color", ["R"]), "test_codec.Color had other members"),
    ],
)
def test_changed_type_is_named(codec: Codec, value: Any, changed: Any, text: str) -> None:
    data = codec.encode([value], "")
    with pytest.raises(SerializationError) as caught:
        Codec([remade(changed)]).decode(data)
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith(" where this was encoded; run the same version on both sides")


def test_unknown_time_zone_is_named(codec: Codec) -> None:
    data = node("datetime", ["2026-01-01T00:00:00", "Mars/Base\n", 0])
    with pytest.raises(SerializationError) as caught:
        codec.decode(data)
    assert str(caught.value) == r"time zone 'Mars/Base\n' is not known here; install tzdata"


# -- Hostile bytes ---------------------------------------------------------------------------------


MALFORMED = {
    "nothing": b"",
    "reserved byte": b"\xc1",
    "truncated array": b"\x92\x01",
    "truncated text": b"\xa5ab",
    "truncated ext": b"\xc7\x05\x01tu",
    "trailing": b"\x01\x01",
    "nested maps": b"\x81\x01" * 500_000,
    "nested maps as keys": b"\x81" * 1_000_000,
    "nested arrays": b"\x91" * 1_000_000,
    "nested array32": b"\xdd\0\0\0\1" * 200_000,
    "nested large arrays": b"\xdc\x27\x10" * 300_000,
    "nested nodes": (b"\x92" + ext(1, b"tuple")) * 100_000,
    "array of 4 G": b"\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 G": b"\xc6\xff\xff\xff\xff",
    "text of 4 G": b"\xdb\xff\xff\xff\xff",
    "ext of 4 G": b"\xc9\xff\xff\xff\xff\x01",
    "array of 4 G, some there": b"\xdd\xff\xff\xff\xff" + bytes(1_000_000),
    "list as key": b"\x81\x90\x01",
    "map as key": b"\x81\x80\x01",
    "set as key": b"\x81" + node("set", [1]) + b"\x01",
    "set of lists": node("set", [[1]]),
    "not UTF-8": b"\xa1\xff",
    "surrogate in UTF-8": b"\xa3\xed\xa0\x80",
    "name not UTF-8": b"\x92" + ext(1, b"\xff") + b"\x01",
    "timestamp": b"\xd5\xff\0\0",
    "timestamp far away": b"\xc7\x0c\xff" + bytes(4) + b"\x7f" + b"\xff" * 7,
    "mark alone": ext(1, b"tuple"),
    "mark of nothing known": ext(1, b"a:B"),
    "mark before two": b"\x93" + ext(1, b"tuple") + b"\x90\x90",
    "mark second": b"\x92\x01" + ext(1, b"tuple"),
    "mark of a mark": b"\x92" + ext(1, b"a:B") + ext(1, b"a:B"),
    "mark as key": b"\x81" + ext(1, b"tuple") + b"\x01",
    "mark as value": b"\x81\x01" + ext(1, b"tuple"),
    "mark that a dict drops": b"\x82\x01" + ext(1, b"tuple") + b"\x01\x01",
    "tuple of an int": node("tuple", 1),
    "odd dict": node("dict", [1, 2, 3]),
    "dict of list keys": node("dict", [[], 1]),
    "int of text": node("int", "a"),
    "complex of three": node("complex", [1, 2, 3]),
    "complex of text": node("complex", "ab"),
    "no decimal": node("decimal", "one"),
    "decimal of a map": node("decimal", {}),
    "short uuid": node("uuid", b"1234"),
    "no date": node("date", "hunter2"),
    "date of an int": node("date", 1),
    "no datetime": node("datetime", ["hunter2", None, 0]),
    "datetime without zone": node("datetime", ["2026-01-01T00:00:00"]),
    "fold": node("datetime", ["2026-01-01T00:00:00", None, 5]),
    "fold beyond C": node("datetime", ["2026-01-01T00:00:00", None, 2**63]),
    "zone is a map": node("time", ["00:00", {}, 0]),
    "zone is a directory": node("time", ["00:00", "Europe", 0]),
    "zone outside": node("time", ["00:00", "../../../../etc/passwd", 0]),
    "zone is absolute": node("time", ["00:00", "/etc/passwd", 0]),
    "zone with NUL": node("time", ["00:00", "Europe/Par\0is", 0]),
    "offset of a day": node("time", ["00:00", [86_400_000_000], 0]),
    "offset without end": node("time", ["00:00", [2**63], 0]),
    "timedelta without end": node("timedelta", [2**63, 0, 0]),
    "timedelta of NaN": node("timedelta", [math.nan]),
    "path of a list": node("path", ["a"]),
    "fields in a list": node("test_codec:Point", ["x", "y"]),
    "too few fields": node("test_codec:Point", {"x": 1}),
    "unhashable field names": node("test_codec:Point", [["x", 1]]),
    "no member": node("test_codec:Color", "BLUE"),
    "member of a class": node("test_codec:Color", "__class__"),
    "member by a list": node("test_codec:Color", []),
    "no flag": node("test_codec:Perm", 64),
    "flag of text": node("test_codec:Perm", "R"),
    "unhashable dataclass in a set": b"\x92" + ext(1, b"set") + b"\x91"
    + node("test_codec:Line", {"start": 1, "end": 2, "tags": 3}),
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bytes_are_refused_at_once(codec: Codec, data: bytes) -> None:
    tracemalloc.start()
    began = clock.monotonic()
    try:
        for call in (codec.decode, codec.decode_call):
            with pytest.raises(SerializationError) as caught:
                call(data)
            text = str(caught.value)
            assert len(text) < 300
            assert text.isprintable()
            assert "hunter2" not in text
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert tracemalloc.get_traced_memory()[1] < 120_000_000
    finally:
        tracemalloc.stop()
    assert clock.monotonic() - began < 20


@pytest.mark.parametrize(
    "value",
    [None, 1, "ab", [], [[]], [[], {}, 1], [{}, []], {"a": 1}, [(), {}], ((), {}), [[], {1: 2}]],
)
def test_what_is_no_call_is_refused(codec: Codec, value: Any) -> None:
    with pytest.raises(SerializationError, match=r"malformed \(not a call\), damaged"):
        codec.decode_call(codec.encode(value, ""))


@pytest.mark.parametrize("data", [None, "text", 5, [1]])
def test_what_is_not_bytes_is_refused(codec: Codec, data: Any) -> None:
    with pytest.raises(SerializationError):
        codec.decode(data)


@EXAMPLES
@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    codec = Codec(KNOWN)
    try:
        value = codec.decode(data)
    except SerializationError:
        return
    codec.encode(value, "what was decoded can be encoded")


@EXAMPLES
@given(ANY, st.data())
def test_damaged_bytes_decode_or_are_refused(value: Any, draw: Any) -> None:
    codec = Codec(KNOWN)
    data = bytearray(codec.encode(value, ""))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    end = draw.draw(st.integers(0, len(data)))
    for damaged in (bytes(data), bytes(data[:end])):
        with contextlib.suppress(SerializationError):
            codec.decode(damaged)


def test_nothing_is_imported_because_of_a_message(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("trap:Trap", "trap", "os:system", "builtins:eval", "conveyor.codec:Codec"):
        value = codec.decode(node(name, {"x": 1}))
        assert value == Opaque(name, {"x": 1})
    assert "trap" not in sys.modules
    assert pathlib.Path(tmp_path, "trap.py").exists()
