"""Tasks: their plain call, their calls through a server, and what is refused before it is sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from playing import run

from conveyor import Call, Context, Conveyor, Task
from conveyor.broker.commands import BATCH
from conveyor.errors import (
    ConfigurationError,
    ConveyorError,
    IdConflict,
    PartialEnqueue,
    PayloadTooLarge,
    SerializationError,
)

if TYPE_CHECKING:
    from servers import Server

NOWHERE = "redis://127.0.0.1:1/0"
TODAY = datetime(2027, 1, 1, tzinfo=UTC)

#: One way to send a call, and the same for each of the ways that there are.
Send = Callable[..., object]


def add(x: int, y: int = 0, *, z: int = 0) -> int:
    """Adds."""
    return x + y + z


def keep(*args: object) -> None: ...


async def aadd(x: int, y: int = 0, *, z: int = 0) -> int:
    return x + y + z


def senders(app: Conveyor, function: Callable[..., Any]) -> dict[str, Send]:
    """Every way to send one call of a task."""
    task: Task[..., Any] = app.task(function)

    def of(twin: Callable[..., Coroutine[Any, Any, Any]]) -> Send:
        return lambda *args, **kwargs: run(app, twin(*args, **kwargs))

    return {
        "delay": task.delay,
        "schedule": lambda *args, **kwargs: task.schedule(*args, after=60, **kwargs),
        "call": lambda *args, **kwargs: task.call(*args, **kwargs).delay(),
        "map": lambda *args, **kwargs: task.map([task.call(*args, **kwargs)]),
        "adelay": of(task.adelay),
        "aschedule": of(lambda *args, **kwargs: task.aschedule(*args, after=60, **kwargs)),
        "amap": of(lambda *args, **kwargs: task.amap([task.call(*args, **kwargs)])),
    }


SENDERS = list(senders(Conveyor("app", broker=NOWHERE), add))


def counts(app: Conveyor, queue: str = "default") -> dict[str, int]:
    return Engine(app, queue, stopped=False).counts()


def nothing_was_sent(app: Conveyor, server: Server) -> bool:
    return bool(server.call("KEYS", f"*{{{app.namespace}*") == [])


# Tasks as functions


def test_a_plain_call_runs_here_and_now() -> None:
    app = Conveyor("app", broker=NOWHERE)
    assert app.task(add)(1, y=2) == 3
    assert asyncio.run(app.task(aadd)(1, 2, z=3)) == 6


def test_a_task_looks_like_its_function() -> None:
    task = Conveyor("app", broker=NOWHERE).task(add)
    assert (task.name, task.__name__, task.__doc__) == ("test_task.add", "add", "Adds.")
    assert inspect.signature(task) == inspect.signature(add)
    assert repr(task) == "<Task test_task.add>"


def test_a_bound_task_runs_only_inside_a_run() -> None:
    @Conveyor("app", broker=NOWHERE).task(bind=True)
    def bound(context: Context, x: int) -> int:
        return x

    with pytest.raises(ConveyorError, match="no task is running here"):
        bound(1)


# Arguments

MISFITS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "missing a required argument: 'x'"),
    ((1, 2, 3), {}, "too many positional arguments"),
    ((1,), {"x": 2}, "multiple values for argument 'x'"),
    ((1,), {"w": 2}, "got an unexpected keyword argument 'w'"),
]


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize(("args", "kwargs", "reason"), MISFITS)
def test_arguments_that_do_not_fit_are_a_type_error_that_names_the_task(
    app: Conveyor, server: Server, sender: str, args: Any, kwargs: Any, reason: str
) -> None:
    with pytest.raises(TypeError) as caught:
        senders(app, add)[sender](*args, **kwargs)
    signature = "(x: 'int', y: 'int' = 0, *, z: 'int' = 0) -> 'int'"
    assert str(caught.value) == f"test_task.add{signature}: {reason}"
    assert nothing_was_sent(app, server)


@pytest.mark.parametrize("sender", SENDERS)
def test_a_value_that_cannot_travel_names_task_and_argument(
    app: Conveyor, server: Server, sender: str
) -> None:
    send = senders(app, add)[sender]
    for args, kwargs, name in (((1, object()), {}, "'y'"), ((1,), {"z": object()}, "'z'")):
        with pytest.raises(SerializationError) as caught:
            send(*args, **kwargs)
        assert str(caught.value).startswith(f"test_task.add(): argument {name}: object")
        assert "\n" not in str(caught.value)
    assert nothing_was_sent(app, server)


@pytest.mark.parametrize("sender", SENDERS)
def test_a_payload_over_the_limit_is_refused(server: Server, sender: str) -> None:
    def keep(data: bytes) -> None: ...

    with Conveyor(f"limited-{sender}", broker=server.url, max_payload=1000) as app:
        send = senders(app, keep)[sender]
        (name,) = app.tasks
        with pytest.raises(PayloadTooLarge) as caught:
            send(bytes(1000))
        assert str(caught.value) == (
            f"{name}(): the arguments are 1,006 bytes, over max_payload (1,000):"
            " pass a reference to the data instead"
        )
        assert nothing_was_sent(app, server)
        send(bytes(994))
        assert not nothing_was_sent(app, server)


def test_the_limit_is_one_mebibyte(app: Conveyor) -> None:
    task = app.task(keep)
    assert task.delay(bytes(2**20 - 8)).created
    with pytest.raises(PayloadTooLarge, match=r"over max_payload \(1,048,576\)"):
        task.delay(bytes(2**20 - 7))


def test_arguments_come_back_as_they_were_sent(app: Conveyor) -> None:
    @app.task
    def keep(*args: object, **kwargs: object) -> None: ...

    values = (None, 2**70, -0.0, b"\0", (1, [2]), {3: {4}}, Decimal("1.50"), TODAY, Path("/a"))
    record = keep.delay(*values, key=values, self=1, args=2).task()
    assert record is not None
    assert repr(record.args) == repr(values)
    assert record.kwargs == {"key": values, "self": 1, "args": 2}


def test_defaults_are_left_to_the_worker(app: Conveyor) -> None:
    task = app.task(add)
    for result, args, kwargs in (
        (task.delay(1), (1,), {}),
        (task.delay(y=2, x=1), (1, 2), {}),
        (task.delay(1, z=3), (1,), {"z": 3}),
    ):
        record = result.task()
        assert record is not None
        assert (record.args, record.kwargs) == (args, kwargs)


def test_the_context_is_no_argument_of_callers(app: Conveyor) -> None:
    @app.task(bind=True)
    def bound(context: Context, x: int) -> None: ...

    record = bound.delay(x=1).task()
    assert record is not None
    assert record.args == (1,)
    with pytest.raises(TypeError, match=r"bound\(x: 'int'\) -> None: too many positional|bound\("):
        bound.delay(None, 1)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("name", ["at", "after"])
def test_a_parameter_that_schedule_needs_is_refused_at_decoration(name: str) -> None:
    app = Conveyor("app", broker=NOWHERE)
    spaces: dict[str, Any] = {}
    for text in (f"def f({name}): ...", f"def f(x, *, {name}=1): ...", f"async def f({name}): ..."):
        exec(text, spaces)
        with pytest.raises(ConfigurationError) as caught:
            app.task(name="f")(spaces["f"])
        assert str(caught.value) == (
            f"task f has a parameter named {name!r}, which schedule() needs: give it another name"
        )
    exec(f"def f({name}, x): ...", spaces)
    app.task(name="g", bind=True)(spaces["f"])
    assert set(app.tasks) == {"g"}


def test_bind_needs_a_first_parameter() -> None:
    app = Conveyor("app", broker=NOWHERE)
    for function in (lambda: 1, lambda *, x: x):
        with pytest.raises(ConfigurationError) as caught:
            app.task(bind=True, name="f")(function)  # type: ignore[arg-type]
        assert str(caught.value) == "task f: bind=True needs a first parameter for the Context"


# When


@pytest.mark.parametrize("at", [datetime(2100, 1, 1, tzinfo=UTC), 4_102_444_800, 4_102_444_800.0])
def test_a_call_may_be_scheduled_at_a_moment(app: Conveyor, at: Any) -> None:
    task = app.task(add)
    for result in (task.schedule(1, at=at), task.call(1).schedule(at=at)):
        record = result.task()
        assert record is not None
        assert record.status == "scheduled"
        assert record.enqueue_after == datetime(2100, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("after", [90, 90.0, timedelta(minutes=1.5)])
def test_a_call_may_be_scheduled_after_a_while(app: Conveyor, after: Any) -> None:
    task = app.task(add)

    async def both() -> list[Any]:
        return [await task.aschedule(1, after=after), await task.call(1).aschedule(after=after)]

    results = [task.schedule(1, after=after), task.call(1).schedule(after=after)]
    for result in results + run(app, both()):
        record = result.task()
        assert record.status == "scheduled"
        assert record.enqueue_after == record.created_at + timedelta(seconds=90)


def test_what_is_due_already_is_queued(app: Conveyor) -> None:
    task = app.task(add)
    assert task.schedule(1, after=0).status == "queued"
    assert task.schedule(1, at=0).status == "queued"
    assert task.schedule(1, at=datetime(2020, 1, 1, tzinfo=UTC)).status == "queued"


def test_a_naive_moment_is_refused(app: Conveyor, server: Server) -> None:
    for send in (app.task(add).schedule, app.task(add).call(1).schedule):
        with pytest.raises(
            ValueError, match=r"^at cannot be datetime.*: it has no time zone; give"
        ):
            send(at=datetime(2100, 1, 1))
    assert nothing_was_sent(app, server)


@pytest.mark.parametrize(
    ("when", "error", "text"),
    [
        ({}, ConfigurationError, "test_task.add: give schedule() either at= or after="),
        ({"at": TODAY, "after": 1}, ConfigurationError, "test_task.add: give schedule() either"),
        ({"after": float("inf")}, ConfigurationError, "test_task.add: after cannot be unlimited"),
        ({"after": -1}, ConfigurationError, "after cannot be -1"),
        ({"at": -1}, ConfigurationError, "at cannot be -1"),
        ({"at": datetime(9000, 1, 1, tzinfo=UTC)}, ConfigurationError, "at cannot be"),
        ({"at": "tomorrow"}, TypeError, "at must be a datetime or POSIX seconds, not str"),
        ({"after": "1"}, TypeError, "after must be seconds or a timedelta, not str"),
        ({"after": True}, TypeError, "after must be seconds or a timedelta, not bool"),
    ],
)
def test_a_wrong_time_is_refused(
    app: Conveyor, server: Server, when: Any, error: type[Exception], text: str
) -> None:
    task = app.task(add)
    for send in (partial(task.schedule, 1), task.call(1).schedule):
        with pytest.raises(error) as caught:
            send(**when)
        assert str(caught.value).startswith(text)
    assert nothing_was_sent(app, server)


# Calls


def test_a_call_can_be_kept_and_sent_often(app: Conveyor) -> None:
    call = app.task(add).call(1, y=2)
    assert (call.task.name, call.args, call.kwargs) == ("test_task.add", (1, 2), {})
    results = [call.delay(), call.delay(), call.schedule(after=60)]
    assert len({result.id for result in results}) == 3
    assert counts(app) == {"queued": 2, "scheduled": 1}


# Many at once


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH * 2 + 50])
def test_map_sends_all_in_order(app: Conveyor, count: int) -> None:
    task = app.task(add)
    for results in (
        task.map((number, 1) for number in range(count)),
        run(app, task.amap([(number, 1) for number in range(count)])),
    ):
        records = [result.task() for result in results]
        assert [record.args for record in records if record] == [(n, 1) for n in range(count)]
    assert counts(app).get("queued", 0) == 2 * count


def test_map_takes_calls_of_any_options(app: Conveyor) -> None:
    task = app.task(add)
    calls: list[Any] = [task.options(queue=f"q{n % 2}", priority=n % 10).call(n) for n in range(30)]
    results = app.map(calls)
    assert [result.queue for result in results] == [f"q{n % 2}" for n in range(30)]
    records = [result.task() for result in results]
    assert [record and record.priority for record in records] == [n % 10 for n in range(30)]
    mixed = task.map([(1,), task.options(queue="q0").call(2)])
    assert [result.queue for result in mixed] == ["default", "q0"]


def test_large_items_travel_in_more_batches(app: Conveyor, server: Server) -> None:
    task = app.task(keep)
    before = server.call("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert len(task.map([(bytes(400_000),)] * 10)) == 10
    after = server.call("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before == 5


@pytest.mark.parametrize("item", [1, [1, 2], "ab", {"x": 1}, None])
def test_an_item_that_is_no_tuple_and_no_call_is_a_type_error(
    app: Conveyor, server: Server, item: Any
) -> None:
    task = app.task(add)
    for send in (task.map, lambda items: run(app, task.amap(items))):
        with pytest.raises(TypeError) as caught:
            send([(1, 2), item])
        assert str(caught.value) == (
            f"test_task.add.map(): {item!r} is neither a tuple of arguments nor a Call:"
            f" write ({item!r},)"
        )
    assert nothing_was_sent(app, server)


def test_nothing_is_sent_when_one_of_many_is_refused(app: Conveyor, server: Server) -> None:
    task = app.task(add)
    for item, error in (((1, 2, 3), TypeError), ((1, object()), SerializationError)):
        with pytest.raises(error, match=r"^test_task\.add"):
            task.map([(1, 2)] * BATCH + [item])
    assert nothing_was_sent(app, server)


@pytest.mark.parametrize("twin", ["map", "amap"])
def test_a_conflict_among_many_leaves_the_handles_of_the_others(app: Conveyor, twin: str) -> None:
    task = app.task(add)
    taken = task.options(id="taken").delay(0)
    own = task.options(id="taken").call(1)
    calls = [task.call(1), own, taken_again(task), own, task.call(4)]
    calls += [task.options(queue="side").call(n) for n in range(2)]
    send = task.map if twin == "map" else lambda items: run(app, task.amap(items))
    with pytest.raises(PartialEnqueue) as caught:
        send(calls)
    error = caught.value
    assert isinstance(error.__cause__, IdConflict)
    assert str(error) == (
        "3 of 7 tasks were sent, then: task id 'taken' on queue 'default' belongs to a"
        " test_task.add with other arguments: use another id; app.map(error.pending[2:]) sends the"
        " rest without the 2 that conflict, none of them twice"
    )
    assert [result.created for result in error.results] == [True, False, True]
    assert error.results[1] == taken
    assert [call.args for call in error.pending] == [(1,), (1,), (0,), (1,)]
    assert [call.task.plan().queue for call in error.pending] == ["default"] * 2 + ["side"] * 2
    rest = app.map(error.pending[2:])
    assert [result.created for result in rest] == [True, True]
    assert app.map(error.pending[2:]) == rest
    assert Engine(app, stopped=False).counts() == {"queued": 3}
    assert Engine(app, "side", stopped=False).counts() == {"queued": 2}


def taken_again(task: Task[..., Any]) -> Call[Any]:
    """The very call that has the id already."""
    return task.options(id="taken").call(0)


def test_one_conflict_among_many_is_named(app: Conveyor) -> None:
    with pytest.raises(PartialEnqueue) as caught:
        app.task(add).options(id="once").map([(1, 1), (2, 2)])
    assert str(caught.value) == (
        "1 of 2 tasks were sent, then: task id 'once' on queue 'default' belongs to a test_task.add"
        " with other arguments: use another id; app.map(error.pending[1:]) sends the rest without"
        " it, none of them twice"
    )
    assert [call.args for call in caught.value.pending] == [(2, 2)]
    assert [result.id for result in caught.value.results] == ["once"]


def test_headers_that_are_too_large_are_refused(app: Conveyor, server: Server) -> None:
    task = app.task(add).options(headers={"all": "x" * 70_000})
    with pytest.raises(
        PayloadTooLarge, match=r"^test_task\.add\(\): the headers are 70,0\d\d bytes"
    ):
        task.delay(1, 2)
    assert nothing_was_sent(app, server)


# Types that are local to a function


def test_types_that_are_local_to_a_function_travel(app: Conveyor) -> None:
    @dataclass
    class Here:
        x: int

    class Kind(Enum):
        ONE = 1

    @app.task
    def draw(point: Here, kind: Kind) -> None: ...

    @app.task(priority=9)
    def paint(point: Here) -> None: ...

    for result in (draw.delay(Here(1), Kind.ONE), paint.delay(Here(1))):
        record = result.task()
        assert record is not None
        assert record.args[0] == Here(1)
