"""Real processes of ``python -m conveyor`` for tests: a worker, or any command in a user's project.

    with RunningWorker("myapp", tmp_path, "-c", "2", env={"CONVEYOR_BROKER": server.url}) as worker:
        os.kill(worker.children()[0], signal.SIGKILL)
        worker.wait_for("was killed by SIGKILL")

    project = Project(tmp_path, server.url)
    with project.worker("-c", "1"):
        assert project.conveyor("-A", "myapp", "call", "add", "1", "2", "--wait").out == "3\\n"

Failure story. A process that ends before it is up raises with what it printed. One that a test
forgets ends with the test process, however that ends (on Linux the kernel sees to it, elsewhere an
exit handler). Nothing is ever signalled but what was started here and its children.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple, Self

from servers import freeze, wait_until
from servers.process import Process

import conveyor

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds a process may take to start or to end: over any grace, under pytest's timeout.
DEADLINE = 40.0
#: The directory that has the package.
ROOT = Path(conveyor.__file__).parent.parent

#: A user's module with a task of each kind that the tests of commands need.
TASKS = """
import os
import time
from datetime import UTC, datetime

from conveyor import Context, Conveyor

app = Conveyor("NAME")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
async def double(x: int) -> int:
    return 2 * x

@app.task
def echo(*args: object, **kwargs: object) -> list[object]:
    return [list(args), kwargs]

@app.task
def moment() -> datetime:
    return datetime(2027, 1, 1, tzinfo=UTC)

@app.task
def boom(text: str = "bad") -> None:
    raise ValueError(text)

@app.task(bind=True)
def hold(ctx: Context, seconds: float = 60) -> str:
    ctx.log.info("holding")
    time.sleep(seconds)
    return "held"
