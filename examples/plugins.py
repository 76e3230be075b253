"""Two plugins: one carries the tenant along with every task, one writes an audit into a database.

It prints:

    greet: hello from acme
    greet: hello from umbrella
    refused: there is no tenant
    acme greet success
    umbrella greet success
    acme fail ValueError: too bad
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

from conveyor import Conveyor, Plugin, TaskFailed, TaskRecord, Worker

tenant: ContextVar[str] = ContextVar("tenant", default="")


class Tenants(Plugin):
    """Whoever sends a task does it for a tenant, and so does the run."""

    def on_before_enqueue_task(self, task: TaskRecord) -> dict[str, str]:
        if not tenant.get():
            raise PermissionError("there is no tenant")  # reaches the caller: nothing is sent
        return {"tenant": tenant.get()}

    def on_before_task_processing(self, task: TaskRecord) -> None:
        tenant.set(task.headers["tenant"])


class Audit(Plugin):
    """Writes down how each task ended. Each child has a connection of its own."""

    database: sqlite3.Connection

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_child_start(self) -> None:
        self.database = sqlite3.connect(self.path)

    def on_child_shutdown(self) -> None:
        self.database.close()

    def on_after_task_success(self, task: TaskRecord) -> None:
        self.note(task, "success")

    def on_after_task_fail(self, task: TaskRecord, error: BaseException) -> None:
        self.note(task, f"{type(error).__name__}: {error}")

    def note(self, task: TaskRecord, end: str) -> None:
        row = (task.headers["tenant"], task.name.rpartition(".")[2], end)
        with self.database:
            self.database.execute("INSERT INTO audit VALUES (?, ?, ?)", row)


app = Conveyor("plugins", plugins=[Tenants()])


@app.task
def greet() -> str:
    return f"hello from {tenant.get()}"


@app.task
def fail(reason: str) -> None:
    raise ValueError(reason)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "audit.db")
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE audit (tenant TEXT, task TEXT, end TEXT)")
        app.register_plugins(Audit(path))
        send()
        for row in database.execute("SELECT * FROM audit"):
            print(*row)
        database.close()


def send() -> None:
    worker = Worker(app, concurrency=1)
    worker.start()
    for name in ("acme", "umbrella"):
        tenant.set(name)
        print("greet:", greet.delay().wait(timeout=10))
    tenant.set("")
    try:
        greet.delay()
    except PermissionError as error:
        print("refused:", error)
    tenant.set("acme")
    with suppress(TaskFailed):  # the audit has it
        fail.delay("too bad").wait(timeout=10)
    worker.shutdown()
    app.close()


if __name__ == "__main__":
    main()
