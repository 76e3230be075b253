"""Durations and moments become whole milliseconds, or an error that names the value."""

from __future__ import annotations

import doctest
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor import moments
from conveyor.errors import ConfigurationError
from conveyor.moments import LONGEST_MS, TOO_LATE_MS, from_ms, moment_to_ms, to_ms

NEW_YEAR = 1_798_761_600_000


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        (0, 0),
        (1, 1_000),
        (1.5, 1_500),
        (2.3, 2_300),
        (timedelta(hours=1, milliseconds=1), 3_600_001),
        (LONGEST_MS // 1_000, LONGEST_MS),
        (math.inf, None),
    ],
)
def test_duration_in_ms(duration: float | timedelta, ms: int | None) -> None:
    assert to_ms(duration, "grace") == ms


@pytest.mark.parametrize("duration", [1e-9, 5e-324, timedelta(microseconds=1)])
def test_positive_duration_never_becomes_zero(duration: float | timedelta) -> None:
    assert to_ms(duration, "grace") == 1


@pytest.mark.parametrize(
    "duration",
    [
        -1,
        -0.001,
        -math.inf,
        math.nan,
        10**400,
        LONGEST_MS / 1_000 + 1,
        timedelta(seconds=-1),
    ],
)
def test_impossible_duration_is_named(duration: float | timedelta) -> None:
    with pytest.raises(ConfigurationError, match="grace"):
        to_ms(duration, "grace")


@pytest.mark.parametrize("duration", [True, False, "1", None, b"1", 1j, datetime.now(UTC)])
def test_duration_of_wrong_type_is_named(duration: Any) -> None:
    with pytest.raises(TypeError, match="grace"):
        to_ms(duration, "grace")


@pytest.mark.parametrize(
    "moment",
    [
        NEW_YEAR / 1_000,
        NEW_YEAR // 1_000,
        datetime(2027, 1, 1, tzinfo=UTC),
        datetime(2027, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_moment_in_ms(moment: float | datetime) -> None:
    assert moment_to_ms(moment, None, "at") == NEW_YEAR


def test_naive_moment_is_an_error_without_a_timezone() -> None:
    with pytest.raises(ConfigurationError, match=r"at cannot be .*timezone"):
        moment_to_ms(datetime(2027, 1, 1), None, "at")


def test_naive_moment_is_in_the_given_timezone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert moment_to_ms(datetime(2027, 1, 1, 1), berlin, "at") == NEW_YEAR


def test_aware_moment_keeps_its_own_timezone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert moment_to_ms(datetime(2027, 1, 1, tzinfo=UTC), berlin, "at") == NEW_YEAR


def test_repeated_hour_is_told_apart_by_its_fold() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first, second = (datetime(2026, 10, 25, 2, 30, fold=fold) for fold in (0, 1))
    assert moment_to_ms(second, berlin, "at") - moment_to_ms(first, berlin, "at") == 3_600_000


@pytest.mark.parametrize(
    "moment",
    [
        -1,
        math.nan,
        math.inf,
        1e300,
        datetime(1969, 1, 1, tzinfo=UTC),
        TOO_LATE_MS / 1_000,
    ],
)
def test_impossible_moment_is_named(moment: float | datetime) -> None:
    with pytest.raises(ConfigurationError, match="at"):
        moment_to_ms(moment, None, "at")


@pytest.mark.parametrize("moment", [True, "2027-01-01", None, timedelta(1)])
def test_moment_of_wrong_type_is_named(moment: Any) -> None:
    with pytest.raises(TypeError, match="at must be"):
        moment_to_ms(moment, None, "at")


@given(st.integers(0, TOO_LATE_MS - 1))
def test_every_stored_moment_comes_back(ms: int) -> None:
    assert moment_to_ms(from_ms(ms), None, "at") == ms
    assert from_ms(ms).tzinfo is UTC


def test_a_stored_moment_and_the_longest_duration_is_still_a_datetime() -> None:
    assert from_ms(TOO_LATE_MS + LONGEST_MS) <= datetime(9000, 1, 1, tzinfo=UTC)
    assert TOO_LATE_MS + LONGEST_MS < 2**53


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(moments).failed == 0
