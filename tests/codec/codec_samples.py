"""Types and values of many kinds, for tests of the codec."""

from __future__ import annotations

import enum
import math
import string
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from conveyor.codec import Codec, Opaque
from conveyor.errors import SerializationError

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
