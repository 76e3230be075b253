"""Tasks that tell what they do, wait until they may go on, or do harm.

`Tasks` declares them on an app: a test's own, or the one of `application.py` in a worker's process.
What a run notes goes to the directory in `TEST_HISTORY`; a gate is a file that a test creates to
let a task go on, so that no test depends on how long anything takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor import Context, Conveyor, current_task
from conveyor.errors import TaskTimeout

from .history import History
from .misdeeds import MISDEEDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor import TaskRecord

#: Seconds between looks at a gate.
LOOK = 0.005

_histories: dict[str, History] = {}


def history() -> History:
    """This process's, in the directory that the environment names."""
    directory = os.environ["TEST_HISTORY"]
    return _histories.setdefault(directory, History(directory))


def note(event: str, *about: object) -> int:
    """Notes an event of the current run; returns its fence."""
    context = current_task()
    history().note(event, context.task.id, context.fence, *about)
    return context.fence


def noop() -> None:
    """Nothing."""


def add(x: int, y: int) -> int:
    """A sum."""
    return x + y


async def aadd(x: int, y: int) -> int:
    """A sum."""
    return x + y


def echo(value: Any) -> Any:
    """What it was given."""
    return value


def where() -> int:
    """The child's pid."""
    return os.getpid()


def effect() -> int:
    """Has an effect; returns its fence."""
    note("start")
    return note("effect")


async def aeffect() -> int:
    """Has an effect; returns its fence."""
    note("start")
    return note("effect")


def nap(seconds: float) -> None:
    """Sleeps, so that it lasts."""
    note("start")
    time.sleep(seconds)


def hold(gate: str) -> int:
    """Goes on when the gate is open."""
    note("start", os.getpid())
    while not Path(gate).exists():
        time.sleep(LOOK)
    return note("effect")


async def ahold(gate: str) -> int:
    """Goes on when the gate is open."""
    note("start", os.getpid())
    while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(LOOK)
    return note("effect")


async def hold_loop(gate: str) -> int:
    """Goes on when the gate is open, and lets no other coroutine go on before."""
    return hold(gate)


def hold_stubbornly(gate: str) -> int:
    """Notes that it was asked to stop, and goes on until the gate is open."""
    note("start")
    while True:
        with contextlib.suppress(TaskTimeout):
            while not Path(gate).exists():
                time.sleep(LOOK)
            return note("effect")
        note("swallowed")


async def ahold_stubbornly(gate: str) -> int:
    """Notes that it was cancelled, and goes on until the gate is open."""
    note("start")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(LOOK)
            return note("effect")
        note("swallowed")


def hold_then_speak(gate: str) -> int:
    """Goes on when the gate is open; notes whether its progress was kept."""
    hold(gate)
    context = current_task()
    return note("kept" if context.update_progress(context.fence) else "refused")


def swallow() -> str:
    """Swallows the timeout and returns all the same."""
    try:
        time.sleep(60)
    except TaskTimeout:
        note("swallowed")
    return "done"


def compute_in_c() -> int:
    """One call of C that holds the interpreter and lets no signal through, for minutes."""
    note("start")
    return sum(range(10**12))


def hold_interpreter(seconds: float) -> int:
    """One call of C that holds the interpreter for a while."""
    note("start")
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    return note("effect")


def exit_process() -> None:
    """Ends its child."""
    note("start")
    os._exit(3)


def crash() -> None:
    """Ends its child by a segmentation fault."""
    note("start")
    ctypes.string_at(0)


def run_twice() -> int:
    """Forks, and returns on both sides."""
    os.fork()
    return note("effect", os.getpid())


def fail_twice() -> None:
    """Forks, and raises on both sides."""
    os.fork()
    note("effect", os.getpid())
    raise ValueError("on both sides")


def start_program() -> list[int]:
    """Runs one program to its end, and ends another by TERM; their exit codes."""
    done = subprocess.run(["sh", "-c", "exit 7"], check=False)
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        sleeper.terminate()
        return [done.returncode, sleeper.wait()]


def hoard(size: int) -> int:
    """Keeps memory for good; returns the child's pid."""
    _hoarded.append(b"x" * size)
    return os.getpid()


_hoarded: list[bytes] = []


async def wait_for_the_last() -> int:
    """One of several in a child: it waits for the child's death, or finds itself alone."""
    return await _beside_others(partial(asyncio.sleep, 3600))


async def die_with_others(others: int) -> None:
    """Ends its child once so many others run in it, or when it was left alone."""

    async def wait() -> None:
        while len(_here) < others + 1:  # noqa: ASYNC110
            await asyncio.sleep(LOOK)
        os._exit(3)

    await _beside_others(wait)
    os._exit(3)


