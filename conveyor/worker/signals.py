"""Signals as bytes to read: the handlers do nothing, the loop acts."""

from __future__ import annotations

import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType


_HELD_BACK: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def ignore(_number: int, _frame: object) -> None:
    """A handler that does nothing."""


@contextmanager
def held_back() -> Generator[None]:
    """Has signals wait in it: what is forked meanwhile would pass them on to its parent as its own.

    In a child they wait until `let_through`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Has a child hear signals; once it has handlers of its own."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


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
        """Those of these signals that came, in order; Python tells of all that have a handler."""
        return [signal.Signals(n) for n in self.sock.recv(1024) if n in self._numbers]
