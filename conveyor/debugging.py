"""Debug logging that is turned on from outside: `CONVEYOR_DEBUG=conveyor.*`.

The variable holds patterns of logger names, separated by commas. The loggers they name are set to
DEBUG, in whatever process creates an app: callers, workers, scripts. Where the program has set up
no logging of its own, the lines go to stderr.
"""

from __future__ import annotations

import fnmatch
import logging
from typing import Final, TextIO

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class FallbackHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr for as long as the program has set up no logging of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether nobody else shows the record."""
        return not logging.getLogger().handlers and bool(super().filter(record))


def turn_on(patterns: str) -> None:
    """Sets the loggers that the patterns name to DEBUG.

    Args:
        patterns: Such as `conveyor.*` (all), `conveyor.link,conveyor.worker` or `conveyor.task.*`.
    """
    root = logging.getLogger("conveyor")
    if not any(isinstance(handler, FallbackHandler) for handler in root.handlers):
        handler = FallbackHandler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        for name in _named(pattern):
            logging.getLogger(name).setLevel(logging.DEBUG)


def _named(pattern: str) -> list[str]:
    """`a.*` is all beneath `a`, which is `a` itself, as loggers inherit."""
    parent = pattern.removesuffix(".*")
    known = sorted(name for name in logging.root.manager.loggerDict if _is_ours(name))
    found = [parent] if not set(parent) & set("*?[") else fnmatch.filter(known, pattern)
    ours = [name for name in found if _is_ours(name)]
    if not ours:
        logging.getLogger("conveyor").warning(
            "CONVEYOR_DEBUG=%s names no logger of ours: use conveyor.*, or some of %s",
            pattern,
            ", ".join(known),
        )
    return ours


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "conveyor"
