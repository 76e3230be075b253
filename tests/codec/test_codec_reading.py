"""The codec: types that the reader does not know, and hostile bytes."""

from __future__ import annotations

import contextlib
import enum
import math
import pathlib
import sys
import time as clock
import tracemalloc
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
from codec_samples import (
    ANY,
    EXAMPLES,
    KNOWN,
    Color,
    Keyed,
    Node,
    Perm,
    Point,
    ext,
    node,
    same,
    trip,
)
from hypothesis import given
from hypothesis import strategies as st

from conveyor.codec import Codec, Opaque
from conveyor.errors import SerializationError


@pytest.mark.parametrize(
    ("value", "opaque"),
    [
        (Point(1, "a"), Opaque("codec_samples:Point", {"x": 1, "y": "a"})),
        (Color.GREEN, Opaque("codec_samples:Color", "GREEN")),
        (Perm.R | Perm.W, Opaque("codec_samples:Perm", 3)),
        ({Keyed(1, [2])}, {Opaque("codec_samples:Keyed", {"key": 1, "rows": [2]})}),
        ({Keyed(1, {2})}, {Opaque("codec_samples:Keyed", {"key": 1, "rows": {2}})}),
        ({Point((1,)): 1}, {Opaque("codec_samples:Point", {"x": (1,), "y": 0}): 1}),
        ([(Point({1}),)], [(Opaque("codec_samples:Point", {"x": {1}, "y": 0}),)]),
        (
            frozenset({Node(1)}),
            frozenset({Opaque("codec_samples:Node", {"value": 1, "next": None})}),
        ),
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
    kind.__module__, kind.__qualname__ = "codec_samples", kind.__name__
    return kind


@pytest.mark.parametrize(
    ("value", "changed", "text"),
    [
        (Point(1), make_dataclass("Point", ["x"]), "codec_samples.Point had other fields"),
        (
            Point(1),
            make_dataclass("Point", ["x", "y", "z"]),
            "codec_samples.Point had other fields",
        ),
        (Point(1), make_dataclass("Point", ["x", "z"]), "codec_samples.Point had other fields"),
        (Color.RED, enum.Enum("Color", ["GREEN"]), "codec_samples.Color had other members"),
        (Perm.W, enum.Flag("Perm", ["R"]), "codec_samples.Perm had other members"),
        (
            Perm.W,
            enum.Flag("Perm", ["R"], boundary=enum.CONFORM),
            "codec_samples.Perm had other memb",
        ),
        (
            Perm.W,
            enum.Flag("Perm", ["R"], boundary=enum.EJECT),
            "codec_samples.Perm had other members",
        ),
        (Color.RED, enum.Flag("Color", ["R"]), "codec_samples.Color had other members"),
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
    "fields in a list": node("codec_samples:Point", ["x", "y"]),
    "too few fields": node("codec_samples:Point", {"x": 1}),
    "unhashable field names": node("codec_samples:Point", [["x", 1]]),
    "no member": node("codec_samples:Color", "BLUE"),
    "member of a class": node("codec_samples:Color", "__class__"),
    "member by a list": node("codec_samples:Color", []),
    "no flag": node("codec_samples:Perm", 64),
    "flag of text": node("codec_samples:Perm", "R"),
    "unhashable dataclass in a set": b"\x92" + ext(1, b"set") + b"\x91"
    + node("codec_samples:Line", {"start": 1, "end": 2, "tags": 3}),
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
