"""Shared memory between the parent and one child: what is running there, until when, and what to
stop.

A child notes what it begins before it runs it and clears the note after its outcome was sent. So
when a child dies, a noted task had begun and is charged; whatever else was sent to it had not.

    word 0           whether any run had a deadline, so that the parent need not look
    word 1           how many slots were ever used, so that the parent looks at no others
    word 2           whether the child has begun to read tasks
    next words       lease clock of each queue (see `renewed`)
    then, for each slot: sequence number of the run (0: free), deadline (monotonic s), stop request

Words are 8 bytes and aligned, so each is read and written whole.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 3
_FIRST = 3


class Slots:
    """One child's slots: one for each task it can run at once.

    Args:
        count: How many tasks it can run at once.
        queues: How many queues the worker serves.
        spare: How many more it can hold while they wait.
    """

    def __init__(self, count: int, queues: int, spare: int = 0) -> None:
        self._base = _FIRST + queues
        self._memory = mmap.mmap(-1, 8 * (self._base + _WIDTH * (count + spare)))
        self._words = memoryview(self._memory).cast("Q")
        self._times = memoryview(self._memory).cast("B").cast("d")
        self._words[1] = count

    def add(self) -> int:
        """Takes one of the spare slots into use; in the child."""
        self._words[1] += 1
        return self._words[1] - 1

    def serve(self) -> None:
        """Notes that the child reads tasks from now on; in the child."""
        self._words[2] = 1

    def served(self) -> bool:
        """Whether it does."""
        return self._words[2] == 1

    def begin(self, slot: int, sequence: int, deadline: float) -> None:
        """Notes that a run begins; in the child."""
        place = self._base + _WIDTH * slot
        self._words[place + 2] = 0
        if deadline:
            self._words[0] = 1
        self._times[place + 1] = deadline
        self._words[place] = sequence

    def time(self, slot: int, deadline: float) -> None:
        """Sets or, with 0, takes away the deadline of a run that has begun; in the child."""
        if deadline:
            self._words[0] = 1
        self._times[self._base + _WIDTH * slot + 1] = deadline

    def end(self, slot: int) -> None:
        """Notes that a run's outcome was sent; in the child."""
        self._words[self._base + _WIDTH * slot] = 0

    def running(self) -> list[int]:
        """Sequence numbers of all runs that have begun and not ended."""
        words = self._words
        return [n for n in (words[i] for i in self._places()) if n]

    def late(self, now: float) -> list[int]:
        """Sequence numbers of the runs whose deadline has passed."""
        if not self._words[0]:
            return []
        times, words = self._times, self._words
        return [words[i] for i in self._places() if words[i] and 0 < times[i + 1] < now]

    def ask_to_stop(self, sequence: int, reason: int) -> None:
        """Leaves a reason (1 to 3) for a run to find, and for no later run; in the parent."""
        for place in self._places():
            if self._words[place] == sequence:
                self._words[place + 2] = sequence << 2 | reason

    def stop_asked(self, slot: int) -> int:
        """The reason left for the run in this slot, or 0; in the child."""
        place = self._base + _WIDTH * slot
        asked = self._words[place + 2]
        return asked & 3 if asked >> 2 == self._words[place] else 0

    def renewed(self, queue: int, moment: float) -> None:
        """Notes when the parent last knew that its leases on a queue hold, monotonic."""
        self._times[_FIRST + queue] = moment

    def renewal(self, queue: int) -> float:
        """What `renewed` noted last."""
        return self._times[_FIRST + queue]

    def close(self) -> None:
        """Gives the memory back."""
        self._words.release()
        self._times.release()
        self._memory.close()

    def _places(self) -> Iterator[int]:
        return iter(range(self._base, self._base + _WIDTH * self._words[1], _WIDTH))
