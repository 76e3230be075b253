"""How a child ends: as it stands, once its output is written.

What its parent has not written yet when it forks, each child would write too.
"""

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
    """Writes out what is buffered."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()
