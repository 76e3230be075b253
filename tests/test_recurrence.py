"""When recurring tasks are due, against a clock that is walked step by step."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.errors import ConfigurationError, SerializationError
from conveyor.records import UNLIMITED, Limits, Template
from conveyor.recurrence import (
    GRACE_MS,
    Entry,
    Recurrence,
    make_recurrence,
    moment_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Half an hour, an hour, two and a whole day of change; at midnight, and near it; none.
ZONES = (
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll",
    "America/Sao_Paulo", "America/Havana", "Africa/Cairo", "Africa/Casablanca", "Asia/Tehran",
    "Atlantic/Azores", "Pacific/Apia", "Asia/Kathmandu", "UTC",
)  # fmt: skip
STEP = 30


def at(text: str, zone: str = "UTC") -> int:
    """A moment in POSIX ms."""
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def moments(when: Recurrence, after: int, until: int) -> list[int]:
    """All from one on to another, in POSIX ms."""
    found = [when.next_after(after)]
    while found[-1] <= until:
        found.append(when.next_after(found[-1]))
    return found[:-1]


def texts(when: Recurrence, after: str, until: str) -> list[str]:
    """The same in local time and UTC's offset."""
    zone = ZoneInfo(when.timezone)
    found = moments(when, at(after, when.timezone), at(until, when.timezone))
    return [
        datetime.fromtimestamp(ms / 1000, zone).isoformat(timespec="minutes")[8:] for ms in found
    ]


@cache
def changes(zone: str) -> list[int]:
    """When a zone's clocks were or will be changed, as POSIX seconds."""
    info = ZoneInfo(zone)

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, info).utcoffset()

    found: list[int] = []
    for year in (1979, 1986, 1999, 2007, 2010, 2011, 2018, 2022, 2026, 2036):
        day = round(datetime(year, 1, 1, tzinfo=UTC).timestamp())
        for first in range(day, day + 365 * 86_400, 86_400):
            if offset(first) != offset(first + 86_400):
                steps = range(first, first + 86_401, STEP)
                found.append(next(s for s in steps if offset(s) != offset(first)))
    return found or [at("2026-03-29T01:00") // 1000]


def steps(zone: tzinfo, start: int, end: int) -> Iterator[tuple[int, datetime]]:
    """Moments and what the clock on the wall shows."""
    for second in range(start, end, STEP):
        yield second, datetime.fromtimestamp(second, zone).replace(tzinfo=None)


fields = st.one_of(
    st.just("*"),
    st.sampled_from(["*/2", "*/7", "*/15", "1-3", "0", "2", "2,3", "23", "0,30", "10-20"]),
)


def values(field: str, size: int) -> set[int]:
    """What a field of those means."""
    if field.startswith("*"):
        return set(range(0, size, int(field[2:] or 1)))
    if "-" in field:
        first, last = map(int, field.split("-"))
        return set(range(first, last + 1))
    return set(map(int, field.split(",")))


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(ZONES),
    fields,
    fields.filter(lambda field: field not in ("0,30",)),
    st.sampled_from(["", "0", "30", "*/30"]),
    st.data(),
)
def test_the_clock_on_the_wall_is_followed(
    zone: str, minute: str, hour: str, second: str, data: st.DataObject
) -> None:
    change = data.draw(st.sampled_from(changes(zone)))
    start, end = change - 6 * 3600, change + 27 * 3600
    when = Recurrence(cron=f"{second} {minute} {hour} * * *".strip(), timezone=zone)
    hours, minutes, seconds = values(hour, 24), values(minute, 60), values(second or "0", 60)

    def matches(local: datetime) -> bool:
        return local.hour in hours and local.minute in minutes and local.second in seconds

    expected: list[int] = []
    seen: set[datetime] = set()
    before: datetime | None = None
    for moment, local in steps(ZoneInfo(zone), start, end):
        jumped = before is not None and local - before > timedelta(seconds=STEP)
        skipped = False
        if jumped and len(hours) < 24:
            assert before is not None
            count = (local - before) // timedelta(seconds=STEP)
            skipped = any(matches(before + n * timedelta(seconds=STEP)) for n in range(1, count))
        if skipped or (matches(local) and (len(hours) == 24 or local not in seen)):
            expected.append(moment * 1000)
        seen.add(local)
        before = local
    assert moments(when, start * 1000 - 1, end * 1000 - 1) == expected


