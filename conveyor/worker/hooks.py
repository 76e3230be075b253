"""Calls plugins in a child: around each run, and at the child's beginning and end.

Hooks are called once the outcome of a run is known and before it is sent, so a child that dies in
one has its task run again rather than its hook forgotten. In the sync lane they run on the task's
own thread, in the async lane on its event loop. An `async def` hook is awaited on the child's one
event loop wherever it is called from, so that what `on_child_start` opened there can be used.
Nothing that a hook raises gets out of here.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from conveyor.packing import read_error
from conveyor.plugins import report
from conveyor.records import TaskStatus
from conveyor.worker.aftermath import ERRORS, after_run
from conveyor.worker.frames import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from conveyor.plugins import Hook, Plugins
    from conveyor.records import TaskRecord
    from conveyor.worker.lanes import AsyncLane
    from conveyor.worker.runner import Ending, Run, Runner

    Call = tuple[Hook, tuple[Any, ...]]


class Hooks:
    """The plugins' hooks in one child.

    Args:
        plugins: The app's.
        runner: Of the runs.
        lane: The async one, or None where there is none.

    Attributes:
        around: Itself where there are any to call around a run, else None.
    """

    def __init__(self, plugins: Plugins, runner: Runner, lane: AsyncLane | None) -> None:
        self.around = self if plugins.run else None
        self._plugins = plugins
        self._runner = runner
        self._lane = lane
        plugins.wait_for = self._wait_for

    def start(self) -> None:
        """Calls `on_child_start`."""
        self._call_all((hook, ()) for hook in self._plugins.hooks("on_child_start"))

    def shut_down(self) -> None:
        """Calls `on_child_shutdown`."""
        self._call_all((hook, ()) for hook in self._plugins.hooks("on_child_shutdown"))

    def before(self, run: Run) -> None:
        """Tells of a run that is about to begin, on its own thread, and begins to time it.

        Raises:
            TaskCancelled: It was cancelled meanwhile.
        """
        self._call_all(self._before(run))
        self._runner.arm(run)

    async def abefore(self, run: Run) -> None:
        """The async twin of `before`."""
        await self._await_all(self._before(run))
        self._runner.arm(run)

    def after(self, run: Run, ending: Ending) -> None:
        """Tells what came of a run, on its own thread."""
        self._runner.disarm(run)
        self._call_all(self._after(run, ending))

    async def aafter(self, run: Run, ending: Ending) -> None:
        """The async twin of `after`."""
        self._runner.disarm(run)
        await self._await_all(self._after(run, ending))

    def _before(self, run: Run) -> Iterator[Call]:
        run.task = run.context.task
        for hook in self._plugins.hooks("on_before_task_processing"):
            yield hook, (run.task,)

    def _after(self, run: Run, ending: Ending) -> Iterator[Call]:
        task = _task_after(run, ending)
        outcome = Outcome.NAMES[ending.outcome]
        if outcome == "success":
            yield from self._of("on_after_task_success", task)
        elif outcome in ERRORS:
            yield from self._of("on_after_task_error", task, ending.error)
            if task.status is TaskStatus.FAILED:
                yield from self._of("on_after_task_fail", task, ending.error)
        yield from self._of("on_after_task_processing", task)

    def _of(self, name: str, *args: Any) -> Iterator[Call]:
        for hook in self._plugins.hooks(name):
            yield hook, args

    def _call_all(self, calls: Iterator[Call]) -> None:
        for hook, args in calls:
            try:
                answer = hook(*args)
                if inspect.isawaitable(answer):
                    self._wait_for(answer)
            except BaseException:  # a plugin may raise anything, even that the process is to exit
                report(hook)

    async def _await_all(self, calls: Iterator[Call]) -> None:
        for hook, args in calls:
            try:
                answer = hook(*args)
                if inspect.isawaitable(answer):
                    await answer
            except BaseException:
                report(hook)

    def _wait_for(self, awaitable: Awaitable[Any]) -> Any:
        lane = self._lane
        if lane is None:
            return asyncio.run(_finish(awaitable))
        if not lane.serves:
            return lane.loop.run_until_complete(_finish(awaitable))
        return asyncio.run_coroutine_threadsafe(_finish(awaitable), lane.loop).result()


def _task_after(run: Run, ending: Ending) -> TaskRecord:
    assert run.task is not None
    # The server's time of the claim and what has passed here since: this host's clock may be wrong.
    started = run.task.processing_started_at
    assert started is not None
    outcome = Outcome.NAMES[ending.outcome]
    failed = outcome in ERRORS
    return after_run(
        run.task,
        outcome,
        started + timedelta(seconds=time.monotonic() - run.job.taken_at),
        result=ending.result,
        error=read_error(ending.data) if failed else (None, None),
        delay_ms=round(ending.delay * 1000),
    )


async def _finish(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
