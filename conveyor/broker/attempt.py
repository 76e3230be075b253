"""One attempt to connect, beside an event loop.

Connecting anew takes seconds where a server hangs, and on a cluster each node is asked in turn:
meanwhile the loop has leases on other nodes to renew. So it is done on a thread that lives as long
as the attempt, and rings when it has an end.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Most seconds for which an abandoned attempt is waited for.
PATIENCE = 5.0


class Attempt(Generic[T]):
    """A call that is under way.

    Args:
        call: What may take long; safe beside the loop.
        selector: Of the loop.
        done: Called in the loop when the call has ended.
    """

    def __init__(
        self, call: Callable[[], T], selector: selectors.BaseSelector, done: Callable[[], None]
    ) -> None:
        self._call = call
        self._selector = selector
        self._future: Future[T] = Future()
        self._near, self._far = socket.socketpair()
        selector.register(self._near, selectors.EVENT_READ, done)
        self._thread = threading.Thread(target=self._run, name="conveyor-connect", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def result(self) -> T:
        """What the call returned, once it has ended; what it raised is raised."""
        self._close()
        return self._future.result()

    def abandon(self, undo: Callable[[T], object]) -> None:
        """Cares no more: what the call returns is undone. Waits a while for that."""

        def end(future: Future[T]) -> None:
            if future.exception() is None:
                undo(future.result())

        self._close()
        self._future.add_done_callback(end)
        self._thread.join(PATIENCE)

    def _close(self) -> None:
        self._selector.unregister(self._near)
        self._near.close()
        self._far.close()

    def _run(self) -> None:
        try:
            returned = self._call()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(returned)
        with contextlib.suppress(OSError):  # abandoned
            self._far.send(b"!")
