"""Conveyor: a distributed task queue for Python on Redis or Valkey.

A tour of one call, `add.delay(1, 2)`: `task.py` binds and encodes it, `broker/commands.py` asks
`enqueue.lua` to store and queue it; a worker's loop (`worker/supervisor.py`) claims it with
`settle.lua` and hands it to a child (`worker/child.py`), whose outcome the loop settles with the
same script; that publishes to `broker/outcomes.py`, which wakes `result.py`'s `wait`. The whole
story is in `docs/tour.md`.
"""

import sys

from conveyor.amanager import AsyncManager
from conveyor.app import Conveyor
from conveyor.backoff import Backoff, constant, exponential, linear
from conveyor.codec import Opaque
from conveyor.context import Context, current_task
from conveyor.errors import (
    BrokerUnavailable,
    ConfigurationError,
    ConveyorError,
    IdConflict,
    PartialEnqueue,
    PayloadTooLarge,
    QueueFull,
    Retry,
    SerializationError,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskInterrupted,
    TaskNotFound,
    TaskStalled,
    TaskTimeout,
    UnknownTask,
    WaitTimeout,
)
from conveyor.events import Event, EventType
from conveyor.listener import Listener
from conveyor.manager import Manager
from conveyor.orchestrator import Orchestrator
from conveyor.plugins import Plugin
from conveyor.queues import RateLimit, TaskCounts, WorkerRecord
from conveyor.records import REDACTED, Attempt, TaskRecord, TaskStatus
from conveyor.recurrence import RecurringRecord
from conveyor.result import TaskResult
from conveyor.task import AsyncTask, Call, Task

if sys.platform != "win32":  # a worker forks
    from conveyor.worker.worker import Worker

__all__ = [
    # The app
    "Conveyor",
    # Tasks
    "AsyncTask",
    "Call",
    "Task",
    # Results and records
    "Attempt",
    "Opaque",
    "RecurringRecord",
    "TaskRecord",
    "TaskResult",
    "TaskStatus",
    # Looking after queues
    "AsyncManager",
    "Manager",
    "RateLimit",
    "TaskCounts",
    "WorkerRecord",
    # Events
    "Event",
    "EventType",
    "Listener",
    "REDACTED",
    # Running tasks
    "Orchestrator",
    "Worker",
    # Plugins
    "Plugin",
    # Inside a run
    "Context",
    "current_task",
    # Backoff
    "Backoff",
    "constant",
    "exponential",
    "linear",
    # Errors
    "BrokerUnavailable",
    "ConfigurationError",
    "ConveyorError",
    "IdConflict",
    "PartialEnqueue",
    "PayloadTooLarge",
    "QueueFull",
    "Retry",
    "SerializationError",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskInterrupted",
    "TaskNotFound",
    "TaskStalled",
    "TaskTimeout",
    "UnknownTask",
    "WaitTimeout",
]  # fmt: skip
