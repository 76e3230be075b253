"""A child process that ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .programs import START_TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

# prctl(1, 9) is PR_SET_PDEATHSIG with SIGKILL; exec keeps it, and the pid. It comes too late when
# the parent has died in between, hence the comparison. A preexec_fn would do the same inside a fork
# of a process with threads, which may deadlock.
_LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


class Process:
    """A child process that ends with this one, however this one ends.

    The kernel watches the *thread* that started it; hence one that stays as long as the child, so
    that a test may start processes from threads of its own.

    Args:
        command: What it runs.
        cwd: Its current directory.
        log: A file to which its output is added.
        env: All of its environment; None: as this one's.
    """

    def __init__(
        self, command: list[str], cwd: Path | str, log: Path, env: dict[str, str] | None = None
    ) -> None:
        if sys.platform == "linux":
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _LAUNCH,
                str(os.getpid()),
                *command,
            ]
        started: Future[subprocess.Popen[bytes]] = Future()
        self._keeper = threading.Thread(
            target=self._keep, args=(command, cwd, log, env, started), daemon=True
        )
        self._keeper.start()
        self._popen = started.result()
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        return self._keeper.is_alive()

    @property
    def code(self) -> int:
        """Its exit code, or minus the signal that ended it; once it is gone."""
        return int(self._popen.returncode)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """Signal it, awake if it was paused, and return when it is gone."""
        self.send(number)
        self.send(signal.SIGCONT)
        self._keeper.join(START_TIMEOUT)
        if self.alive:
            raise TimeoutError(f"process {self.pid} lived on after {number.name}: see its log")

    @staticmethod
    def _keep(
        command: list[str],
        cwd: Path | str,
        log: Path,
        env: dict[str, str] | None,
        started: Future[subprocess.Popen[bytes]],
    ) -> None:
        try:
            with log.open("ab") as output:
                popen = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the tests
                )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(popen)
        popen.wait()
