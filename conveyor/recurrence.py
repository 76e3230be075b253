"""When recurring tasks are due: data and arithmetic, no I/O.

A recurrence is a set of moments. `cron` names times of day in a time zone; `every` counts elapsed
time from 1970, so that no restart shifts it. All that is ever asked of one is the first moment
after a given one, and the answer depends on nothing else: whoever computes it gets the same.

Where a zone's clocks are changed:

- A pattern that names hours (`30 2 * * *`) means times of day, and each comes once. One that the
  clocks jump over comes at the moment of the jump; one that they repeat comes the first time.
- A pattern for every hour (`*/15 * * * *`) means elapsed time: it goes on through the repeated
  hour, and has nothing to catch up with after a missing one.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from conveyor.errors import ConfigurationError, SerializationError
from conveyor.moments import from_ms, to_ms
from conveyor.packing import pack, unpack
from conveyor.records import payload_of

if TYPE_CHECKING:
    from conveyor.moments import Duration

CatchUp: TypeAlias = Literal["skip", "one", "all"]
Overlap: TypeAlias = Literal["allow", "skip"]

#: A firing found later than this was missed, in ms.
GRACE_MS: Final = 60_000
_DAY: Final = 86_400
_EPOCH: Final = datetime(1970, 1, 1)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringRecord:
    """An immutable snapshot of a recurring entry, as the server had it when it was read.

    Attributes:
        name: Its name.
        task: The name of the task that it fires.
        queue: Where it is kept, and where its tasks go.
        cron: The pattern, or None.
        every: Seconds between two firings, or None.
        timezone: In which the pattern is meant; None with `every`.
        catch_up: What becomes of missed firings: "skip", "one" or "all".
        overlap: Whether a firing waits for nobody ("allow") or is left out while the task of the
            one before has not ended ("skip").
        next_due_at: When it fires next.
        last_due_at: The moment of its last firing that was queued, or None.
        declared: Whether code declares it (it lapses once none does), or `add_recurring` added it.
    """

    name: str
    task: str
    queue: str
    cron: str | None
    every: float | None
    timezone: str | None
    catch_up: CatchUp
    overlap: Overlap
    next_due_at: datetime
    last_due_at: datetime | None
    declared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """The moments at which something recurs, and what becomes of those that were missed.

    Attributes:
        cron: Five fields, or six with seconds first; None with `every_ms`.
        every_ms: Ms between two moments, counted from 1970; None with `cron`.
        timezone: The name of the zone that the pattern is meant in.
        catch_up: See `RecurringRecord`.
        overlap: See `RecurringRecord`.

    Example:
        >>> Recurrence(cron="30 2 * * *", timezone="Europe/Berlin").next_after(0)
        5400000
    """

    cron: str | None = None
    every_ms: int | None = None
    timezone: str = "UTC"
    catch_up: CatchUp = "skip"
    overlap: Overlap = "allow"

    def next_after(self, ms: int) -> int:
        """The first moment after `ms`, both in POSIX ms.

        Raises:
            ConfigurationError: The pattern or the zone is not valid, or no such moment ever comes.
        """
        if self.every_ms is not None:
            return (ms // self.every_ms + 1) * self.every_ms
        return _CronMoments(str(self.cron), _zone(self.timezone)).next_after(ms // 1000) * 1000

    def firings(self, due_ms: int, now_ms: int, most: int) -> tuple[list[int], int]:
        """Which moments to fire now, and when to look again, all in POSIX ms.

        Args:
            due_ms: The first moment that was not fired.
            now_ms: The server's time.
            most: The most moments to fire at once; the rest is then due at once again.
        """
        moment = self.next_after(due_ms - 1)
        if moment > now_ms:
            return [], moment
        if self.catch_up != "all":
            latest = self._latest(moment, now_ms)
            fires = self.catch_up == "one" or now_ms - latest <= GRACE_MS
            return [latest] * fires, self.next_after(latest)
        moments: list[int] = []
        while moment <= now_ms and len(moments) < most:
            moments.append(moment)
            moment = self.next_after(moment)
        return moments, moment

    def _latest(self, first: int, now_ms: int) -> int:
        """The last moment that is not after `now_ms`; `first` is one."""
        if self.next_after(first) > now_ms:
            return first
        before, at = first, now_ms
        while at - before > 1:
            middle = (before + at) // 2
            if self.next_after(middle) <= now_ms:
                before = middle
            else:
                at = middle
        return at


@dataclass(frozen=True, slots=True)
class Entry:
    """A recurring entry as the server keeps it: one string, opaque to the scripts.

    But for its beginning: the lengths of the two parts before the record, and the first of them,
    the rhythm. A new definition with the same rhythm keeps the moment that is due next.

    Attributes:
        recurrence: When.
        expires: ARGV of enqueue.lua, for each task.
        record: What to enqueue, its times zero.
    """

    recurrence: Recurrence
    expires: str
    record: bytes

    def pack(self) -> bytes:
        """The string."""
        when = self.recurrence
        rhythm = pack([when.cron, when.every_ms, when.timezone])
        habits = pack([when.catch_up, when.overlap, self.expires])
        lengths = _LENGTHS.pack(len(rhythm), len(habits))
        return b"".join((lengths, rhythm, habits, self.record))

    @classmethod
    def unpack(cls, data: bytes) -> Entry:
        """Reads what `pack` wrote.

        Raises:
            SerializationError: It is something else.
        """
        try:
            rhythm, habits = _LENGTHS.unpack_from(data)
            middle = _LENGTHS.size + rhythm
            cron, every_ms, zone = unpack(data[_LENGTHS.size : middle], "a rhythm")
            catch_up, overlap, expires = unpack(data[middle : middle + habits], "its habits")
            record = data[middle + habits :]
            payload_of(record)
            if not (isinstance(zone, str) and isinstance(expires, str)):
                raise TypeError("its zone or expiry is no text")
            if not (isinstance(cron, str) if every_ms is None else every_ms > 0):
                raise TypeError("it says no moments")
        except (struct.error, TypeError, ValueError) as error:
            raise SerializationError(f"a recurring entry cannot be read: {error}") from error
        when = Recurrence(
            cron=cron, every_ms=every_ms, timezone=zone, catch_up=catch_up, overlap=overlap
        )
        return cls(when, expires, record)


_LENGTHS: Final = struct.Struct("<HH")


def make_recurrence(
    what: str,
    *,
    cron: str | None,
    every: Duration | None,
    timezone: str | tzinfo | None,
    catch_up: str,
    overlap: str,
    app_timezone: tzinfo | None,
) -> Recurrence:
    """Checks what a user says of a recurring task.

    Args:
        what: Which, for errors.
        cron: The pattern, or None.
        every: Seconds or a timedelta, or None.
        timezone: For `cron`; None is the app's, else UTC.
        catch_up: "skip", "one" or "all".
        overlap: "allow" or "skip".
        app_timezone: The app's.

    Raises:
        ConfigurationError: Something of it cannot work.
    """
    if (cron is None) == (every is None):
        raise ConfigurationError(f"{what}: give either cron= or every=")
    if catch_up not in get_args(CatchUp):
        raise ConfigurationError(f"{what}: catch_up cannot be {catch_up!r}: use skip, one or all")
    if overlap not in get_args(Overlap):
        raise ConfigurationError(f"{what}: overlap cannot be {overlap!r}: use allow or skip")
    habits: dict[str, Any] = {"catch_up": catch_up, "overlap": overlap}
    if every is not None:
        if timezone is not None:
            raise ConfigurationError(
                f"{what}: timezone= has no effect on every=, which counts elapsed time:"
                " use cron= for times of day"
            )
        return Recurrence(every_ms=_every_ms(what, every), **habits)
    zone = _zone_name(what, app_timezone if timezone is None else timezone)
    recurrence = Recurrence(cron=_pattern(what, cron), timezone=zone, **habits)
    try:
        recurrence.next_after(0)
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from error
    return recurrence


def moment_text(ms: int) -> str:
    """A moment as in the id of a firing: `2027-01-01T00:00:00Z`, with ms if it has any."""
    return from_ms(ms).strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms % 1000:03}Z" if ms % 1000 else "Z")


def _every_ms(what: str, every: Duration) -> int:
    try:
        ms = to_ms(every, "every")
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{what}: {error}") from error
    if not ms:
        raise ConfigurationError(
            f"{what}: every cannot be {every!r}: use more than 0 seconds, or a timedelta"
        )
    return ms


def _pattern(what: str, cron: object) -> str:
    if not isinstance(cron, str):
        raise ConfigurationError(
            f"{what}: cron cannot be {cron!r}: use a pattern such as '*/5 * * * *'"
        )
    return " ".join(cron.split())


def _zone_name(what: str, zone: object) -> str:
    if zone is None or zone is UTC:
        return "UTC"
    name = zone.key if isinstance(zone, ZoneInfo) else zone
    if not isinstance(name, str):
        raise ConfigurationError(
            f"{what}: the time zone {zone!r} has no name to travel by:"
            " give timezone= one such as 'Europe/Berlin'"
        )
    return name


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"timezone {name!r} is not known: use a name such as 'Europe/Berlin'"
        ) from error


class _CronMoments:
    """A pattern in a zone; moments are POSIX seconds, local times are naive."""

    def __init__(self, cron: str, zone: tzinfo) -> None:
        self._cron = cron
        self._zone = zone

    def next_after(self, second: int) -> int:
        offset = self._offset(second)
        local = _EPOCH + timedelta(seconds=second + offset)
        try:
            times = CronSim(self._cron, local)
            if len(times.hours) == 24:
                return self._next_elapsed(second, offset, local)
            return next(moment for moment in map(self._first, times) if moment > second)
        except CronSimError as error:
            raise ConfigurationError(
                f"cron {self._cron!r} is not valid ({error}): use five fields (minute, hour, day"
                " of month, month, day of week), or six with seconds first"
            ) from error
        except (StopIteration, RuntimeError, OverflowError) as error:
            raise ConfigurationError(f"cron {self._cron!r} never comes") from error

    def _next_elapsed(self, second: int, offset: int, local: datetime) -> int:
        """Follows the clock on the wall, from one change of the offset to the next."""
        while True:
            moment = _seconds(next(CronSim(self._cron, local))) - offset
            change = self._change(second, moment, offset)
            if change is None:
                return moment
            second, offset = change, self._offset(change)
            local = _EPOCH + timedelta(seconds=second + offset) - _SECOND

    def _first(self, local: datetime) -> int:
        """The one moment of a local time: the first, or that of the jump over it."""
        aware = local.replace(tzinfo=self._zone)
        before = _utc_offset(aware)
        after = _utc_offset(aware.replace(fold=1))
        moment = _seconds(local) - before
        if before >= after:
            return moment
        return self._first_other(_seconds(local) - after, moment, before)

    def _change(self, second: int, until: int, offset: int) -> int | None:
        """The first moment in (second, until] at which the offset is another."""
        while second < until:
            later = min(second + _DAY, until)
            if self._offset(later) != offset:
                return self._first_other(second, later, offset)
            second = later
        return None

    def _first_other(self, before: int, at: int, offset: int) -> int:
        while at - before > 1:
            middle = (before + at) // 2
            if self._offset(middle) == offset:
                before = middle
            else:
                at = middle
        return at

    def _offset(self, second: int) -> int:
        return _utc_offset(datetime.fromtimestamp(second, self._zone))


def _seconds(local: datetime) -> int:
    return math.floor((local - _EPOCH) / _SECOND)


def _utc_offset(aware: datetime) -> int:
    offset = aware.utcoffset()
    return 0 if offset is None else round(offset.total_seconds())
