"""Text that others may have written, made safe to show."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Return the text as one line whose control characters are escaped.

    So it can neither forge another line nor command a terminal.

    Example:
        >>> escaped("all is well\\n\\x1b[2J")
        'all is well\\\\n\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
