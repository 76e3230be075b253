"""Servers that start and stop together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from contextlib import ExitStack


class Group:
    """Servers that start and stop together."""

    _stack: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of them for good."""
        self._stack.close()
