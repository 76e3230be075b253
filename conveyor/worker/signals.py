"""Signals as bytes to read: the handlers do nothing, the loop acts."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


def ignore(_number: int, _frame: object) -> None:
    """A handler that does nothing."""


class Signals:
    """Turns signals into bytes on a socket while it is entered; only on the main thread.

    Args:
        numbers: Which.

    Example:
        >>> with Signals([signal.SIGTERM]) as signals:
        ...     selector.register(signals.sock, EVENT_READ, lambda: print(signals.read()))
    """

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._numbers = numbers
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}
        self.sock, self._write = socket.socketpair()
        self.sock.setblocking(False)
        self._write.setblocking(False)

    def __enter__(self) -> Self:
        """Takes the signals over."""
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno())
        for number in self._numbers:
            self._before[number] = signal.signal(number, ignore)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives them back."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.sock.close()
        self._write.close()

    def read(self) -> list[signal.Signals]:
        """The signals that came, in order."""
        return [signal.Signals(number) for number in self.sock.recv(1024)]
