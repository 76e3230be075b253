"""What processes did, in files that survive them.

Every process appends to a file of its own, a line and a `write` an event, so that neither a SIGKILL
nor another process can tear one apart:

    1764000000123456789 start 5f3a 2

is the moment (POSIX ns), the event, the task's id, and what is known about it (here the fence).
Events of producers are `enq-try` (before the call), then `enq-ok` or `enq-unknown`; events of runs
are `start` and `effect` (what the task is there for has happened), each with the run's fence.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """One line.

    Attributes:
        moment: POSIX ns, by the clock of this machine.
        name: What happened.
        id: To which task.
        about: What is known of it.
        process: Whose file it is in: the pid.
    """

    moment: int
    name: str
    id: str
    about: tuple[str, ...]
    process: int

    @property
    def fence(self) -> int:
        """The start counter of the run, in events of runs."""
        return int(self.about[0])


class History:
    """Where a process notes what it does; after a fork the copy has a file of its own.

    Args:
        directory: Of all the processes' files.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._files: dict[int, int] = {}

    def note(self, name: str, task_id: str, *about: object) -> None:
        """Appends an event."""
        words = [str(time.time_ns()), name, task_id, *map(str, about)]
        os.write(self._file(), (" ".join(words) + "\n").encode())

    def read(self, *names: str, task_id: str | None = None) -> list[Event]:
        """Events of all processes, by time: all, or those of some names or of one task."""
        return [
            event
            for event in _read(self.directory)
            if (not names or event.name in names) and task_id in (None, event.id)
        ]

    def count(self, name: str, *, task_id: str | None = None) -> int:
        """How many events there are of a name."""
        return len(self.read(name, task_id=task_id))

    def _file(self) -> int:
        pid = os.getpid()
        if pid not in self._files:
            path = self.directory / f"{pid}.history"
            self._files[pid] = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        return self._files[pid]


def _read(directory: Path) -> list[Event]:
    events: list[Event] = []
    for path in directory.glob("*.history"):
        process = int(path.stem)
        whole, _, _ = path.read_text().rpartition("\n")  # the last line may be half-written yet
        for line in whole.splitlines():
            moment, name, task_id, *about = line.split(" ")
            events.append(Event(int(moment), name, task_id, tuple(about), process))
    return sorted(events)