def test_a_time_in_the_missing_hour_fires_once() -> None:
    for cron in ("30 2 * * *", "0 30 2 * * *", "*/10 2 * * *"):
        when = Recurrence(cron=cron, timezone="Europe/Berlin")
        assert texts(when, "2026-03-29T00:00", "2026-03-29T12:00") == ["29T03:00+02:00"]


def test_a_time_in_the_repeated_hour_fires_once() -> None:
    for cron in ("30 2 * * *", "0 30 2 * * *"):
        when = Recurrence(cron=cron, timezone="Europe/Berlin")
        assert texts(when, "2026-10-25T00:00", "2026-10-25T12:00") == ["25T02:30+02:00"]


def test_a_pattern_for_every_hour_goes_by_elapsed_time() -> None:
    when = Recurrence(cron="30 * * * *", timezone="Europe/Berlin")
    assert texts(when, "2026-10-25T01:00", "2026-10-25T04:00") == [
        "25T01:30+02:00", "25T02:30+02:00", "25T02:30+01:00", "25T03:30+01:00",
    ]  # fmt: skip
    assert texts(when, "2026-03-29T01:00", "2026-03-29T04:00") == [
        "29T01:30+01:00", "29T03:30+02:00",
    ]  # fmt: skip


def test_a_day_that_a_zone_skipped_fires_once() -> None:
    when = Recurrence(cron="0 12 * * *", timezone="Pacific/Apia")
    found = moments(when, at("2011-12-29T00:00"), at("2011-12-31T12:00"))
    # Noon of the 29th, the jump over the 30th, and noon of the 31st.
    assert [moment_text(ms) for ms in found] == [
        "2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z",
    ]  # fmt: skip


@given(st.integers(1, 10**10), st.integers(0, 4 * 10**12))
def test_every_counts_from_a_fixed_moment(every: int, now: int) -> None:
    following = Recurrence(every_ms=every).next_after(now)
    assert following % every == 0
    assert 0 < following - now <= every


@given(
    st.sampled_from(["*/5 * * * *", "30 2 * * *", "*/20 * * * * *", "0 0 1 * *", 7_000, 3_600_000]),
    st.sampled_from(ZONES),
    st.integers(0, 2 * 10**12),
    st.integers(0, 6 * 3_600_000),
    st.integers(1, 50),
)
def test_what_was_missed(pattern: str | int, zone: str, due: int, late: int, most: int) -> None:
    of: dict[str, Any] = (
        {"every_ms": pattern}
        if isinstance(pattern, int)
        else {"cron": pattern, "timezone": zone}
    )  # fmt: skip
    first = Recurrence(**of).next_after(due)
    now = first + late
    missed = moments(Recurrence(**of), first - 1, now)
    following = Recurrence(**of).next_after(now)
    assert Recurrence(**of, catch_up="one").firings(first, now, most) == (missed[-1:], following)
    in_time = [ms for ms in missed[-1:] if now - ms <= GRACE_MS]
    assert Recurrence(**of, catch_up="skip").firings(first, now, most) == (in_time, following)
    rest = [*missed, following]
    each = Recurrence(**of, catch_up="all").firings(first, now, most)
    assert each == (missed[:most], rest[min(most, len(missed))])


def test_a_moment_that_is_none_of_its_own_is_passed_over() -> None:
    """As after somebody postponed the entry, or moved it by hand."""
    when = Recurrence(every_ms=1000, catch_up="all")
    assert when.firings(500, 900, 9) == ([], 1000)
    assert when.firings(500, 2000, 9) == ([1000, 2000], 3000)


def test_a_year_of_seconds_is_passed_over_at_once() -> None:
    when = Recurrence(cron="* * * * * *", timezone="Europe/Berlin")
    now = at("2027-01-01T00:00")
    assert when.firings(at("2026-01-01T00:00"), now, 100) == ([now], now + 1000)


@given(st.sampled_from(ZONES), st.integers(0, 4 * 10**12))
def test_rare_days_are_found(zone: str, now: int) -> None:
    when = Recurrence(cron="0 * 29 2 *", timezone=zone)
    local = datetime.fromtimestamp(when.next_after(now) / 1000, ZoneInfo(zone))
    assert (local.month, local.day, local.minute) == (2, 29, 0)