"""

_numbers = count(1)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without our variables, so that the package can be imported."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONVEYOR_")}
    path = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH", "")]))
    return own | {"PYTHONPATH": path, "COLUMNS": "120"} | dict(extra or {})


class Running:
    """A process of this Python, with its output in one file.

    Args:
        arguments: After the interpreter, such as ``"-m", "conveyor", "demo"``.
        cwd: Its current directory.
        env: Variables beside this process's own, of which those named CONVEYOR_… are left out.

    Attributes:
        pid: Its process id.
    """

    def __init__(
        self, *arguments: str, cwd: Path | str, env: Mapping[str, str] | None = None
    ) -> None:
        # A name and no open file: this process reads while the other one appends.
        handle, name = tempfile.mkstemp(prefix="conveyor-test-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        command = [sys.executable, *arguments]
        self._process = Process(command, cwd, self._log, environment(env))
        self.pid = self._process.pid
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def output(self) -> str:
        """All that it has printed so far, errors included."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it has not ended; True also while it is paused."""
        return self._process.alive

    def children(self) -> list[int]:
        """Pids of its children, oldest first; empty once it is gone."""
        if sys.platform == "linux":
            lists: list[str] = []
            for path in Path(f"/proc/{self.pid}/task").glob("*/children"):
                with suppress(OSError):  # the thread has ended meanwhile
                    lists += path.read_text().split()
            return sorted(map(int, lists))
        found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
        pairs = (map(int, line.split()) for line in found.stdout.splitlines())
        return sorted(pid for pid, parent in pairs if parent == self.pid)

    def wait_for(self, text: str, *, seconds: float = DEADLINE) -> None:
        """Wait until its output has ``text``.

        Raises:
            RuntimeError: It has ended without; has its output.
            TimeoutError: It had not after ``seconds``; has its output.
        """

        def said() -> bool:
            ended = not self.alive  # looked at first: what it said last is then in the output
            if text in self.output:
                return True
            if ended:
                raise RuntimeError(f"it ended and never said {text!r}:\n{self.output}")
            return False

        self._until(said, f"said {text!r}", seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it is gone."""
        self._process.send(number)

    def wait(self, *, seconds: float = DEADLINE) -> int:
        """Wait for its end and return its exit code, or minus the signal that ended it.

        Raises:
            TimeoutError: It lives on after ``seconds``; has its output.
        """
        self._until(lambda: not self.alive, f"process {self.pid} gone", seconds)
        return self._process.code

    def stop(self, *, seconds: float = DEADLINE) -> int:
        """End it warmly (TERM), and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def kill(self) -> None:
        """End it at once (SIGKILL), also when it is paused."""
        self.signal(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        """Stop it with SIGSTOP until ``resume``; its children go on."""
        freeze(self.pid)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it lives, and forget its output."""
        atexit.unregister(self.close)
        if self.alive:
            self.kill()
        self._log.unlink(missing_ok=True)

    def _until(self, condition: object, what: str, seconds: float) -> None:
        try:
            wait_until(condition, what, seconds=seconds)  # type: ignore[arg-type]
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its output:\n{self.output}") from None


class RunningWorker(Running):
    """``conveyor -A app_module worker …`` in a process of its own, up once it is created.

    Args:
        app_module: For ``-A``: ``module`` or ``module:attribute``; importable from ``cwd``.
        cwd: Its current directory.
        args: Further arguments, such as ``"-c", "2"``.
        env: Variables beside this process's own; usually ``{"CONVEYOR_BROKER": server.url}``.
        up: Wait until it has a child (False: return at once, as for a server that is down).

    Raises:
        RuntimeError: It ended before it was up; has its output.
        TimeoutError: It was not up in time; has its output.

    Example:
        >>> with RunningWorker("myapp", tmp_path, "-c", "2", env=env) as worker:
        ...     worker.stop()
        0
    """

    def __init__(
        self,
        app_module: str,
        cwd: Path | str,
        *args: str,
        env: Mapping[str, str] | None = None,
        up: bool = True,
    ) -> None:
        super().__init__("-m", "conveyor", "-A", app_module, "worker", *args, cwd=cwd, env=env)
        if up:
            try:
                self._until(self._is_up, "the worker has children", DEADLINE)
            except BaseException:
                self.close()
                raise

    def _is_up(self) -> bool:
        ended = not self.alive
        if self.children():
            return True
        if ended:
            raise RuntimeError(f"the worker ended before it was up:\n{self.output}")
        return False


class Done(NamedTuple):
    """What a command that has ended printed."""

    code: int
    out: str
    err: str


class Project:
    """A directory with a user's ``myapp.py``, in which commands are run.

    Args:
        directory: Where; exists.
        broker: For CONVEYOR_BROKER; None: the embedded server.
        source: The module; ``NAME`` in it becomes a name that no other project has.
    """

    def __init__(self, directory: Path, broker: str | None, source: str = "") -> None:
        self.directory = directory
        self.env = {"CONVEYOR_BROKER": broker} if broker else {}
        self.name = f"project-{os.getpid()}-{next(_numbers)}"
        self.write("myapp.py", source or TASKS)

    def write(self, name: str, source: str) -> None:
        """Put a file there; of the same size and in the same second Python may run the old one."""
        text = dedent(source).replace("NAME", self.name)
        (self.directory / name).write_text(text, encoding="utf-8")

    def conveyor(self, *arguments: str, **env: str) -> Done:
        """Run ``conveyor …`` to its end."""
        return self.python("-m", "conveyor", *arguments, **env)

    def python(self, *arguments: str, **env: str) -> Done:
        """Run this interpreter to its end."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=environment(self.env | env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **env: str) -> Running:
        """Run ``conveyor …`` beside the test."""
        return Running("-m", "conveyor", *arguments, cwd=self.directory, env=self.env | env)

    def worker(self, *arguments: str, up: bool = True) -> RunningWorker:
        """Run a worker of ``myapp`` beside the test."""
        return RunningWorker("myapp", self.directory, *arguments, env=self.env, up=up)
