"""Faults 25 and 28: whatever a run does or returns, its task ends readably, and its child lives."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from conveyor import SerializationError, TaskFailed, TaskStatus

from .lab import SOON, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server


@pytest.fixture(scope="module")
def lab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with (
        Lab(server.url, tmp_path_factory.mktemp("outcomes")) as lab,
        lab.worker("-c", "1") as worker,
    ):
        child = lab.tasks.where.delay().wait(SOON)
        yield lab
        # Nothing here may have cost the child its life.
        assert lab.tasks.where.delay().wait(SOON) == child
        assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("raise_unprintable", r"Unprintable: \(its message cannot be had: RuntimeError\)"),
        ("raise_deadly", r"Deadly: \(its message cannot be had: SystemExit\)"),
        ("raise_surrogate", "ValueError: .* and "),
        ("exit_politely", "SystemExit: 3"),
        ("aexit_politely", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("ainterrupt", "KeyboardInterrupt"),
        ("cancel_itself", "CancelledError: of its own accord"),
        ("stop_iteration", "StopIteration: stop"),
        ("exit_generator", "GeneratorExit"),
        ("generate", r"SerializationError: generate\(\): the result.* generator"),
        ("agenerate", r"SerializationError: agenerate\(\): the result.* generator"),
        ("return_object", r"SerializationError: return_object\(\): the result.* object"),
        ("return_surrogate", r"SerializationError: return_surrogate\(\): the result"),
        ("return_cycle", r"SerializationError: return_cycle\(\): the result"),
        ("return_hostile", r"SerializationError: return_hostile\(\): the result.*Hostile"),
    ],
)
def test_25_run_ends_readably(lab: Lab, task: str, error: str) -> None:
    result = getattr(lab.tasks, task).delay()
    with pytest.raises(TaskFailed, match=f"(?s){error}"):
        result.wait(SOON)
    record = result.task()
    assert (record.status, record.stall_retries) == (TaskStatus.FAILED, 0)
    assert [run.outcome for run in record.attempts] == ["error"]


@pytest.mark.parametrize("size", [100, 10_000, 5_000_000])
def test_25_message_of_any_size_is_kept_within_bounds(lab: Lab, size: int) -> None:
    result = lab.tasks.raise_much.delay(size)
    with pytest.raises(TaskFailed, match=r"ValueError: é{100}"):
        result.wait(SOON)
    record = result.task()
    assert len(record.error) < 10_000
    assert len(record.traceback) < 40_000
    assert "raise_much" in record.traceback or size > 10_000


def test_25_traceback_of_any_depth_is_kept_within_bounds(lab: Lab) -> None:
    for result in (lab.tasks.raise_deep.delay(900), lab.tasks.raise_chain.delay(300)):
        with pytest.raises(TaskFailed, match=r"ValueError: deep|RuntimeError: 299"):
            result.wait(SOON)
        assert len(result.task().traceback) < 40_000


def test_25_error_without_end_fails_its_task(lab: Lab) -> None:
    result = lab.tasks.raise_deep.delay(10**9)
    with pytest.raises(TaskFailed, match="RecursionError"):
        result.wait(SOON)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63) - 1,
        10**400,
        0.0,
        -0.0,
        1e-320,
        1.7976931348623157e308,
        math.inf,
        -math.inf,
        math.nan,
        "",
        "\x00\x1b",
        "𝔘é",
        b"",
        b"\x00\xff",
        [],
        [[]],
        {},
        {"": {}},
        {1: "a", (2, 3): "b"},
        (),
        ((),),
        set(),
        frozenset({1, (2, frozenset())}),
        [[], {}, (), ""],
        Decimal("-0.000"),
        Decimal("NaN"),
        UUID(int=0),
        Path("/a/../b"),
        complex(-0.0, math.inf),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime.max,
        date.min,
        time(23, 59, 59, 999_999),
        timedelta.min,
        timedelta.max,
    ],
    ids=repr,
)
def test_28_value_comes_back_as_it_was(lab: Lab, value: Any) -> None:
    returned = lab.tasks.echo.delay(value).wait(SOON)
    assert type(returned) is type(value)
    assert _same(returned, value)


def test_28_deep_nesting_comes_back_or_is_refused(lab: Lab) -> None:
    value: Any = []
    for depth in range(1, 1000):
        value = [value]
        try:
            result = lab.tasks.echo.delay(value) if depth % 20 == 0 else None
        except SerializationError:
            assert depth >= 100
            return
        if result is not None:
            assert result.wait(SOON) == value
    pytest.fail("a list of a thousand levels was neither refused nor too deep for anything")


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 1, type, "\ud800", iter([])],
    ids=["object", "function", "class", "lone surrogate", "iterator"],
)
def test_28_what_cannot_travel_is_refused_at_once(lab: Lab, value: Any) -> None:
    lab.wait_for_drain()
    before = lab.status().success
    with pytest.raises(SerializationError, match=r"echo\(\): argument 'value'"):
        lab.tasks.echo.delay(value)
    assert lab.tasks.noop.delay().wait(SOON) is None
    assert lab.status().success == before + 1


def _same(one: Any, other: Any) -> bool:
    """Equal, and for numbers the same bits: 0.0 is not -0.0, and NaN is NaN."""
    if isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(other, complex):
        return _same(one.real, other.real) and _same(one.imag, other.imag)
    return bool(one == other) or repr(one) == repr(other)
