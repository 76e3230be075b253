"""Options of tasks and of calls: what each does to the record, and what is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from engine import Engine
from playing import claim, end

from conveyor import Conveyor, TaskRecord, constant, exponential, linear
from conveyor.errors import ConfigurationError, IdConflict
from conveyor.options import CALL_OPTIONS, TASK_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers import Server

NOWHERE = "redis://127.0.0.1:1/0"


def add(x: int, y: int = 0) -> int:
    return x + y


def multiply(x: int, y: int = 0) -> int:
    return x * y


def slowly(record: TaskRecord, error: BaseException) -> float:
    return record.error_retries * 10.0


def sent(app: Conveyor, **options: Any) -> TaskRecord:
    """The record of a call with options."""
    record = app.task(add).options(**options).delay(1).task()
    assert record is not None
    return record


# What each option does

FIELDS: list[tuple[str, Any, str, Any]] = [
    ("queue", "fast", "queue", "fast"),
    ("id", "mine: 1/2", "id", "mine: 1/2"),
    ("retry_limit", 4, "retry_limit", 4),
    ("retry_limit", math.inf, "retry_limit", None),
    ("retry_limit", None, "retry_limit", None),
    ("error_retry_limit", 4, "error_retry_limit", 4),
    ("error_retry_limit", math.inf, "error_retry_limit", math.inf),
    ("stall_retry_limit", 0, "stall_retry_limit", 0),
    ("stall_retry_limit", math.inf, "stall_retry_limit", math.inf),
    ("backoff", linear(2, maximum=9), "backoff", linear(2, maximum=9)),
    ("backoff", "constant", "backoff", constant(1)),
    ("execution_timeout", 2.5, "execution_timeout", 2.5),
    ("execution_timeout", timedelta(minutes=1), "execution_timeout", 60),
    ("execution_timeout", math.inf, "execution_timeout", None),
    ("stall_timeout", 30, "stall_timeout", 30),
    ("stall_timeout", math.inf, "stall_timeout", math.inf),
    ("stall_timeout", 30, "acknowledgement_interval", 10),
    ("acknowledgement_interval", 0.5, "acknowledgement_interval", 0.5),
    ("priority", 9, "priority", 9),
    ("headers", {"tenant": "a"}, "headers", {"tenant": "a"}),
]


@pytest.mark.parametrize(("option", "value", "field", "kept"), FIELDS)
def test_an_option_is_kept_in_the_record(
    app: Conveyor, option: str, value: Any, field: str, kept: Any
) -> None:
    record = sent(app, **{option: value})
    assert getattr(record, field) == kept
    if option in TASK_OPTIONS:
        record = app.task(name="other", **{option: value})(add).delay(1).task() or record
        assert getattr(record, field) == kept


def test_the_defaults(app: Conveyor) -> None:
    record = sent(app)
    assert (record.queue, record.priority, record.headers) == ("default", 5, {})
    assert record.retry_limit is None
    assert (record.error_retry_limit, record.stall_retry_limit) == (0, 3)
    assert record.backoff == exponential(1, maximum=300, jitter=0.1)
    assert record.execution_timeout is None
    assert (record.stall_timeout, record.acknowledgement_interval) == (15, 5)
    assert record.expires_at is None


def test_a_common_limit_is_that_of_each_kind_that_has_none(app: Conveyor) -> None:
    record = sent(app, retry_limit=7)
    assert (record.error_retry_limit, record.stall_retry_limit) == (7, 7)
    record = sent(app, retry_limit=7, error_retry_limit=2, stall_retry_limit=1)
    assert (record.error_retry_limit, record.stall_retry_limit) == (2, 1)
    record = sent(app, retry_limit=math.inf)
    assert (record.error_retry_limit, record.stall_retry_limit) == (math.inf, math.inf)


def test_records_are_kept_as_long_as_was_said(app: Conveyor) -> None:
    engine = Engine(app, stopped=False)
    task = app.task(add)
    for options, outcome, set_ in (
        ({"retain_success": 60}, "success", "ok"),
        ({"retain_failed": timedelta(seconds=60)}, "fatal", "failed"),
    ):
        result = task.options(**options).delay(1)
        end(app, outcome, 1 if outcome == "success" else b"\x93\xa1E\xa1m\xa0")
        record = result.task()
        assert record is not None
        assert record.processing_ended_at is not None
        until = engine.score(set_, result.id)
        assert until == round(record.processing_ended_at.timestamp() * 1000) + 60_000


@pytest.mark.parametrize(
    ("option", "outcome"),
    [
        ({"remove_on_success": True}, "success"),
        ({"remove_on_failed": True}, "fatal"),
        ({"retain_success": 0}, "success"),
        ({"retain_failed": 0}, "fatal"),
    ],
)
def test_a_record_can_go_with_its_end(app: Conveyor, option: Any, outcome: str) -> None:
    result = app.task(add).options(**option).delay(1)
    end(app, outcome, 1 if outcome == "success" else b"\x93\xa1E\xa1m\xa0")
    assert result.task() is None


@pytest.mark.parametrize("duration", [60, 60.0, timedelta(minutes=1)])
def test_a_duration_until_it_expires_counts_from_when_it_is_due(
    app: Conveyor, duration: Any
) -> None:
    task = app.task(add).options(expires=duration)
    now, later = task.delay(1).task(), task.schedule(1, after=3600).task()
    assert now is not None
    assert later is not None
    assert now.expires_at == now.created_at + timedelta(minutes=1)
    assert later.enqueue_after == later.created_at + timedelta(hours=1)
    assert later.expires_at == later.enqueue_after + timedelta(minutes=1)


def test_it_may_expire_at_a_moment(app: Conveyor) -> None:
    moment = datetime(2100, 1, 1, tzinfo=UTC)
    assert sent(app, expires=moment).expires_at == moment
    assert sent(app, expires=math.inf).expires_at is None
    assert sent(app, expires=None).expires_at is None


def test_an_async_task_goes_to_its_own_lane(app: Conveyor) -> None:
    async def visit() -> None: ...

    result = app.task(visit).options(priority=7).delay()
    assert Engine(app, stopped=False).places(result.id) == ["a:7"]


# How they combine


def test_options_of_a_call_change_no_other_call(app: Conveyor) -> None:
    task = app.task(priority=2, queue="tasks")(add)
    changed = task.options(priority=8).options(queue="calls")
    for one, expected in ((task, (2, "tasks")), (changed, (8, "calls")), (task, (2, "tasks"))):
        record = one.delay(1).task()
        assert record is not None
        assert (record.priority, record.queue) == expected
    assert changed.name == task.name


def test_calls_keep_the_options_they_were_made_with(app: Conveyor) -> None:
    record = app.task(add).options(priority=8).call(1).delay().task()
    assert record is not None
    assert record.priority == 8


# Custom ids


def test_an_id_that_exists_enqueues_nothing(app: Conveyor) -> None:
    task = app.task(add).options(id="once")
    first, second = task.delay(1, 2), task.delay(1, y=2)
    assert (first.created, second.created) == (True, False)
    assert first == second
    assert Engine(app, stopped=False).counts() == {"queued": 1}
    end(app, "success", 3)
    assert task.delay(1, 2).created is False
    assert task.delay(1, 2).wait(10) == 3


def test_an_id_is_of_one_queue(app: Conveyor) -> None:
    task = app.task(add)
    assert task.options(id="once").delay(1).created
    assert task.options(id="once", queue="other").delay(1).created


def test_an_id_of_another_task_is_a_conflict(app: Conveyor) -> None:
    app.task(add).options(id="once").delay(1, 2)
    with pytest.raises(IdConflict) as caught:
        app.task(multiply).options(id="once").delay(1, 2)
    assert str(caught.value) == (
        "task id 'once' on queue 'default' belongs to a test_options.add,"
        " not a test_options.multiply: use another id"
    )


def test_an_id_with_other_arguments_is_a_conflict(app: Conveyor) -> None:
    task = app.task(add).options(id="once")
    task.delay(1, 2)
    for arguments in ((1, 3), (1,), (1, 2.5), ("1", 2)):
        with pytest.raises(IdConflict) as caught:
            task.delay(*arguments)
        assert str(caught.value) == (
            "task id 'once' on queue 'default' belongs to a test_options.add"
            " with other arguments: use another id"
        )
    assert Engine(app, stopped=False).counts() == {"queued": 1}


def test_an_existing_id_may_be_an_error(app: Conveyor) -> None:
    task = app.task(add).options(id="once", on_existing="error")
    assert task.delay(1).created
    with pytest.raises(IdConflict) as caught:
        task.delay(1)
    assert str(caught.value) == (
        "task id 'once' on queue 'default' exists already, and on_existing is 'error':"
        " use another id"
    )


def test_an_ended_one_may_be_replaced_by_any_call(app: Conveyor) -> None:
    task = app.task(add).options(id="once", on_existing="replace_ended")
    assert task.delay(1).created
    assert not task.delay(1).created
    claim(app)
    assert not task.delay(1).created
    task.delay(1).cancel()
    other = app.task(multiply).options(id="over", on_existing="replace_ended")
    assert other.delay(1).created
    end(app, "success", 1)
    again = other.delay(2, 3)
    assert again.created
    assert again.status == "queued"
    assert again.task() is not None


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 257, "é" * 129, 5, b"id"])
def test_an_id_that_cannot_be_one_is_refused(name: Any) -> None:
    app = Conveyor("app", broker=NOWHERE)
    with pytest.raises(ConfigurationError, match=r"^task id .* is (not valid|longer than 256)"):
        app.task(add).options(id=name)


def test_the_longest_id_is_fine(app: Conveyor) -> None:
    assert sent(app, id="é" * 128).id == "é" * 128


# What is refused

WRONG: list[tuple[str, list[Any], str]] = [
    ("retry_limit", [-1, 1.5, "3", True, 2**31], "use a whole number from 0 to 2,147,483,647"),
    ("error_retry_limit", [-1, 1.5, "3"], "use a whole number"),
    ("stall_retry_limit", [-1, 1.5, "3"], "use a whole number"),
    ("backoff", ["quadratic", 5, None], "backoff"),
    ("execution_timeout", [0, -1, "1", math.nan, True], "use seconds over 0"),
    ("stall_timeout", [0, None, "1"], "use seconds over 0"),
    ("acknowledgement_interval", [0, -1], "use seconds over 0"),
    ("expires", [0, -1, "1", True, timedelta(0)], "use seconds over 0"),
    ("priority", [-1, 10, 1.5, None, True], "use a whole number from 0 to 9"),
    ("remove_on_success", [1, "yes", None], "use true or false"),
    ("remove_on_failed", [0], "use true or false"),
    ("retain_success", [-1, "1 h", None], "use seconds of 0 or more"),
    ("retain_failed", [-1], "use seconds of 0 or more"),
    ("headers", [[("a", "b")], "a"], "use a dict of str to str"),
    ("headers", [{"a": 1}, {1: "a"}, {"a": None}], "use a dict of str to str"),
    ("headers", [{"a": "\ud800"}, {"\ud800": "a"}], "use a dict of str to str, of valid Unicode"),
    ("on_existing", ["ignore", None], "use 'return', 'error' or 'replace_ended'"),
    ("retry_on", ["OSError", [OSError, "x"], OSError(), int], "use an exception class or a list"),
    ("no_retry_on", [int], "use an exception class or a list"),
]


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [(option, value, allowed) for option, values, allowed in WRONG for value in values],
)
def test_a_wrong_value_names_the_option_and_what_is_allowed(
    option: str, value: Any, allowed: str
) -> None:
    app = Conveyor("app", broker=NOWHERE)
    tries: list[Callable[[], object]] = []
    if option in TASK_OPTIONS:
        tries.append(lambda: app.task(**{option: value})(add))
    if option in CALL_OPTIONS:
        tries.append(lambda: app.task(add).options(**{option: value}))
    for attempt in tries:
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{option} cannot ")
        assert repr(value) in str(caught.value) or isinstance(value, dict)
        assert allowed in str(caught.value)
    assert tries


def test_every_interval_between_acknowledgements_is_shorter_than_the_timeout() -> None:
    app = Conveyor("app", broker=NOWHERE, acknowledgement_interval=5)
    with pytest.raises(ConfigurationError) as caught:
        app.task(stall_timeout=3)(add)
    assert str(caught.value) == (
        "acknowledgement_interval=5.0 must be shorter than stall_timeout=3.0:"
        " leave it out for a third of it"
    )


def test_a_naive_moment_is_refused() -> None:
    app = Conveyor("app", broker=NOWHERE)
    with pytest.raises(ValueError, match=r"^expires cannot be .* it has no time zone"):
        app.task(add).options(expires=datetime(2100, 1, 1))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("retry_limt", "did you mean 'retry_limit'?"),
        ("exec_timeout", "did you mean 'execution_timeout'?"),
        ("id", "give it to a call, task.options(id=...)"),
    ],
)
def test_an_unknown_option_of_a_task_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Conveyor("app", broker=NOWHERE).task(**{name: 1})(add)  # type: ignore[call-overload]
    assert str(caught.value) == f"task test_options.add has no option {name!r}: {hint}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("priorty", "did you mean 'priority'?"),
        ("retry_on", "give it to @app.task(retry_on=...)"),
        ("name", "give it to @app.task(name=...)"),
        ("bind", "give it to @app.task(bind=...)"),
    ],
)
def test_an_unknown_option_of_a_call_names_the_nearest(name: str, hint: str) -> None:
    task = Conveyor("app", broker=NOWHERE).task(add)
    with pytest.raises(ConfigurationError) as caught:
        task.options(**{name: 1})  # type: ignore[arg-type]
    assert str(caught.value) == f"a call of test_options.add has no option {name!r}: {hint}"


def test_a_function_is_a_backoff_of_tasks_only(app: Conveyor) -> None:
    task = app.task(backoff=slowly, retry_on=[OSError], no_retry_on=(KeyError,))(add)
    assert task.delay(1).created
    with pytest.raises(ConfigurationError) as caught:
        task.options(backoff=slowly)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "a call of test_options.add cannot have a function as backoff, for it cannot travel:"
        " give it to @app.task(backoff=...), or use constant(), linear() or exponential()"
    )


def test_the_settings_of_the_app_are_the_defaults(server: Server) -> None:
    with Conveyor(
        "option-defaults", broker=server.url, priority=1, retry_limit=2, expires=60,
        stall_timeout=3, backoff="linear", execution_timeout=timedelta(seconds=9),
        headers={"tenant": "a"}, retry_on=OSError, no_retry_on=[KeyError],
    ) as app:  # fmt: skip
        record = sent(app)
        other = sent(app, priority=7, expires=None, headers={})
        chosen = app.task(name="chosen", retry_on=ValueError)(add).definition.options
    assert (record.priority, record.retry_limit, record.stall_timeout) == (1, 2, 3)
    assert record.acknowledgement_interval == 1
    assert record.backoff == linear(1)
    assert record.execution_timeout == 9
    assert record.expires_at == record.created_at + timedelta(minutes=1)
    assert (other.priority, other.expires_at) == (7, None)
    assert (record.headers, other.headers) == ({"tenant": "a"}, {})
    assert chosen == {"name": "chosen", "retry_on": ValueError, "no_retry_on": (KeyError,)}
