"""Plugins and callbacks, as type checkers see them."""

from __future__ import annotations

from conveyor import Conveyor, Plugin, TaskRecord, Worker


class Plain(Plugin):
    def on_before_enqueue_task(self, task: TaskRecord) -> dict[str, str]:
        return {"name": task.name}

    def on_after_task_error(self, task: TaskRecord, error: BaseException) -> None: ...

    def on_child_start(self) -> None: ...

    def on_worker_start(self, worker: Worker) -> None:
        worker.pause()


class Async(Plugin):
    async def on_before_enqueue_task(self, task: TaskRecord) -> dict[str, str] | None:
        return None

    async def on_after_task_error(self, task: TaskRecord, error: BaseException) -> None: ...

    async def on_child_start(self) -> None: ...


class Wrong(Plugin):
    def on_worker_start(self) -> None: ...  # error: override | reportIncompatibleMethodOverride


def succeeded(task: TaskRecord) -> None: ...


async def failed(task: TaskRecord, error: str) -> None: ...


app = Conveyor("typed", plugins=[Plain(), Async()])
app.register_plugins(Plain(), Async())
app.register_plugins(Plain)  # error: arg-type | reportArgumentType
Worker(app, on_task_success=succeeded, on_task_failed=failed, idle_timeout=1.5)
Worker(app, on_task_success=failed)  # error: arg-type | reportArgumentType
