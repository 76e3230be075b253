"""A thread beside the worker's loop, for code of users that must not hold the loop up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("conveyor.worker")


class SideThread:
    """Calls functions one after the other, in the order in which they were posted.

    The thread begins with the first of them. What an `async def` returns is awaited there.

    Args:
        on_error: Called, on the thread, with what a function raised; what that raises is logged.
    """

    def __init__(self, on_error: Callable[[Exception], Any] | None = None) -> None:
        self._on_error = on_error
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._runner: asyncio.Runner | None = None
        self._now = "nothing"

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Has a function called; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name="conveyor-callbacks", daemon=True
            )
            self._thread.start()
        self._calls.put((function, args))

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Calls a function here and now; for what was posted and calls others in its turn."""
        self._now = getattr(function, "__qualname__", repr(function))
        try:
            answer = function(*args)
            if inspect.isawaitable(answer):
                self._wait_for(answer)
        except BaseException as error:  # whatever ends a callback must not end the thread
            self._tell(error)

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return self._thread is threading.current_thread()

    def close(self, timeout: float) -> None:
        """Waits for what was posted, so many seconds at most; then it is left behind."""
        if self._thread is None:
            return
        self._calls.put(None)
        self._thread.join(min(timeout, threading.TIMEOUT_MAX))
        if self._thread.is_alive():
            log.warning("%s has not returned within %.0fs: leaving it behind", self._now, timeout)

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_loop)
            while (posted := self._calls.get()) is not None:
                function, args = posted
                self.call(function, *args)

    def _wait_for(self, awaitable: Awaitable[Any]) -> None:
        if self._runner is None:
            self._runner = asyncio.Runner()
        self._runner.run(_finish(awaitable))

    def _close_loop(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def _tell(self, error: BaseException) -> None:
        if self._on_error is None or not isinstance(error, Exception):
            log.error("%s raised; the worker goes on", self._now, exc_info=error)
            return
        name = self._now
        try:
            answer = self._on_error(error)
            if inspect.isawaitable(answer):
                self._wait_for(answer)
        except BaseException:
            log.exception("on_handler_error raised, told of what %s had raised: %s", name, error)


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
