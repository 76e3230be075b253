"""How many runs start within a window of time, read from what the server keeps of them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checker import Contents


def starts_of(contents: Contents) -> list[int]:
    """When each run that is accounted for was claimed, in ms of the server's clock, in order."""
    starts: list[int] = []
    for record in contents.records.values():
        starts += [start for start, _ in record.attempts]
        # An attempt that is recorded may be the last run itself.
        if record.started and record.started not in {start for start, _ in record.attempts}:
            starts.append(record.started)
    return sorted(starts)


def most_in_a_window(starts: Sequence[int], seconds: float) -> int:
    """The most starts that any closed window of so long has."""
    length = round(seconds * 1000)
    return max(bisect_right(starts, start + length) - i for i, start in enumerate(starts))
