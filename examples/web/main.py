"""A web service that answers at once and has a worker do what takes long.

In this directory, with `pip install fastapi uvicorn`, in two terminals:

    conveyor -A app worker
    uvicorn main:web

    curl localhost:8000/tasks --json '{"title": "May", "pages": 9}'
    curl localhost:8000/tasks/ID
    curl localhost:8000/tasks/ID/wait?seconds=5

Nothing here blocks the event loop: sending, looking and waiting have async forms. A wait costs no
polling and no connection of its own, so many clients may wait at once.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

from app import app, write_report
from fastapi import FastAPI, HTTPException, Query, status
from pydantic import BaseModel, Field

from conveyor import TaskCancelled, TaskFailed, TaskNotFound, TaskRecord, TaskStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Order(BaseModel):
    title: str
    pages: int = Field(ge=1, le=100)


class View(BaseModel):
    """What a client may know of a task."""

    id: str
    status: TaskStatus
    progress: float | None = None
    result: str | None = None
    error: str | None = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
    async with app:
        yield


web = FastAPI(title="Reports", lifespan=lifespan)


@web.post("/tasks", status_code=status.HTTP_202_ACCEPTED)
async def order(wanted: Order) -> View:
    result = await write_report.adelay(wanted.title, wanted.pages)
    return View(id=result.id, status=TaskStatus.QUEUED)


@web.get("/tasks/{task_id}")
async def show(task_id: str) -> View:
    return view_of(await write_report.result(task_id).atask())


@web.get("/tasks/{task_id}/wait")
async def wait(task_id: str, seconds: Annotated[float, Query(gt=0, le=60)] = 10) -> View:
    """Answers when the task has ended, or after so many seconds with what there is by then."""
    result = write_report.result(task_id)
    try:
        async with asyncio.timeout(seconds):
            await result
    except (TimeoutError, TaskCancelled, TaskFailed):
        pass  # whichever it was, the record says so
    except TaskNotFound as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from error
    return await show(task_id)


def view_of(record: TaskRecord | None) -> View:
    if record is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such task")
    return View(
        id=record.id,
        status=record.status,
        progress=record.progress,
        result=record.result,
        error=record.error,
    )
