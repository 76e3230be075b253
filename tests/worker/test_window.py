"""How much a worker holds ahead: a few milliseconds of work, and nothing once runs take long."""

from __future__ import annotations

from conveyor.worker.window import MOST, SILENCE, Window


def test_nothing_is_held_ahead_before_a_run_has_ended() -> None:
    assert Window(0.0).ahead(2, 0.0) == 0


def test_short_runs_open_the_window_up_to_its_most() -> None:
    window = Window(0.0)
    window.ran(0.000_01, 1.0)
    assert window.ahead(2, 1.0) == MOST


def test_runs_of_a_millisecond_allow_a_few_each() -> None:
    window = Window(0.0)
    window.ran(0.001, 1.0)
    assert window.ahead(2, 1.0) == 10


def test_long_runs_close_the_window_after_short_ones() -> None:
    window = Window(0.0)
    for _ in range(1000):
        window.ran(0.000_01, 1.0)
    for _ in range(10):
        window.ran(0.030, 1.0)
    assert window.ahead(2, 1.0) == 0


def test_silence_closes_the_window_whatever_was_seen_before() -> None:
    window = Window(0.0)
    window.ran(0.000_01, 1.0)
    assert window.ahead(2, 1.0 + SILENCE / 2) == MOST
    assert window.ahead(2, 1.0 + SILENCE * 2) == 0
    window.ran(0.001, 2.0)
    assert window.ahead(2, 2.0) == 10
