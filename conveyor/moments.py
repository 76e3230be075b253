"""Durations and moments: what a caller writes, and the whole milliseconds that are stored.

Callers write seconds or a ``timedelta``, POSIX seconds or an aware ``datetime``; the server keeps
integers of milliseconds. Each value is converted once, on its way in, and checked there: a wrong
one never reaches the server. Both ranges are bounded so that any stored moment, with a duration
added, is still a ``datetime`` and exact as a double, which is all that Lua's numbers are.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import tzinfo

#: Seconds or a ``timedelta``; ``math.inf`` is unlimited.
Duration: TypeAlias = float | int | timedelta

#: The longest finite duration, in ms: 1,000 years.
LONGEST_MS: Final = 1_000 * 31_556_952_000

#: The first moment that is too late, in POSIX ms: the beginning of the year 8000.
TOO_LATE_MS: Final = 190_288_396_800_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def to_ms(value: Duration, what: str) -> int | None:
    """Convert a duration to whole milliseconds; None is unlimited.

    A positive duration never becomes 0: what is shorter than a millisecond is rounded up to one.

    Args:
        value: Seconds, or a ``timedelta``; ``math.inf`` is unlimited.
        what: The name to give the value in an error, such as ``"execution_timeout"``.

    Raises:
        ConfigurationError: It is negative, NaN, or over 1,000 years.
        TypeError: It is neither a number nor a ``timedelta``; a bool is not a number.

    Example:
        >>> to_ms(1.5, "grace"), to_ms(timedelta(minutes=1), "grace"), to_ms(math.inf, "grace")
        (1500, 60000, None)
    """
    if isinstance(value, timedelta):
        ms = value / _MILLISECOND
    else:
        ms = _number(value, what, "seconds or a timedelta") * 1_000
    if ms == math.inf:
        return None
    if not 0 <= ms <= LONGEST_MS:
        raise ConfigurationError(
            f"{what} cannot be {value!r}: use seconds or a timedelta"
            " from 0 to 1,000 years, or math.inf for unlimited"
        )
    return max(round(ms), 1 if ms > 0 else 0)


def moment_to_ms(value: datetime | float, timezone: tzinfo | None, what: str) -> int:
    """Convert a moment to POSIX milliseconds.

    Args:
        value: An aware ``datetime``, or POSIX seconds; a naive ``datetime`` is taken as a time in
            ``timezone``.
        timezone: The app's time zone, or None when it has none.
        what: The name to give the value in an error, such as ``"at"``.

    Raises:
        ConfigurationError: A naive ``datetime`` without a ``timezone``, or a moment before 1970
            or after 7999 (it is a ``ValueError`` too).
        TypeError: It is neither a ``datetime`` nor a number.

    Example:
        >>> moment_to_ms(datetime(2027, 1, 1, tzinfo=UTC), None, "at")
        1798761600000
    """
    if isinstance(value, datetime):
        ms = (_aware(value, timezone, what) - _EPOCH) / _MILLISECOND
    else:
        ms = _number(value, what, "a datetime or POSIX seconds") * 1_000
    if not 0 <= ms < TOO_LATE_MS:
        raise ConfigurationError(
            f"{what} cannot be {value!r}: use a datetime or POSIX seconds from 1970 to 7999"
        )
    return round(ms)


def from_ms(ms: int) -> datetime:
    """Convert POSIX milliseconds to an aware ``datetime`` in UTC.

    Example:
        >>> from_ms(1_798_761_600_000).isoformat()
        '2027-01-01T00:00:00+00:00'
    """
    return _EPOCH + ms * _MILLISECOND


def _number(value: object, what: str, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be {allowed}, not {type(value).__name__} {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigurationError(f"{what} is out of range: use a smaller number") from error


def _aware(value: datetime, timezone: tzinfo | None, what: str) -> datetime:
    if value.utcoffset() is not None:
        return value
    if timezone is None:
        raise ConfigurationError(
            f"{what} cannot be {value!r}: it has no time zone;"
            " give it one (tzinfo=UTC), or give the app a timezone"
        )
    return value.replace(tzinfo=timezone)
