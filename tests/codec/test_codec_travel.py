"""The codec: what travels comes back equal and of the same type."""

from __future__ import annotations

import functools
import math
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from codec_samples import (
    ANY,
    EXAMPLES,
    KNOWN,
    PARIS,
    TWICE,
    Box,
    Boxed,
    Careful,
    Color,
    Empty,
    IntPerm,
    Keyed,
    Level,
    Line,
    Mood,
    Node,
    Perm,
    Planet,
    Point,
    same,
    trip,
)
from hypothesis import given
from hypothesis import strategies as st

from conveyor.codec import Codec
from conveyor.errors import SerializationError

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
