"""Tasks that end as badly as a task can, short of ending their process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unprintable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Deadly(Exception):
    """Whoever asks for its text is to exit."""

    def __str__(self) -> str:
        raise SystemExit(9)


def raise_unprintable() -> None:
    """Raises what has no text."""
    raise Unprintable


def raise_deadly() -> None:
    """Raises what exits when it is printed."""
    raise Deadly


def raise_surrogate() -> None:
    """Raises text that is not UTF-8."""
    raise ValueError("\ud800 and \x1b[31m\nmore")


def raise_much(size: int) -> None:
    """Raises a message of so many characters."""
    raise ValueError("é" * size)


def raise_deep(depth: int) -> None:
    """Raises through so many frames, each of its own text."""
    if depth:
        raise_deep(depth - 1)
    raise ValueError("deep")


def raise_chain(length: int) -> None:
    """Raises an error that was caused by one that was caused by …"""
    error: Exception = ValueError("first")
    for number in range(length):
        later = RuntimeError(f"{number}" * 100)
        later.__cause__ = error
        error = later
    raise error


def exit_politely() -> None:
    """Raises SystemExit."""
    raise SystemExit(3)


def interrupt() -> None:
    """Raises KeyboardInterrupt."""
    raise KeyboardInterrupt


async def aexit_politely() -> None:
    """Raises SystemExit."""
    raise SystemExit(3)


async def ainterrupt() -> None:
    """Raises KeyboardInterrupt."""
    raise KeyboardInterrupt


async def cancel_itself() -> None:
    """Raises what nobody asked for."""
    raise asyncio.CancelledError("of its own accord")


def stop_iteration() -> None:
    """Raises StopIteration."""
    raise StopIteration("stop")


def exit_generator() -> None:
    """Raises GeneratorExit."""
    raise GeneratorExit


def generate() -> Iterator[int]:
    """A generator: what it returns cannot be encoded."""
    yield 1


async def agenerate() -> Any:
    """An async task that returns a generator."""
    return generate()


def return_object() -> Any:
    """Returns what cannot be encoded."""
    return object()


def return_surrogate() -> str:
    """Returns text that is not UTF-8."""
    return "\ud800"


def return_cycle() -> Any:
    """Returns a list that holds itself."""
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def return_much(size: int) -> bytes:
    """Returns so many bytes."""
    return b"x" * size


def return_hostile() -> Any:
    """Returns what raises when it is looked at."""

    class Hostile(dict[str, int]):
        def items(self) -> Any:
            raise SystemExit(9)

    return Hostile(a=1)


MISDEEDS = (
    raise_unprintable, raise_deadly, raise_surrogate, raise_much, raise_deep, raise_chain,
    exit_politely, interrupt, aexit_politely, ainterrupt, cancel_itself, stop_iteration,
    exit_generator, generate, agenerate, return_object, return_surrogate, return_cycle,
    return_much, return_hostile,
)  # fmt: skip
