"""Recurring entries whose moments were missed: none, one or all of them, in bounded steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conveyor.broker import recurring as commands

from .entries import EVERY, beat, declare, firing, listed, packed

if TYPE_CHECKING:
    from engine import Engine


@pytest.fixture(autouse=True)
def _on_the_full_ten_seconds(engine: Engine) -> None:
    engine.call("HSET", engine.keys.memory, "seen", -(-engine.now_ms // EVERY) * EVERY)


@pytest.mark.parametrize(
    ("catch_up", "late", "fired"),
    [
        ("skip", 59, [50]),
        ("skip", 205, [200]),
        ("one", 205, [200]),
        ("all", 25, [0, 10, 20]),
    ],
)
def test_what_was_missed(engine: Engine, catch_up: str, late: int, fired: list[int]) -> None:
    declare(engine, packed(engine, catch_up=catch_up))
    engine.advance(10 + late)
    assert beat(engine) == [len(fired)]
    assert engine.ready() == [firing(engine, second - late) for second in fired]
    assert engine.maintain().next_due_ms > engine.now_ms


@pytest.mark.parametrize(("catch_up", "fired"), [("skip", 0), ("one", 1)])
def test_a_moment_found_over_a_minute_late_was_missed(
    engine: Engine, catch_up: str, fired: int
) -> None:
    declare(engine, packed(engine, every_ms=3_600_000, catch_up=catch_up), after=3_600_000)
    engine.call("HSET", engine.keys.memory, "seen", -(-engine.now_ms // 3_600_000) * 3_600_000)
    engine.run(commands.forget(engine.keys, "tick"))
    declare(engine, packed(engine, every_ms=3_600_000, catch_up=catch_up), after=3_600_000)
    engine.advance(3660.001)
    assert beat(engine) == [fired]
    (entry,) = listed(engine)
    assert entry.due_ms == engine.now_ms + 3_600_000 - 60_001


def test_a_long_outage_is_caught_up_with_in_bounded_calls(engine: Engine) -> None:
    declare(engine, packed(engine, catch_up="all"))
    engine.advance(10 * 250)
    assert beat(engine) == [100]
    assert engine.maintain().more
    assert [beat(engine) for _ in range(3)] == [[100], [50], []]
    assert engine.ready() == [firing(engine, -10 * n) for n in range(249, -1, -1)]


def test_large_tasks_are_caught_up_with_in_bounded_bytes(engine: Engine) -> None:
    declare(engine, packed(engine, b"x" * 400_000, catch_up="all"))
    engine.advance(50)
    assert [beat(engine) for _ in range(4)] == [[2], [2], [1], []]


def test_due_entries_are_named_in_bounded_numbers_and_bytes(engine: Engine) -> None:
    for number in range(50):
        declare(engine, packed(engine), f"small-{number:02}")
    for number in range(4):
        declare(engine, packed(engine, b"x" * 600_000), f"vast-{number}")
    engine.advance(10)
    assert [len(beat(engine)) for _ in range(6)] == [20, 20, 12, 2, 0, 0]
    assert len(engine.ready()) == 54
