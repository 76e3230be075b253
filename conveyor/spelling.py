"""The nearest known name, for the errors that a misspelt one causes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one of ``known`` that ``name`` most resembles, however little.

    Example:
        >>> nearest("retry_limt", ["queue", "retry_limit"])
        'retry_limit'
    """
    return get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]
