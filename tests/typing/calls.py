"""The types of tasks and of what their calls return."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from conveyor import AsyncTask, Call, Conveyor, Task, TaskRecord, TaskResult, TaskStatus

app = Conveyor("typed", broker="redis://localhost")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task()
def shout(text: str, *, times: int = 1) -> str:
    return text.upper() * times


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(retry_limit=3)
async def store(data: bytes) -> None:
    del data


def tasks() -> None:
    assert_type(add(1, 2), int)
    assert_type(add.name, str)
    assert_type(add.options(queue="fast", priority=9).delay(1, 2), TaskResult[int])
    assert_type(app.result("some-id"), TaskResult[Any])
    assert_type(add.result("some-id"), TaskResult[int])
    kept: list[Task[..., int]] = [add, add.options(priority=1)]
    assert_type(kept[0].delay("anything"), TaskResult[int])
    kept_async: AsyncTask[[str], bytes] = fetch
    assert_type(kept_async.delay("a"), TaskResult[bytes])


def sync_calls() -> None:
    assert_type(add.delay(1, 2), TaskResult[int])
    assert_type(add.delay(1), TaskResult[int])
    assert_type(add.delay(x=1, y=2), TaskResult[int])
    assert_type(shout.delay("a", times=2), TaskResult[str])
    assert_type(add.call(1, y=2), Call[int])
    assert_type(add.schedule(1, 2, after=30), TaskResult[int])
    assert_type(add.schedule(1, 2, after=timedelta(minutes=1)), TaskResult[int])
    assert_type(add.schedule(1, y=2, at=datetime.now(UTC)), TaskResult[int])
    assert_type(add.call(1).delay(), TaskResult[int])
    assert_type(add.call(1).schedule(at=1_800_000_000.0), TaskResult[int])
    assert_type(add.map([(1, 2), (3, 4)]), list[TaskResult[int]])
    assert_type(add.map([add.call(1, 2), (3, 4)]), list[TaskResult[int]])
    assert_type(app.map([add.call(1, 2), add.call(3)]), list[TaskResult[int]])
    mixed: list[Call[object]] = [add.call(1), shout.call("a"), fetch.call("b")]
    assert_type(app.map(mixed), list[TaskResult[object]])


def the_result_of_an_async_task_is_no_coroutine() -> None:
    assert_type(fetch.delay("a"), TaskResult[bytes])
    assert_type(fetch.delay("a").wait(), bytes)
    assert_type(fetch.options(priority=1).delay("a"), TaskResult[bytes])
    assert_type(store.delay(b""), TaskResult[None])


async def async_calls() -> None:
    assert_type(await fetch("a"), bytes)
    assert_type(await add.adelay(1, 2), TaskResult[int])
    assert_type(await fetch.adelay("a"), TaskResult[bytes])
    assert_type(await add.aschedule(1, 2, after=1), TaskResult[int])
    assert_type(await add.amap([(1, 2)]), list[TaskResult[int]])
    assert_type(await app.amap([fetch.call("a")]), list[TaskResult[bytes]])
    assert_type(await add.call(1).adelay(), TaskResult[int])
    assert_type(await fetch.call("a").aschedule(after=1.5), TaskResult[bytes])


async def results(result: TaskResult[int]) -> None:
    assert_type(result.wait(), int)
    assert_type(result.wait(5), int)
    assert_type(result.wait(timeout=timedelta(seconds=5)), int)
    assert_type(await result, int)
    assert_type(await (await fetch.adelay("a")), bytes)
    assert_type(result.id, str)
    assert_type(result.queue, str)
    assert_type(result.created, bool)
    assert_type(result.status, TaskStatus)
    assert_type(result.task(), TaskRecord | None)
    assert_type(result.cancel(), bool)
    assert_type(await result.astatus(), TaskStatus)
    assert_type(await result.atask(), TaskRecord | None)
    assert_type(await result.acancel(), bool)
    wider: list[TaskResult[object]] = [result, shout.delay("a")]
    assert_type(wider[0].wait(), object)


async def contexts() -> None:
    with Conveyor("typed") as opened:
        assert_type(opened, Conveyor)
    async with Conveyor("typed") as opened:
        assert_type(opened, Conveyor)


def wrong_arguments() -> None:
    add.delay("a", 2)  # error: arg-type | reportArgumentType
    add.delay(1, 2, 3)  # error: call-arg | reportCallIssue
    add.delay()  # error: call-arg | reportCallIssue
    add.delay(1, z=2)  # error: call-arg | reportCallIssue
    add("a")  # error: arg-type | reportArgumentType
    add.call("a")  # error: arg-type | reportArgumentType
    add.options(priority=1).delay("a")  # error: arg-type | reportArgumentType
    shout.delay("a", 2)  # error: call-arg | reportCallIssue
    fetch.delay(b"a")  # error: arg-type | reportArgumentType
    add.schedule(1, 2, after="soon")  # error: arg-type | reportArgumentType
    add.map([1, 2])  # error: list-item | reportArgumentType
    add.map([shout.call("a")])  # error: list-item | reportArgumentType
    app.map([(1, 2)])  # error: arg-type | reportArgumentType


async def wrong_async_arguments() -> None:
    await add.adelay("a")  # error: arg-type | reportArgumentType
    await fetch.adelay()  # error: call-arg | reportCallIssue
