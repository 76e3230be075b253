"""Recurring entries as callers declare them and orchestrators fire them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conveyor.broker import recurring as commands
from conveyor.recurrence import Entry, Recurrence, moment_text
from conveyor.recurring import fire_entry

if TYPE_CHECKING:
    from engine import Engine

    from conveyor.broker.commands import DueEntry
    from conveyor.broker.recurring import Declared, ListedEntry

#: A full second on the stopped clock is far from any other of these.
EVERY = 10_000


def packed(engine: Engine, *args: Any, expires: str = "", **about: Any) -> bytes:
    """A definition; every ten seconds unless it says otherwise."""
    when = Recurrence(**({"every_ms": EVERY} | about))
    return Entry(when, expires, engine.new("", *args).record).pack()


def declare(
    engine: Engine, definition: bytes, name: str = "tick", *, after: int = EVERY, **about: Any
) -> Declared:
    """As a caller does, or a worker; due first in so many ms."""
    due = engine.now_ms + after
    return engine.run(
        commands.declare(engine.keys, name, definition, next_due_ms=due, **about)
    )  # fmt: skip


def listed(engine: Engine) -> list[ListedEntry]:
    """All entries, undecoded."""
    following, entries = engine.run(commands.list_recurring(engine.keys, 0))
    assert following == -1
    return entries


def fire(engine: Engine, due: DueEntry) -> int:
    """As an orchestrator does."""
    return engine.run(fire_entry(engine.keys, due, engine.now_ms))


def beat(engine: Engine) -> list[int]:
    """One turn of an orchestrator; how many tasks each due entry became."""
    return [fire(engine, due) for due in engine.maintain().entries]


def firing(engine: Engine, seconds: float = 0, name: str = "tick") -> str:
    """The id of the task of a moment so many seconds from now."""
    return f"{name}@{moment_text(engine.now_ms + round(seconds * 1000))}"
