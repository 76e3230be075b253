"""Managers, what they send and tasks one by one; `manager` is of both kinds, sync and async."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from managing import Driven
from playing import ERROR, SOON, Player, claim, end
from servers import Server, wait_until

from conveyor import (
    AsyncManager,
    BrokerUnavailable,
    ConfigurationError,
    Conveyor,
    IdConflict,
    Manager,
    PartialEnqueue,
    SerializationError,
    TaskCounts,
    TaskNotFound,
    TaskResult,
    TaskStatus,
    WaitTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def add(x: int, y: int = 0) -> int:
    return x + y


# Twins.


def test_the_twins_have_the_same_methods() -> None:
    ours, theirs = (
        {name: one for name, one in vars(kind).items() if not name.startswith("__")}
        for kind in (Manager, AsyncManager)
    )
    assert ours.keys() == theirs.keys()
    for name, method in ours.items():
        if inspect.isfunction(method):
            assert inspect.iscoroutinefunction(theirs[name]), name
            assert inspect.signature(method) == inspect.signature(theirs[name]), name


def test_a_manager_has_the_apps_queue_or_the_one_it_is_given(app: Conveyor) -> None:
    other = Conveyor("other", broker=app.client.broker.server.client(), queue="own")
    assert (app.manager().queue, other.manager().queue) == ("default", "own")
    assert repr(app.manager("side")) == "<Manager side>"
    assert repr(app.amanager("side")) == "<AsyncManager side>"
    with pytest.raises(ConfigurationError, match="queue 'no queue' is not valid"):
        app.manager("no queue")


# Sending.


def test_a_task_is_sent(app: Conveyor, manager: Any) -> None:
    task = app.task(add)
    results = [
        manager.enqueue_task(task, (1, 2)),
        manager.enqueue_task("test_manager.add", [1], {"y": 2}),
        manager.enqueue_task(task, kwargs={"x": 3}, priority=9),
    ]
    assert [isinstance(one, TaskResult) for one in results] == [True] * 3
    assert [one.task().args for one in results] == [(1, 2), (1, 2), (3,)]
    with Player(app):
        assert [one.wait(SOON) for one in results] == [3, 3, 3]


def test_a_task_goes_to_the_managers_queue(app: Conveyor, manage: Callable[..., Any]) -> None:
    task = app.task(queue="own")(add)
    assert manage("side").enqueue_task(task, (1,)).queue == "side"
    assert manage().enqueue_task(task, (1,)).queue == "default"
    assert manage("side").enqueue_task(task, (1,), queue="third").queue == "third"


def test_a_name_needs_no_code(app: Conveyor, manager: Any) -> None:
    result = manager.enqueue_task("elsewhere.work", (1, "two"), {"at": 3}, retry_limit=7)
    record = result.task()
    assert record is not None
    assert (record.name, record.args, record.kwargs) == ("elsewhere.work", (1, "two"), {"at": 3})
    assert (record.retry_limit, record.priority, record.stall_timeout) == (7, 5, 15)
    assert claim(app)[1].id == result.id  # from the sync lane


def test_a_known_name_has_the_options_and_the_signature_of_its_task(
    app: Conveyor, manager: Any
) -> None:
    app.task(name="add", priority=8)(add)
    assert manager.enqueue_task("add", (1,)).task().priority == 8
    with pytest.raises(TypeError, match=r"add\(x.*too many positional"):
        manager.enqueue_task("add", (1, 2, 3))


def test_a_custom_id_is_sent_once(manager: Any) -> None:
    first, second = (manager.enqueue_task("some.work", (1,), id="one") for _ in range(2))
    assert (first.created, second.created, first) == (True, False, second)
    with pytest.raises(IdConflict):
        manager.enqueue_task("some.work", (2,), id="one")


def test_a_task_is_scheduled(manager: Any) -> None:
    at = datetime(2050, 1, 1, tzinfo=UTC)
    one = manager.schedule_task("some.work", (1,), at=at).task()
    assert (one.status, one.enqueue_after) == (TaskStatus.SCHEDULED, at)
    two = manager.schedule_task("some.work", [], {"x": 1}, after=timedelta(minutes=1)).task()
    assert two.enqueue_after - two.created_at == timedelta(minutes=1)
    with pytest.raises(ConfigurationError, match=r"some\.work: give schedule\(\) either"):
        manager.schedule_task("some.work")


def test_many_are_sent(app: Conveyor, manager: Any) -> None:
    task = app.task(add)
    items: list[dict[str, Any]] = [{"task": task, "args": (n,)} for n in range(250)]
    items += [{"task": "some.work", "kwargs": {"x": 1}, "priority": 9, "id": "x"}]
    results = manager.enqueue_tasks(items)
    assert len(results) == 251
    assert manager.get_task_counts() == TaskCounts(0, 251, 0, 0, 0, 0)
    assert results[-1].id == "x"
    assert results[-1].task().priority == 9


def test_of_many_whose_ids_conflict_the_others_are_sent(manager: Any) -> None:
    manager.enqueue_task("some.work", (1,), id="one")
    items = [{"task": "some.work", "args": (n,), "id": "one"} for n in (2, 1)]
    for send, due in ((manager.enqueue_tasks, {}), (manager.schedule_tasks, {"after": 60})):
        with pytest.raises(PartialEnqueue, match="other arguments") as caught:
            send([{**item, **due} for item in items])
        assert [result.id for result in caught.value.results] == ["one"]
        assert [call.args for call in caught.value.pending] == [(2,)]


def test_many_are_scheduled(manager: Any) -> None:
    at = datetime(2050, 1, 1, tzinfo=UTC)
    results = manager.schedule_tasks(
        [{"task": "some.work", "at": at}, {"task": "some.work", "after": 60, "args": [1]}]
    )
    records = [one.task() for one in results]
    assert [one.status for one in records] == ["scheduled", "scheduled"]
    assert records[0].enqueue_after == at
    assert records[1].args == (1,)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"task": "a", "arg": (1,)}, "'arg': did you mean 'args'"),
        ({"task": "a", "prioritty": 1}, "did you mean 'priority'"),
        ({"args": (1,)}, "'task' is missing"),
        ({"task": "a", "at": 1}, r"belongs to schedule_tasks\(\)"),
        ("a", "is no mapping"),
        ({"task": 1}, "task must be a task or its name, not 1"),
        ({"task": "a", "args": "abc"}, "args must be a list or a tuple"),
        ({"task": "a", "kwargs": [1]}, "kwargs must be a mapping"),
    ],
)
def test_an_item_that_is_wrong_is_a_type_error_and_nothing_is_sent(
    manager: Any, item: Any, text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        manager.enqueue_tasks([{"task": "fine"}, item])
    assert sum(vars_of(manager.get_task_counts())) == 0


def test_what_cannot_be_sent(app: Conveyor, manager: Any) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'priority'"):
        manager.enqueue_task("a", prioritty=1)
    with pytest.raises(ConfigurationError, match="task name '' is not valid"):
        manager.enqueue_task("")
    with pytest.raises(SerializationError, match=r"some\.work\(\): argument"):
        manager.enqueue_task("some.work", (object(),))
    with Conveyor("another", broker=app.client.broker.server.client()) as another:
        foreign = another.task(add)
        with pytest.raises(ConfigurationError, match="belongs to another app"):
            manager.enqueue_task(foreign, (1,))


def test_what_was_not_sent_can_be_sent_later_as_it_was_meant() -> None:
    with Server() as server, Conveyor("parted", broker=server.url) as app:
        manager = app.manager()
        manager.enqueue_task("a")
        server.kill()
        items = [{"task": "some.work", "args": (n,), "after": 600} for n in range(3)]
        with pytest.raises(PartialEnqueue) as caught:
            manager.schedule_tasks(items)
        server.restart()
        results = app.map(caught.value.pending)
        assert [one.status for one in results] == ["scheduled"] * 3


# Single tasks.


@pytest.mark.parametrize(
    ("outcome", "status"), [("success", "success"), ("fatal", "failed"), ("cancelled", "cancelled")]
)
def test_the_end_of_a_task_is_told_however_it_ends(
    app: Conveyor, manager: Any, outcome: str, status: str
) -> None:
    engine = Engine(app, stopped=False)
    result = manager.enqueue_task("some.work", (outcome,))
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(manager.on_task_complete, result.id, SOON)
        key = engine.key(f"x:{result.id}")
        wait_until(lambda: engine.call("HEXISTS", key, "w") == 1, "waiting")
        end(app, outcome, 7 if outcome == "success" else ERROR)
        record = told.result(SOON)
    assert (record.id, record.status) == (result.id, status)
    assert record == manager.on_task_complete(result.id) == manager.get_task_by_id(result.id)


def test_a_wait_for_the_end_has_a_limit(manager: Any) -> None:
    result = manager.enqueue_task("some.work")
    with pytest.raises(WaitTimeout, match=r"has not ended after 0\.05 s; no worker listens"):
        manager.on_task_complete(result.id, 0.05)
    with pytest.raises(TaskNotFound, match="there is no task 'gone'"):
        manager.on_task_complete("gone", timeout=SOON)


def test_who_waits_for_a_task_that_is_removed_hears_that_it_is_not_there(
    app: Conveyor, manager: Any
) -> None:
    result = manager.enqueue_task("some.work")
    engine = Engine(app, stopped=False)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(manager.on_task_complete, result.id, SOON)
        key = engine.key(f"x:{result.id}")
        wait_until(lambda: engine.call("HEXISTS", key, "w") == 1, "waiting")
        assert app.manager().remove_task_by_id(result.id) is True
        with pytest.raises(TaskNotFound):
            told.result(SOON)


def test_tasks_are_read_by_their_ids(manager: Any) -> None:
    results = manager.enqueue_tasks([{"task": "some.work", "args": (n,)} for n in range(250)])
    ids = [one.id for one in results]
    records = manager.get_tasks_by_id([*ids, "gone"])
    assert [one and one.id for one in records] == [*ids, None]
    assert manager.get_task_by_id(id="gone") is None
    assert manager.get_tasks_by_id([]) == []


def test_large_tasks_are_read_by_their_ids(manager: Any) -> None:
    args = ("x" * 400_000,)
    ids = [manager.enqueue_task("some.work", args).id for _ in range(7)]
    assert [one.id for one in manager.get_tasks_by_id(ids)] == ids


def test_tasks_are_listed(manager: Any) -> None:
    results = manager.enqueue_tasks([{"task": "some.work", "args": (n,)} for n in range(120)])
    ids = [one.id for one in results]
    assert [one.id for one in manager.get_tasks("queued")] == ids[:50]
    assert [one.id for one in manager.get_tasks(TaskStatus.QUEUED, 100)] == ids[100:]
    assert [one.id for one in manager.get_tasks("queued", limit=500)] == ids
    assert manager.get_tasks("queued", limit=0) == manager.get_tasks("failed") == []
    with pytest.raises(ConfigurationError, match="no status 'ended': use one of scheduled"):
        manager.get_tasks("ended")
    for about in ({"offset": -1}, {"limit": 1.5}, {"limit": True}):
        with pytest.raises(ConfigurationError, match="use a whole number from 0"):
            manager.get_tasks("queued", **about)


def test_a_task_is_cancelled_retried_and_removed(app: Conveyor, manager: Any) -> None:
    task_id = manager.enqueue_task("some.work").id
    assert manager.retry_task_by_id(task_id) is False
    assert manager.cancel_task_by_id(task_id) is True
    assert manager.cancel_task_by_id(task_id) is False
    assert manager.retry_task_by_id(task_id) is True
    end(app, "success", 7)
    assert manager.on_task_complete(task_id, SOON).result == 7
    assert manager.remove_task_by_id(task_id) is True
    assert manager.remove_task_by_id(task_id) is False
    for ask in (manager.cancel_task_by_id, manager.retry_task_by_id):
        with pytest.raises(TaskNotFound, match=f"no task '{task_id}' on queue 'default'"):
            ask(task_id)


# The connection.


def test_a_server_that_is_away_is_said_to_be(own: tuple[Server, Conveyor]) -> None:
    server, app = own
    for manager in (app.manager(), Driven(app, None)):
        assert manager.ping() is True
    server.kill()
    for manager in (app.manager(), Driven(app, None)):
        with pytest.raises(BrokerUnavailable, match="cannot reach"):
            manager.ping()


@pytest.fixture
def own() -> Iterator[tuple[Server, Conveyor]]:
    with Server() as server, Conveyor("away", broker=server.url) as app:
        yield server, app


def test_quitting_closes_the_connections(own: tuple[Server, Conveyor]) -> None:
    server, app = own
    manager = app.manager()
    with server.client() as client:

        def others() -> int:
            return len(client.client_list()) - 1

        with pytest.raises(TaskNotFound):
            manager.on_task_complete("gone", SOON)
        assert others() > 0
        manager.quit()
        wait_until(lambda: others() == 0, "no connection is left")

        async def use() -> None:
            amanager = app.amanager()
            with pytest.raises(TaskNotFound):
                await amanager.on_task_complete("gone", SOON)
            assert await amanager.ping()
            await amanager.quit()

        asyncio.run(use())
        wait_until(lambda: others() == 0, "no connection is left")
        assert manager.ping()


def test_an_async_manager_never_blocks_its_loop(app: Conveyor) -> None:
    async def use() -> int:
        manager = app.amanager()
        task_id = (await manager.enqueue_task("some.work")).id
        waiting = asyncio.create_task(manager.on_task_complete(task_id, SOON))
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.001)
            turns += 1
            if turns == 50:
                await manager.cancel_task_by_id(task_id)
        assert waiting.result().status is TaskStatus.CANCELLED
        with pytest.raises(WaitTimeout):
            await manager.on_task_complete((await manager.enqueue_task("a")).id, timeout=0.01)
        await app.client.abroker.aclose()
        return turns

    assert asyncio.run(use()) >= 50


def vars_of(counts: TaskCounts) -> list[int]:
    return [getattr(counts, name) for name in TaskCounts.__slots__]


@pytest.mark.parametrize("wrong", [None, 5, b"id", uuid.UUID(int=5)])
def test_an_id_that_is_no_text_is_a_type_error(app: Conveyor, manager: Any, wrong: Any) -> None:
    for ask in (
        manager.get_task_by_id, manager.on_task_complete, manager.cancel_task_by_id,
        manager.retry_task_by_id, manager.remove_task_by_id, app.result, app.task(add).result,
        lambda wrong: manager.get_tasks_by_id(["a", wrong]),
    ):  # fmt: skip
        with pytest.raises(TypeError) as caught:
            ask(wrong)
        assert str(caught.value) == (
            f"task id {wrong!r} is no text: use the id that a TaskResult or a TaskRecord has"
        )


@pytest.mark.parametrize("wrong", ["", "\ud800", "a\nb", "x" * 257])
def test_a_text_that_no_task_can_have_as_id_is_refused(
    app: Conveyor, manager: Any, wrong: str
) -> None:
    for ask in (
        manager.get_task_by_id, manager.on_task_complete, manager.cancel_task_by_id,
        manager.retry_task_by_id, app.result, app.task(add).result,
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=r"^task id .* is (not valid|longer than 256)"):
            ask(wrong)


def test_what_others_left_under_an_id_that_no_task_can_have_is_removed(
    app: Conveyor, manager: Any
) -> None:
    engine = Engine(app)
    engine.call("SET", engine.key("t:a\nb"), "no record")
    manager.remove_task_by_id("a\nb")
    assert engine.exists("a\nb") == 0
