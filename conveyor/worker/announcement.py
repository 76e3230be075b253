"""What a worker says of itself to people who list workers."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, cast

from conveyor.errors import SerializationError
from conveyor.packing import pack, unpack

if TYPE_CHECKING:
    from conveyor.worker.plan import WorkerPlan


def announcement(plan: WorkerPlan) -> bytes:
    """Where the worker is and what it can do, packed."""
    return pack(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": list(plan.queues),
            "concurrency": plan.concurrency,
            "threads": plan.threads,
            "coroutines": plan.coroutines,
            "beat": plan.beat,
        }
    )


def read_announcement(data: bytes) -> dict[str, Any]:
    """What `announcement` packed, or nothing of it when another version wrote something else."""
    try:
        fields = unpack(data, "a worker's announcement")
    except SerializationError:
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
