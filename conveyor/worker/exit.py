"""How a child ends: as it stands, once it has said what it had to say."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Final, NoReturn

log = logging.getLogger("conveyor.child")

#: The exit code of a child in which something failed beside its runs.
FAILED: Final = 70


def end_process() -> NoReturn:
    """Ends this child for the exception that is being handled, wherever it came up."""
    try:
        log.exception("child %d failed", os.getpid())
    finally:
        exit_with(FAILED)


def exit_with(code: int) -> NoReturn:
    """Ends this process; handlers of its exit, which are its parent's, are not called."""
    try:
        logging.shutdown()
        flush_output()
    finally:
        os._exit(code)


def flush_output() -> None:
    """Writes out what is buffered; before a fork, since each child would write a copy."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()
