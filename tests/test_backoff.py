"""Backoffs: the delays they give, their way into a call and back, and their errors."""

from __future__ import annotations

import doctest
import math
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor import backoff as module
from conveyor.backoff import (
    DEFAULT_BACKOFF,
    STRATEGIES,
    Backoff,
    constant,
    exponential,
    linear,
    parse_backoff,
)
from conveyor.errors import ConfigurationError, SerializationError
from conveyor.moments import LONGEST_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor.backoff import Strategy

seconds = st.floats(0, LONGEST_MS / 1_000)
backoffs = st.builds(
    Backoff,
    st.sampled_from(STRATEGIES),
    seconds,
    st.none() | seconds,
    st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (constant(3), [3, 3, 3, 3]),
        (linear(3), [3, 6, 9, 12]),
        (linear(3, maximum=7), [3, 6, 7, 7]),
        (exponential(3), [3, 6, 12, 24]),
        (exponential(0.5, maximum=timedelta(seconds=3)), [0.5, 1, 2, 3]),
        (constant(0), [0, 0, 0, 0]),
    ],
)
def test_delays_without_jitter(backoff: Backoff, delays: list[float]) -> None:
    assert [backoff.delay(retry, Random()) for retry in range(1, 5)] == delays


def test_jitter_spreads_the_delays_evenly_around_the_strategy() -> None:
    rng = Random(1)
    delays = [constant(10, jitter=0.2).delay(1, rng) for _ in range(2_000)]
    assert 8 <= min(delays) < 8.1
    assert 11.9 < max(delays) <= 12


def test_jitter_spreads_the_delays_at_the_maximum_too() -> None:
    rng = Random(1)
    delays = [constant(10, maximum=10, jitter=0.2).delay(1, rng) for _ in range(2_000)]
    assert 8 <= min(delays) < 8.1
    assert max(delays) <= 10
    assert len(set(delays)) > 1_900


@given(backoffs, st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_no_delay_overflows_or_passes_its_maximum(
    backoff: Backoff, retry: int, rng: Random
) -> None:
    longest = LONGEST_MS / 1_000 if backoff.maximum is None else backoff.maximum
    assert 0 <= backoff.delay(retry, rng) <= longest * (1 + 1e-9)


@pytest.mark.parametrize("make", [constant, linear, exponential])
def test_delay_of_the_ten_thousandth_retry(make: Callable[..., Backoff]) -> None:
    assert make(1, maximum=300).delay(10_000, Random()) == (1 if make is constant else 300)


def test_retries_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        constant(1).delay(0, Random())


def test_the_same_rng_gives_the_same_delays() -> None:
    assert DEFAULT_BACKOFF.delay(4, Random(7)) == DEFAULT_BACKOFF.delay(4, Random(7))


def test_default() -> None:
    assert exponential(1, maximum=300, jitter=0.1) == DEFAULT_BACKOFF


def test_an_infinite_maximum_is_none() -> None:
    assert linear(1, maximum=math.inf) == linear(1)


@given(backoffs)
def test_every_backoff_survives_its_journey(backoff: Backoff) -> None:
    assert Backoff.unpack(msgpack.unpackb(msgpack.packb(backoff.pack()))) == backoff


@pytest.mark.parametrize(
    "packed",
    [
        None,
        "linear",
        [],
        ["linear"],
        ["cubic", 1.0, None, 0.0],
        ["linear", "1", None, 0.0],
        ["linear", -1.0, None, 0.0],
        ["linear", math.inf, None, 0.0],
        ["linear", 1.0, math.nan, 0.0],
        ["linear", 1.0, None, 2.0],
        ["linear", 1.0, None, 0.0, 0],
        [["linear"], 1.0, None, 0.0],
    ],
)
def test_a_malformed_backoff_is_refused(packed: object) -> None:
    with pytest.raises(SerializationError, match="packed backoff"):
        Backoff.unpack(packed)


@pytest.mark.parametrize("make", [constant, linear, exponential])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"f": -1}, "factor"),
        ({"f": math.inf}, "factor"),
        ({"f": math.nan}, "factor"),
        ({"f": 1, "maximum": -1}, "maximum"),
        ({"f": 1, "jitter": -0.1}, "jitter"),
        ({"f": 1, "jitter": 1.1}, "jitter"),
        ({"f": 1, "jitter": True}, "jitter"),
    ],
)
def test_a_wrong_argument_is_named(
    make: Callable[..., Backoff], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make(**arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategys_name_is_a_backoff_of_factor_one(strategy: Strategy) -> None:
    assert parse_backoff(strategy) == Backoff(strategy, 1.0)


def test_a_backoff_is_parsed_to_itself() -> None:
    assert parse_backoff(DEFAULT_BACKOFF) is DEFAULT_BACKOFF


def test_an_unknown_strategy_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="'expnential': did you mean 'exponential'"):
        parse_backoff("expnential")


def test_a_backoff_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="strategy's name"):
        parse_backoff(3)  # type: ignore[arg-type]


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
