"""`conveyor worker --reload`: a worker that starts again when a Python file changes.

A process of its own watches the current directory and runs the worker as its child, so that all of
the app is imported anew. A worker that fails, as on a half-written file, waits for the next change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from conveyor.cli.parsing import Exit
from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

OPTION: Final = "--reload"
#: A path that has changed, a signal that came, or that the worker has ended.
News: TypeAlias = "Path | signal.Signals | Literal['ended']"


class Reloader:
    """Runs `conveyor` without `--reload`, and runs it again when a Python file changes.

    Args:
        arguments: Of `conveyor`.
        folder: What to watch, with all that is in it.

    Raises:
        ConfigurationError: The extra is not installed.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        own = [argument for argument in arguments if argument != OPTION]
        # -P: a file here that has the name of an installed module must not stand in for it.
        self._command = [sys.executable, "-P", "-m", "conveyor", *own]
        self._folder = folder
        self._changes = _python_changes(folder)
        self._news: SimpleQueue[News] = SimpleQueue()

    def run(self) -> int:
        """Works until a signal, or until a worker is done; gives the last worker's exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._news.put(signal.Signals(number)))
        _on_thread(self._watch)
        while True:
            worker = subprocess.Popen(self._command)
            _on_thread(partial(self._await_end, worker))
            if not self._must_start_again(worker):
                return Exit.FAILED if worker.returncode < 0 else worker.returncode

    def _must_start_again(self, worker: subprocess.Popen[bytes]) -> bool:
        """Follows one worker to its end; False when no other shall follow."""
        changed = stopping = ended = False
        while True:
            news = self._news.get()
            if news == "ended":
                ended = True
                if worker.returncode != Exit.DONE and not (changed or stopping):
                    _say(f"the worker ended with {worker.returncode}; waiting for a change")
                    continue
            elif isinstance(news, signal.Signals):
                stopping = stopping or news != signal.SIGUSR1
                # A terminal sends INT to the worker as well, and twice it ends what runs.
                worker.send_signal(signal.SIGTERM if news == signal.SIGINT else news)
            elif not (changed or stopping):
                changed = True
                _say(f"{os.path.relpath(news, self._folder)} has changed: starting again")
                worker.terminate()
            if ended:
                return changed and not stopping

    def _await_end(self, worker: subprocess.Popen[bytes]) -> None:
        worker.wait()
        self._news.put("ended")

    def _watch(self) -> None:
        for path in self._changes:
            self._news.put(path)


def _python_changes(folder: Path) -> Iterable[Path]:
    try:
        import watchfiles
    except ImportError:
        raise ConfigurationError(
            "--reload needs the package watchfiles: pip install 'conveyor-mq[reload]'"
        ) from None
    changes = watchfiles.watch(folder, watch_filter=watchfiles.PythonFilter())
    return (Path(min(path for _, path in some)) for some in changes)


def _on_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="conveyor-reload", daemon=True).start()


def _say(text: str) -> None:
    print(f"conveyor: {text}", file=sys.stderr, flush=True)
