"""Plugins on the caller's side: which hooks are called, when, and what they can do."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from conveyor import ConfigurationError, Conveyor, Plugin, TaskStatus
from conveyor.plugins import HOOKS, Plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

    from conveyor import TaskRecord


class Recorder(Plugin):
    """Notes what it is told, and adds headers."""

    def __init__(self, notes: list[Any], name: str = "p", headers: Any = None) -> None:
        self.notes = notes
        self.name = name
        self.headers = headers

    def on_before_enqueue_task(self, task: TaskRecord) -> Any:
        self.notes.append((self.name, "before", task))
        return self.headers

    def on_after_enqueue_task(self, task: TaskRecord) -> None:
        self.notes.append((self.name, "after", task))


class AsyncRecorder(Recorder):
    """The same, without blocking an event loop."""

    async def on_before_enqueue_task(self, task: TaskRecord) -> Any:
        await asyncio.sleep(0)
        return super().on_before_enqueue_task(task)

    async def on_after_enqueue_task(self, task: TaskRecord) -> None:
        await asyncio.sleep(0)
        super().on_after_enqueue_task(task)


class Refusing(Plugin):
    """Lets nothing through whose first argument is odd."""

    def on_before_enqueue_task(self, task: TaskRecord) -> None:
        if task.args[0] % 2:
            raise PermissionError(f"{task.args[0]} is odd")


@pytest.fixture
def add(app: Conveyor) -> Any:
    @app.task(name="add", headers={"own": "1", "tenant": "none"})
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


@pytest.fixture
def other(server: Server, app: Conveyor) -> Iterator[Conveyor]:
    """An app in the same namespace, without plugins: sees what was really sent."""
    with Conveyor(app.name, broker=server.url) as other:
        yield other


def queued(app: Conveyor) -> int:
    broker = app.client.broker
    keys = broker.keys(app.queue)
    return sum(int(broker.execute(("LLEN", key))) for key in keys.ready("r"))


def steps(notes: list[Any]) -> list[tuple[str, str]]:
    return [(name, step) for name, step, _ in notes]


def test_hooks_are_called_around_a_call_in_the_order_of_registration(
    app: Conveyor, add: Any
) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes, "one"), Recorder(notes, "two"))
    app.register_plugins(Recorder(notes, "three"))
    add.delay(1, 2)
    assert steps(notes) == [
        ("one", "before"), ("two", "before"), ("three", "before"),
        ("one", "after"), ("two", "after"), ("three", "after"),
    ]  # fmt: skip


def test_plugins_are_also_an_argument_of_the_app(server: Server) -> None:
    notes: list[Any] = []
    with Conveyor("plugins-argument", broker=server.url, plugins=[Recorder(notes)]) as app:

        @app.task(name="nothing")
        def nothing() -> None: ...

        nothing.delay()
    assert steps(notes) == [("p", "before"), ("p", "after")]


def test_hooks_are_given_what_is_sent(app: Conveyor, add: Any) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes))
    before = datetime.now(UTC)
    result = add.options(priority=9, expires=60, execution_timeout=5).delay(1, y=2)
    task = notes[0][2]
    assert (task.id, task.name, task.queue, task.args, task.kwargs) == (
        result.id, "add", "default", (1, 2), {},
    )  # fmt: skip
    assert (task.status, task.priority, task.execution_timeout) == (TaskStatus.QUEUED, 9, 5)
    assert before <= task.created_at == task.queued_at <= datetime.now(UTC)
    assert abs(task.expires_at - task.created_at - timedelta(seconds=60)) < timedelta(seconds=1)
    assert task.headers == {"own": "1", "tenant": "none"}


def test_hooks_are_told_when_a_task_is_due(app: Conveyor, add: Any) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes))
    at = datetime(2040, 1, 1, tzinfo=UTC)
    add.schedule(1, at=at)
    add.schedule(1, after=3600)
    add.schedule(1, at=time.time() - 60)
    exact, relative, past = (task for _, step, task in notes if step == "before")
    assert (exact.status, exact.enqueue_after) == (TaskStatus.SCHEDULED, at)
    assert abs(relative.enqueue_after - relative.created_at - timedelta(hours=1)) < timedelta(
        seconds=1
    )
    assert (relative.status, past.status) == (TaskStatus.SCHEDULED, TaskStatus.QUEUED)


def test_headers_are_added_to_the_tasks_own(app: Conveyor, add: Any, other: Conveyor) -> None:
    notes: list[Any] = []
    app.register_plugins(
        Recorder(notes, "one", {"tenant": "a", "trace": "1"}),
        Recorder(notes, "two"),
        Recorder(notes, "three", {"trace": "2"}),
    )
    result = add.options(id="custom").delay(1, 2)
    record = other.result(result.id).task()
    assert record is not None
    assert record.headers == {"own": "1", "tenant": "a", "trace": "2"}
    assert (record.args, record.id) == ((1, 2), "custom")
    seen = [task.headers for _, _, task in notes]
    assert seen[1] == {"own": "1", "tenant": "a", "trace": "1"}
    assert seen[3:] == [record.headers] * 3
    # The very same call again is no conflict, whatever headers it has this time.
    assert not add.options(id="custom").delay(1, 2).created


@pytest.mark.parametrize("headers", ["text", {"a": 1}, {1: "a"}, [("a", "b")], 7, {"a": "\ud800"}])
def test_what_is_no_header_is_refused_and_nothing_is_sent(
    app: Conveyor, add: Any, headers: Any
) -> None:
    app.register_plugins(Recorder([], headers=headers))
    with pytest.raises(ConfigurationError, match=r"Recorder\.on_before_enqueue_task returned"):
        add.delay(1)
    assert queued(app) == 0


def test_an_exception_reaches_the_caller_and_nothing_is_sent(app: Conveyor, add: Any) -> None:
    notes: list[Any] = []
    app.register_plugins(Refusing(), Recorder(notes))
    with pytest.raises(PermissionError, match="1 is odd"):
        add.delay(1)
    with pytest.raises(PermissionError, match="3 is odd"):
        add.map([(2,)] * 150 + [(3,)])
    with pytest.raises(PermissionError, match="3 is odd"):
        asyncio.run(add.amap([(2,)] * 150 + [(3,)]))
    assert queued(app) == 0
    assert not any(step == "after" for _, step in steps(notes))
    add.delay(2)
    assert queued(app) == 1


def test_every_call_of_a_map_has_its_hooks(app: Conveyor, add: Any, other: Conveyor) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes, headers={"mapped": "yes"}))
    results = add.map([(number,) for number in range(250)])
    for step in ("before", "after"):
        assert [task.args for _, one, task in notes if one == step] == [(n,) for n in range(250)]
    record = other.result(results[249].id).task()
    assert record is not None
    assert record.headers["mapped"] == "yes"


def test_nothing_is_told_of_an_id_that_was_there(app: Conveyor, add: Any) -> None:
    notes: list[Any] = []
    add.options(id="a").delay(1)
    app.register_plugins(Recorder(notes))
    assert not add.options(id="a").delay(1).created
    assert steps(notes) == [("p", "before")]


def test_once_the_server_has_a_task_an_exception_is_only_logged(
    app: Conveyor, add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Plugin):
        def on_after_enqueue_task(self, task: TaskRecord) -> None:
            raise RuntimeError("too late")

    notes: list[Any] = []
    app.register_plugins(Broken(), Recorder(notes))
    assert add.delay(1).created
    assert steps(notes) == [("p", "before"), ("p", "after")]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("conveyor.plugins", "ERROR")
    assert "Broken.on_after_enqueue_task" in record.getMessage()
    assert "too late" in caplog.text


def test_async_hooks_are_awaited_by_async_callers(app: Conveyor, add: Any, other: Conveyor) -> None:
    notes: list[Any] = []
    app.register_plugins(AsyncRecorder(notes, "async", {"a": "1"}), Recorder(notes, "plain"))

    async def main() -> list[str]:
        async with app:
            one = await add.adelay(1)
            two = await add.aschedule(1, after=3600)
            three, four = await add.amap([(1,), (2,)])
            five = await add.call(1).adelay()
            return [result.id for result in (one, two, three, four, five)]

    sent = asyncio.run(main())
    assert [task.id for name, step, task in notes if (name, step) == ("async", "after")] == sent
    assert [task.id for name, step, task in notes if (name, step) == ("plain", "before")] == sent
    for task_id in sent:
        record = other.result(task_id).task()
        assert record is not None
        assert record.headers["a"] == "1"


@pytest.mark.parametrize(
    "send",
    [
        lambda add: add.delay(1),
        lambda add: add.schedule(1, after=5),
        lambda add: add.map([(1,)]),
        lambda add: add.call(1).delay(),
    ],
)
def test_async_hooks_are_refused_by_sync_callers(app: Conveyor, add: Any, send: Any) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes), AsyncRecorder(notes))
    with pytest.raises(ConfigurationError, match=r"AsyncRecorder\.on_before_.* use adelay\(\)"):
        send(add)
    assert notes == []
    assert queued(app) == 0


def test_a_plain_hook_that_returns_an_awaitable_is_refused_by_sync_callers(
    app: Conveyor, add: Any
) -> None:
    async def later() -> None: ...

    class Sly(Plugin):
        def on_before_enqueue_task(self, task: TaskRecord) -> Any:
            return later()

    app.register_plugins(Sly())
    with pytest.raises(ConfigurationError, match=r"Sly\.on_before_enqueue_task is async"):
        add.delay(1)
    assert queued(app) == 0


def test_an_exception_in_an_async_hook_reaches_the_caller(app: Conveyor, add: Any) -> None:
    class Closed(Plugin):
        async def on_before_enqueue_task(self, task: TaskRecord) -> None:
            raise PermissionError("closed")

    app.register_plugins(Closed())
    with pytest.raises(PermissionError, match="closed"):
        asyncio.run(add.adelay(1))
    assert queued(app) == 0


@pytest.mark.parametrize(
    ("plugin", "text"),
    [(Recorder, r"Recorder is a class: create one, Recorder\(\)"), (7, "7 is no plugin")],
)
def test_what_is_no_plugin_is_refused(app: Conveyor, plugin: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        app.register_plugins(plugin)
    with pytest.raises(ConfigurationError, match=text):
        Conveyor("other", plugins=[plugin])


@pytest.mark.parametrize("wrong", [Recorder([]), Recorder, 5, None])
def test_plugins_are_a_list(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^plugins= cannot be .*: use a list of plugins"):
        Conveyor("other", plugins=wrong)


def test_a_plugin_is_registered_once(app: Conveyor, add: Any) -> None:
    notes: list[Any] = []
    plugin = Recorder(notes)
    app.register_plugins(plugin, plugin)
    app.register_plugins(plugin)
    add.delay(1)
    assert steps(notes) == [("p", "before"), ("p", "after")]


def test_only_what_is_overridden_is_called() -> None:
    class Inherits(Recorder):
        def on_child_start(self) -> None: ...

    plugins = Plugins()
    plugins.register([Plugin()])
    assert not plugins.enqueue
    assert not plugins.run
    assert not any(plugins.hooks(name) for name in HOOKS)
    plugins.register([Inherits([])])
    assert [name for name in HOOKS if plugins.hooks(name)] == [
        "on_before_enqueue_task",
        "on_after_enqueue_task",
        "on_child_start",
    ]
    assert plugins.enqueue
    assert not plugins.run
    assert not plugins.any_async_in_child()


def test_the_hooks_are_those_of_the_contract() -> None:
    assert HOOKS == (
        "on_before_enqueue_task",
        "on_after_enqueue_task",
        "on_before_task_processing",
        "on_after_task_processing",
        "on_after_task_success",
        "on_after_task_error",
        "on_after_task_fail",
        "on_child_start",
        "on_child_shutdown",
        "on_worker_start",
        "on_worker_shutdown",
    )


def test_managers_tell_plugins_too(app: Conveyor, other: Conveyor) -> None:
    notes: list[Any] = []
    app.register_plugins(Recorder(notes, headers={"by": "manager"}))
    one = app.manager().enqueue_task("elsewhere.add", (1, 2))
    (two,) = app.manager().schedule_tasks([{"task": "elsewhere.add", "args": (3, 4), "after": 60}])

    async def send() -> str:
        async with app:
            return (await app.amanager().enqueue_task("elsewhere.add", (5, 6))).id

    sent = [one.id, two.id, asyncio.run(send())]
    assert [task.id for _, step, task in notes if step == "before"] == sent
    assert [task.id for _, step, task in notes if step == "after"] == sent
    for task_id in sent:
        record = other.result(task_id).task()
        assert record is not None
        assert record.headers == {"by": "manager"}
