"""What belongs to one process: a fork must not use what its parent opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that every process makes for itself, when it first asks.

    No lock guards it, since a fork may copy one in the moment it is held, never to be released. Of
    threads that ask at once, one wins; what the others made is closed.

    Args:
        make: Makes the value.
        close: Closes one that is not needed.

    Example:
        >>> sockets = PerProcess(socket.socket, socket.socket.close)
        >>> sockets.get() is sockets.get()
        True
    """

    __slots__ = ("_close", "_make", "_values")

    def __init__(self, make: Callable[[], T], close: Callable[[T], None]) -> None:
        self._make = make
        self._close = close
        # Those of a forked process's parent stay here, unused: dropped, they would be closed.
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """This process's value; what making it raises is raised."""
        value = self._values.get(os.getpid())
        return self._made() if value is None else value

    def take(self) -> T | None:
        """This process's value, which is forgotten; None when it has none."""
        return self._values.pop(os.getpid(), None)

    def _made(self) -> T:
        made = self._make()
        value = self._values.setdefault(os.getpid(), made)
        if value is not made:
            self._close(made)
        return value