async def _beside_others(wait: Callable[[], Any]) -> int:
    note("start", os.getpid())
    _here.add(current_task().task.id)
    if current_task().task.stall_retries < 2:
        await wait()
    note("alone", len(_here))
    _here.discard(current_task().task.id)
    return note("effect")


_here: set[str] = set()


def say(context: Context, gate: str) -> int:
    """Says of itself what a test then reads, and waits to be read."""
    context.update_progress(0.5)
    context.update({"stage": "half"})
    while not Path(gate).exists():
        time.sleep(LOOK)
    context.update_progress(1.0)
    return context.fence


async def asay(context: Context, gate: str) -> int:
    """Says of itself what a test then reads, and waits to be read."""
    await context.aupdate_progress(0.5)
    await context.aupdate({"stage": "half"})
    while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(LOOK)
    await context.aupdate_progress(1.0)
    return context.fence


def introduce(context: Context, greeting: str) -> list[Any]:
    """What a run knows of itself, by its argument and by `current_task`."""
    other = current_task()
    return [greeting, context.task.id, other.task.id, context.fence, context.task.headers]


def ask_again(context: Context, times: int) -> int:
    """Asks to be retried so many times."""
    note("start")
    if context.task.error_retries < times:
        context.retry(delay=0.05, reason=f"not yet {context.task.error_retries}")
    return context.fence


def flaky(failures: int, kind: str = "ValueError") -> int:
    """Raises so many times, then returns its fence."""
    note("start")
    fence = current_task().fence
    if fence <= failures:
        raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}[kind](fence)
    return fence


def send_more(x: int) -> int:
    """A task that sends another, and waits for it."""
    return _declared[os.environ["TEST_HISTORY"]].add.delay(x, 1).wait(timeout=30)


def pass_on(times: int) -> None:
    """Sends another like itself, so many times, and waits for none."""
    if times:
        _declared[os.environ["TEST_HISTORY"]].pass_on.delay(times - 1)
        time.sleep(0.02)  # so long that its worker claims nothing ahead


def recall(context: Context) -> list[Any]:
    """What the second run knows of the first."""
    before = context.task
    if before.error_retries:
        return [before.data, before.progress, before.error, len(before.attempts)]
    context.update({"done": 3})
    context.update_progress(0.5)
    context.retry(delay=0.01, reason="to go on from there")


async def asend_more(x: int) -> int:
    """A task that sends another, and waits for it."""
    return await (await _declared[os.environ["TEST_HISTORY"]].add.adelay(x, 1))


def _soon(record: TaskRecord, error: BaseException) -> float:
    history().note("backoff", record.id, record.error_retries, type(error).__name__)
    return 0.01 * (record.error_retries + 1)


def _never(_record: TaskRecord, _error: BaseException) -> float:
    return float("inf")


def _tomorrow(_record: TaskRecord, _error: BaseException) -> timedelta:
    return timedelta(days=1)


def _nan(_record: TaskRecord, _error: BaseException) -> float:
    return float("nan")


def _broken(_record: TaskRecord, _error: BaseException) -> float:
    raise RuntimeError("no idea")


_PLAIN = (
    noop, add, aadd, echo, where, effect, aeffect, nap, hold, ahold, hold_loop, hold_stubbornly,
    ahold_stubbornly, hold_then_speak, swallow, compute_in_c, hold_interpreter, exit_process,
    crash, run_twice, fail_twice, start_program, hoard, wait_for_the_last, die_with_others,
    send_more, asend_more, pass_on, flaky, *MISDEEDS,
)  # fmt: skip
_BOUND = (say, asay, introduce, ask_again, recall)
_declared: dict[str, Tasks] = {}


class Tasks:
    """All of them, declared on an app: each is an attribute of its own name.

    Args:
        app: Whose.
        only: Names of those to declare; all when it is empty.
    """

    def __init__(self, app: Conveyor, only: str = "") -> None:
        known = set(only.split(",")) if only else None
        for function in _PLAIN:
            self._declare(app, known, function)
        for function in _BOUND:
            self._declare(app, known, function, bind=True)
        choosy = {"retry_on": (ValueError, OSError), "no_retry_on": [FileNotFoundError, OSError]}
        self._declare(app, known, flaky, name="choosy", backoff="constant", **choosy)
        for backoff in (_soon, _never, _tomorrow, _nan, _broken):
            self._declare(app, known, flaky, name=f"flaky{backoff.__name__}", backoff=backoff)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no task {name} is declared here")

    def _declare(
        self,
        app: Conveyor,
        known: set[str] | None,
        function: Any,
        *,
        name: str = "",
        **options: Any,
    ) -> None:
        name = name or function.__name__
        if known is None or name in known:
            setattr(self, name, app.task(name=name, **options)(function))


def declare(app: Conveyor, only: str = "") -> Tasks:
    """Declares the tasks of this process's app, for those among them that send others."""
    return _declared.setdefault(os.environ["TEST_HISTORY"], Tasks(app, only))