@given(st.text("0123456789*/,-#?LWMONJAN@ ", max_size=20))
def test_whatever_is_written_is_valid_or_a_configuration_error(cron: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert made(cron=cron).next_after(10**12) > 10**12


def made(app_timezone: tzinfo | None = None, **given: Any) -> Recurrence:
    nothing = {"cron": None, "every": None, "timezone": None, "catch_up": "skip"}
    about = nothing | {"overlap": "allow"} | given
    return make_recurrence("task x", app_timezone=app_timezone, **about)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({}, "give either cron= or every="),
        ({"cron": "* * * * *", "every": 1}, "give either cron= or every="),
        ({"cron": "* * * *"}, "use five fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "0 0 31 2 *"}, "Bad day-of-month"),
        ({"cron": 5}, "use a pattern such as"),
        ({"every": 0}, "use more than 0 seconds"),
        ({"every": -1}, "every cannot be -1"),
        ({"every": float("inf")}, "use more than 0 seconds"),
        ({"every": "1"}, "every must be seconds or a timedelta"),
        ({"every": True}, "every must be seconds or a timedelta"),
        ({"every": 1, "timezone": "Europe/Berlin"}, "use cron= for times of day"),
        ({"cron": "* * * * *", "timezone": "Europe/Nowhere"}, "'Europe/Nowhere' is not known"),
        ({"cron": "* * * * *", "timezone": "../etc"}, "is not known"),
        ({"cron": "* * * * *", "timezone": timezone(timedelta(hours=1))}, "has no name"),
        ({"every": 1, "catch_up": "some"}, "catch_up cannot be 'some'"),
        ({"every": 1, "overlap": "wait"}, "overlap cannot be 'wait'"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(about: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^task x: [^\n]+$") as caught:
        made(**about)
    assert reason in str(caught.value)


def test_the_zone_is_the_given_one_or_the_apps_or_utc() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert made(cron="* * * * *").timezone == "UTC"
    assert made(cron="* * * * *", app_timezone=UTC).timezone == "UTC"
    assert made(cron="* * * * *", app_timezone=berlin).timezone == "Europe/Berlin"
    assert made(berlin, cron="* * * * *", timezone="Asia/Tokyo").timezone == "Asia/Tokyo"
    assert made(cron="* * * * *", timezone=ZoneInfo("Asia/Tokyo")).timezone == "Asia/Tokyo"
    assert made(every=timedelta(minutes=1)) == Recurrence(every_ms=60_000)


def test_the_id_of_a_firing_has_its_moment() -> None:
    assert moment_text(1_798_761_600_000) == "2027-01-01T00:00:00Z"
    assert moment_text(1_798_761_600_050) == "2027-01-01T00:00:00.050Z"


def entry(**about: Any) -> Entry:
    limits = Limits(
        priority=5, flags=0, retry_limit=UNLIMITED, error_retry_limit=0, stall_retry_limit=3,
        stall_ms=1, acknowledgement_ms=1, retain_success_ms=1, retain_failed_ms=1,
    )  # fmt: skip
    return Entry(Recurrence(**about), "+1000", Template("app.add", limits, b"").record(b"call"))


@pytest.mark.parametrize(
    "about", [{"every_ms": 1}, {"cron": "* * * * *", "timezone": "Asia/Tokyo"}]
)
def test_an_entry_travels(about: dict[str, Any]) -> None:
    one = entry(**about, catch_up="all", overlap="skip")
    assert Entry.unpack(one.pack()) == one


def test_entries_of_one_rhythm_begin_alike() -> None:
    """As declare.lua compares them."""
    first, second = entry(every_ms=5).pack(), entry(every_ms=5, catch_up="all").pack()
    length = first[0]
    assert first != second
    assert first[:2] + first[4 : 4 + length] == second[:2] + second[4 : 4 + length]
    other = entry(every_ms=6).pack()
    assert first[4 : 4 + length] != other[4 : 4 + length]


@given(st.binary(max_size=40))
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(SerializationError):
        Entry.unpack(data)


@given(st.data())
def test_a_damaged_entry_is_refused_or_read(data: st.DataObject) -> None:
    packed = bytearray(entry(cron="* * * * *").pack())
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SerializationError, ConfigurationError):
        Entry.unpack(bytes(packed)).recurrence.firings(0, 0, 1)
