"""Recurring entries as callers see them: added, changed, listed, removed, and declared."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from conveyor import BrokerUnavailable, Conveyor, RecurringRecord, SerializationError
from conveyor.errors import ConfigurationError
from conveyor.recurring import declared_entry, declared_name

if TYPE_CHECKING:
    from collections.abc import Callable

#: Nothing listens there: whoever connects fails.
NOWHERE = "redis://127.0.0.1:1/0"


def report(what: str = "all", *, copies: int = 1) -> None:
    """A task's function."""


class Sync:
    """The calls as they are."""

    def __init__(self, app: Conveyor) -> None:
        self._app = app

    def add(self, *args: Any, **kwargs: Any) -> None:
        assert self._app.add_recurring(*args, **kwargs) is None

    def remove(self, *args: Any) -> bool:
        return self._app.remove_recurring(*args)

    def list(self, *args: Any) -> list[RecurringRecord]:
        return self._app.recurring(*args)


class Async:
    """Their twins, each in an event loop of its own."""

    def __init__(self, app: Conveyor) -> None:
        self._app = app

    def add(self, *args: Any, **kwargs: Any) -> None:
        self._run(lambda: self._app.aadd_recurring(*args, **kwargs))

    def remove(self, *args: Any) -> bool:
        return bool(self._run(lambda: self._app.aremove_recurring(*args)))

    def list(self, *args: Any) -> list[RecurringRecord]:
        return self._run(lambda: self._app.arecurring(*args))  # type: ignore[no-any-return]

    def _run(self, call: Callable[[], Any]) -> Any:
        async def main() -> Any:
            try:
                return await call()
            finally:
                await self._app.aclose()

        return asyncio.run(main())


@pytest.fixture(params=[Sync, Async])
def calls(request: pytest.FixtureRequest, app: Conveyor) -> Sync | Async:
    return request.param(app)  # type: ignore[no-any-return]


def test_an_entry_is_added_listed_and_removed(app: Conveyor, calls: Sync | Async) -> None:
    task = app.task(name="report")(report)
    assert calls.list() == []
    before = datetime.now(UTC)
    calls.add("nightly", task.call("sales"), cron="30  2 * * *", timezone="Europe/Berlin")
    (record,) = calls.list()
    local = record.next_due_at.astimezone(ZoneInfo("Europe/Berlin"))
    assert (local.hour, local.minute, local.second) == (2, 30, 0)
    assert before < record.next_due_at <= before + timedelta(days=2)
    assert record == RecurringRecord(
        name="nightly", task="report", queue="default", cron="30 2 * * *", every=None,
        timezone="Europe/Berlin", catch_up="skip", overlap="allow",
        next_due_at=record.next_due_at, last_due_at=None, declared=False,
    )  # fmt: skip
    assert app.manager().get_recurring() == [record]
    assert calls.remove("nightly") is True
    assert calls.remove("nightly") is False
    assert calls.list() == []


def test_an_entry_that_cannot_be_read_is_logged_and_left_out(
    app: Conveyor, calls: Sync | Async, caplog: pytest.LogCaptureFixture
) -> None:
    call = app.task(name="report")(report).call("sales")
    for name in ("damaged", "sound"):
        calls.add(name, call, every=3600)
    prefix = app.client.broker.keys("default").prefix
    app.client.broker.execute(("HSET", f"{prefix}recurring", "damaged", b"\xc1"))
    assert [record.name for record in calls.list()] == ["sound"]
    assert "recurring 'damaged' on default is not listed" in caplog.text


def test_every_counts_from_a_fixed_moment(app: Conveyor, calls: Sync | Async) -> None:
    calls.add("often", app.task(report).call(), every=timedelta(hours=1), overlap="skip")
    (record,) = calls.list()
    assert (record.cron, record.every, record.timezone) == (None, 3600.0, None)
    assert (record.catch_up, record.overlap) == ("skip", "skip")
    assert record.next_due_at.timestamp() % 3600 == 0


def test_a_name_added_again_is_changed(app: Conveyor, calls: Sync | Async) -> None:
    task = app.task(report)
    calls.add("often", task.call(), every=3600)
    calls.add("often", task.call(), cron="0 0 1 1 *", catch_up="all")
    (record,) = calls.list()
    assert (record.cron, record.every, record.catch_up) == ("0 0 1 1 *", None, "all")
    assert (record.next_due_at.month, record.next_due_at.day) == (1, 1)


def test_an_entry_lies_on_its_calls_queue_and_on_one_only(
    app: Conveyor, calls: Sync | Async
) -> None:
    task = app.task(report)
    calls.add("often", task.call(), every=3600)
    calls.add("often", task.options(queue="fast").call(), every=3600)
    calls.add("other", task.call(), every=3600)
    assert [record.name for record in calls.list()] == ["other"]
    assert [(record.name, record.queue) for record in calls.list("fast")] == [("often", "fast")]
    assert app.queues() == ["default", "fast"]
    assert calls.remove("often", "default") is False
    assert calls.remove("often") is True
    assert calls.list("fast") == []


def test_an_async_manager_lists_them_too(app: Conveyor) -> None:
    async def main() -> list[RecurringRecord]:
        await app.aadd_recurring("often", app.task(report).call(), every=3600)
        try:
            return await app.amanager().get_recurring()
        finally:
            await app.aclose()

    assert [record.name for record in asyncio.run(main())] == ["often"]


