"""What tests of listeners need: tasks to hear of, a callback that keeps events, and loops."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from playing import SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conveyor import Conveyor, Event

#: The life of a task that ends well.
LIFE = ["task_queued", "task_processing", "task_success", "task_complete"]


def send(app: Conveyor, *values: Any, queue: str | None = None, **named: Any) -> str:
    """Enqueues a task; its id."""
    task = app.tasks.get("keep")
    if task is None:

        @app.task(name="keep")
        def keep(*values: Any, **named: Any) -> Any:
            return values

        task = keep
    options: dict[str, Any] = {"queue": queue} if queue else {}
    return task.options(**options).delay(*values, **named).id


class Heard:
    """A callback that keeps what it was called with."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __call__(self, event: Event) -> None:
        self.events.put(event)

    def next(self) -> Event:
        return self.events.get(timeout=SOON)

    def ids(self, count: int) -> list[str]:
        return [task_id_of(self.next()) for _ in range(count)]


def task_id_of(event: Event) -> str:
    assert event.task is not None
    return event.task.id


def take(events: Iterator[Event], count: int) -> list[Event]:
    """The next so many events; a loop that hears too few hangs until pytest ends it."""
    return [next(events) for _ in range(count)]


def types(events: list[Event]) -> list[str]:
    return [event.type.value for event in events]
