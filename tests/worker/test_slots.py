"""What a parent and its child tell each other in shared memory."""

from __future__ import annotations

import os

from conveyor.worker.slots import Slots


def test_a_run_is_seen_from_its_beginning_to_its_end() -> None:
    slots = Slots(3, 1)
    slots.begin(1, 42, 0.0)
    assert slots.running() == [42]
    slots.end(1)
    assert slots.running() == []


def test_what_a_child_notes_outlives_it() -> None:
    slots = Slots(2, 1)
    pid = os.fork()
    if pid == 0:
        slots.begin(0, 7, 0.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert slots.running() == [7]


def test_only_runs_past_their_deadline_are_late() -> None:
    slots = Slots(3, 1)
    slots.begin(0, 1, 0.0)
    slots.begin(1, 2, 10.0)
    slots.begin(2, 3, 20.0)
    assert slots.late(9.0) == []
    assert slots.late(15.0) == [2]
    assert slots.late(25.0) == [2, 3]


def test_a_stop_reaches_the_run_it_was_meant_for_and_no_later_one() -> None:
    slots = Slots(1, 1)
    slots.begin(0, 5, 0.0)
    slots.ask_to_stop(5, 2)
    assert slots.stop_asked(0) == 2
    slots.begin(0, 6, 0.0)
    assert slots.stop_asked(0) == 0
    slots.ask_to_stop(5, 1)
    assert slots.stop_asked(0) == 0


def test_the_lease_clock_is_kept_per_queue() -> None:
    slots = Slots(1, 2)
    slots.renewed(1, 12.5)
    slots.begin(0, 1, 99.0)
    assert (slots.renewal(0), slots.renewal(1)) == (0.0, 12.5)
