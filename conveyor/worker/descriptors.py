"""Room for the descriptors of a worker's parent: seven a child, more than many shells allow."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

#: Both ends of two work sockets, two sockets of outcomes, and the process itself.
A_CHILD: Final = 7
#: For connections, the app's own files, and what passes by memory file.
OTHERS: Final = 512


def make_room(children: int) -> None:
    """Raises the soft limit of open files, where the hard one allows it, to what so many need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = children * A_CHILD + OTHERS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    with contextlib.suppress(OSError, ValueError):  # the system has another limit: then as it was
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