def test_entries_come_in_the_order_they_are_due(app: Conveyor, calls: Sync | Async) -> None:
    task = app.task(report)
    calls.add("last", task.call(), cron="0 0 29 2 *")
    calls.add("first", task.call(), every=1)
    calls.add("middle", task.call(), every=60)
    assert [record.name for record in calls.list()][0::2] == ["first", "last"]


@pytest.mark.parametrize(
    ("name", "about", "reason"),
    [
        ("a b", {"every": 1}, "recurring name 'a b' is not valid"),
        ("x" * 65, {"every": 1}, "is not valid"),
        ("a", {}, "recurring 'a': give either cron= or every="),
        ("a", {"every": 1, "cron": "* * * * *"}, "give either cron= or every="),
        ("a", {"cron": "* * *"}, "recurring 'a': cron '* * *' is not valid"),
        ("a", {"every": 0}, "recurring 'a': every cannot be 0"),
        ("a", {"cron": "* * * * *", "timezone": "Nowhere"}, "'Nowhere' is not known"),
        ("a", {"every": 1, "overlap": "no"}, "overlap cannot be 'no'"),
        ("a", {"every": 1, "catch_up": "no"}, "catch_up cannot be 'no'"),
        ("a", {"evry": 1}, "recurring 'a' has no option 'evry': did you mean 'every'?"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    name: str, about: dict[str, Any], reason: str
) -> None:
    with Conveyor("nowhere", broker=NOWHERE) as app:
        call = app.task(report).call()
        with pytest.raises(ConfigurationError, match=re.escape(reason)) as caught:
            app.add_recurring(name, call, **about)
        assert "\n" not in str(caught.value)


def test_the_call_must_be_one_that_can_recur(app: Conveyor) -> None:
    task = app.task(report)
    with pytest.raises(ConfigurationError, match="is not a Call"):
        app.add_recurring("a", task, every=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="leave id= out"):
        app.add_recurring("a", task.options(id="mine").call(), every=1)
    other = Conveyor("other", broker=NOWHERE)
    with pytest.raises(ConfigurationError, match="belongs to another app"):
        other.add_recurring("a", task.call(), every=1)
    with pytest.raises(SerializationError, match="argument 'what'"):
        app.add_recurring("a", task.call(object()), every=1)  # type: ignore[arg-type]
    assert app.recurring() == []


@pytest.mark.parametrize("name", ["a b", "", None])
def test_a_name_that_cannot_be_is_not_looked_for(app: Conveyor, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="recurring name"):
        app.remove_recurring(name)
    with pytest.raises(ConfigurationError, match="queue"):
        app.recurring("a b")


def test_a_server_that_is_down_is_told_of() -> None:
    with Conveyor("nowhere", broker=NOWHERE) as app:
        with pytest.raises(BrokerUnavailable):
            app.add_recurring("a", app.task(report).call(), every=1)
        with pytest.raises(BrokerUnavailable):
            app.remove_recurring("a")


def test_naive_times_of_day_are_the_apps() -> None:
    with Conveyor("nowhere", broker=NOWHERE, timezone="Asia/Tokyo") as app:
        entry = declared_entry(app.task(cron="0 9 * * *")(report))
    assert entry is not None
    assert entry.recurrence.timezone == "Asia/Tokyo"


def test_decorating_opens_nothing_and_leaves_a_task() -> None:
    app = Conveyor("nowhere", broker=NOWHERE)
    task = app.task(every=30, priority=9, queue="fast")(report)
    entry = declared_entry(task)
    assert entry is not None
    assert (entry.name, entry.queue) == (task.name, "fast")
    assert entry.recurrence.every_ms == 30_000
    assert declared_entry(app.task(name="plain")(report)) is None
    assert task("here and now") is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cron": "bad"}, "cron 'bad' is not valid"),
        ({"every": 5, "cron": "* * * * *"}, "give either cron= or every="),
        ({"every": -5}, "every cannot be -5"),
        ({"timezone": "Europe/Berlin"}, "give either cron= or every="),
        ({"overlap": "skip"}, "give either cron= or every="),
        ({"cron": "* * * * *", "timezone": "Mars/Base"}, "'Mars/Base' is not known"),
        ({"every": 5, "catchup": "all"}, "did you mean 'catch_up'"),
    ],
)
def test_what_a_decorator_cannot_say(app: Conveyor, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reason)) as caught:
        app.task(**options)(report)
    assert "\n" not in str(caught.value)
    assert app.tasks == {}


def test_a_task_that_needs_arguments_cannot_be_declared_to_recur(app: Conveyor) -> None:
    def needy(what: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"needs arguments.*app.add_recurring\("):
        app.task(every=5)(needy)
    assert app.tasks == {}


def test_recurrence_is_no_option_of_a_call(app: Conveyor) -> None:
    with pytest.raises(ConfigurationError, match=r"give it to @app.task\(every=...\)"):
        app.task(report).options(every=5)  # type: ignore[call-arg]


def test_the_entry_of_a_decorator_has_the_name_of_its_task() -> None:
    assert declared_name("shop.tasks.tick") == "shop.tasks.tick"
    inner, other = (declared_name(f"shop.{name}.<locals>.tick") for name in ("main", "test"))
    assert re.fullmatch(r"shop\.main\._locals_\.tick-[0-9a-f]{8}", inner)
    assert inner != other
    longest = declared_name("x" * 500)
    assert re.fullmatch(r"x{55}-[0-9a-f]{8}", longest)
    assert declared_name("a b") != declared_name("a_b") == "a_b"
