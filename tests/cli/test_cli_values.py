"""Arguments from words, and results as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from conveyor import ConfigurationError, Opaque
from conveyor.cli.values import read_arguments, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence


class Color(Enum):
    RED = "r"


class Size(IntEnum):
    LARGE = 3


@dataclass
class Point:
    x: int
    tags: frozenset[str]


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        (["1", "-2.5", "true", "null"], [1, -2.5, True, None], {}),
        (['[1, "2"]', '{"a": {}}', '"1"'], [[1, "2"], {"a": {}}, "1"], {}),
        (["hello", "2027-01-01", "[1", ""], ["hello", "2027-01-01", "[1", ""], {}),
        (["a=1", "b=x=y", "c="], [], {"a": 1, "b": "x=y", "c": ""}),
        (["1=2", "a-b=3", '"x=y"'], ["1=2", "a-b=3", "x=y"], {}),
        (["1", "a=[1]"], [1], {"a": [1]}),
    ],
)
def test_words(words: Sequence[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    assert read_arguments(words) == (args, kwargs)


@pytest.mark.parametrize("words", [["a=1", "2"], ["a=1", "a=2"]])
def test_words_that_no_call_could_have(words: Sequence[str]) -> None:
    with pytest.raises(ConfigurationError):
        read_arguments(words)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ([1, 2.5, "é", True], [1, 2.5, "é", True]),
        (2**70, 2**70),
        ((1, (2,)), [1, [2]]),
        ({3}, [3]),
        ({"a": 1, 2: (), None: 0}, {"a": 1, "2": [], "null": 0}),
        (b"\x00\xff", "AP8="),
        (datetime(2027, 1, 1, tzinfo=UTC), "2027-01-01T00:00:00+00:00"),
        (date(2027, 1, 1), "2027-01-01"),
        (timedelta(minutes=1), 60.0),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("/a"), "/a"),
        (1 + 2j, "(1+2j)"),
        ((math.inf, -math.inf), ["inf", "-inf"]),
        (math.nan, "nan"),
        (Color.RED, "r"),
        (Size.LARGE, 3),
        (Point(1, frozenset("a")), {"x": 1, "tags": ["a"]}),
        (Opaque("app:Color", "RED"), {"type": "app:Color", "value": "RED"}),
    ],
)
def test_results(value: Any, expected: Any) -> None:
    text = to_json(value)
    assert json.loads(text) == expected
    assert "\n" not in text
