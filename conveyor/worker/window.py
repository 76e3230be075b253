"""How much of one lane's work the parent holds beyond what runs.

A few milliseconds of work for each slot hide the round trip to the server while runs are short; for
long runs it is nothing, so that no task waits behind one here while another worker is idle. The
window grows with runs that have ended, and closes when none has for a while, whatever was seen
before.
"""

from __future__ import annotations

from typing import Final

#: Seconds of work held ahead for each slot.
HORIZON: Final = 0.005
#: Most tasks held ahead.
MOST: Final = 200
#: Seconds without an outcome after which nothing is held ahead.
SILENCE: Final = 0.05
#: Weight of the newest run in the average.
_NEWEST: Final = 0.05
_LONG: Final = 1.0


class Window:
    """The claim-ahead of one lane.

    Args:
        now: Monotonic.
    """

    def __init__(self, now: float) -> None:
        self._average = _LONG
        self._moved_at = now

    def average(self, now: float) -> float:
        """Seconds that a recent run took; long once none has ended for a while."""
        return _LONG if self.silent(now) else self._average

    def ran(self, seconds: float, now: float) -> None:
        """Takes note of a run that has ended."""
        if self._average >= _LONG or self.silent(now):
            self._average = seconds
        self._average += (seconds - self._average) * _NEWEST
        self._moved_at = now

    def silent(self, now: float) -> bool:
        """Whether no run has ended for a while."""
        return now - self._moved_at > SILENCE

    def ahead(self, slots: int, now: float) -> int:
        """How many tasks to hold beyond those that run."""
        return min(MOST, int(HORIZON / max(self.average(now), 1e-5)) * slots)
