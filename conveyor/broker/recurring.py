"""The commands of recurring entries; see `commands.py`, of which they are a part."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from conveyor.broker.commands import Command
from conveyor.broker.scripts import load_script

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conveyor.broker.commands import DueEntry, NewTask
    from conveyor.broker.keys import QueueKeys

_DECLARE = load_script("declare")
_FIRE = load_script("fire")
_FORGET = load_script("forget")
_RECURRING = load_script("recurring")


class Declared(NamedTuple):
    """The answer of declare.lua; an entry that is not kept needs the moment it is due next."""

    now_ms: int
    kept: bool


class ListedEntry(NamedTuple):
    """A recurring entry, undecoded: see recurring.lua."""

    name: bytes
    due_ms: int
    definition: bytes
    last: bytes
    declared: int


def declare(
    keys: QueueKeys,
    name: str,
    definition: bytes,
    *,
    next_due_ms: int | None = None,
    lapse_ms: int = 0,
    replace: bool = True,
) -> Command[Declared]:
    """Keeps a recurring entry.

    Args:
        keys: The queue's.
        name: Its name.
        definition: See `recurrence.Entry`.
        next_due_ms: Needed for a new rhythm; None asks whether it is one.
        lapse_ms: How long it is kept; 0: until it is removed.
        replace: Whether another definition that is there gives way.
    """
    due = "" if next_due_ms is None else next_due_ms
    args = [name, definition, due, lapse_ms, "replace" if replace else "keep"]
    return Command(_DECLARE, keys.script, args, _parse_declared)


def fire(
    keys: QueueKeys, entry: DueEntry, next_due_ms: int, overlap: str, tasks: Iterable[NewTask]
) -> Command[int]:
    """Fires an entry, unless it is no longer as it was seen; answers how many tasks, or -1."""
    sha = hashlib.sha1(entry.definition, usedforsecurity=False).hexdigest()
    args: list[bytes | str | int] = [entry.name, entry.due_ms, sha, next_due_ms, overlap]
    for task in tasks:
        args.extend(task)
    return Command(_FIRE, keys.script, args, int)


def forget(keys: QueueKeys, name: str) -> Command[bool]:
    """Removes an entry; answers whether there was one."""
    return Command(_FORGET, keys.script, [name], bool)


def list_recurring(keys: QueueKeys, start: int) -> Command[tuple[int, list[ListedEntry]]]:
    """Lists entries from one on; answers where to go on, or -1."""
    return Command(_RECURRING, keys.script, [start], _parse_listed)


def _parse_declared(reply: Sequence[int]) -> Declared:
    now, kept = reply
    return Declared(now, bool(kept))


def _parse_listed(reply: Sequence[Any]) -> tuple[int, list[ListedEntry]]:
    following, flat = reply
    return following, [ListedEntry(*flat[i : i + 5]) for i in range(0, len(flat), 5)]
