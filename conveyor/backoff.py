"""How long a task waits before it is tried again after an error.

A ``Backoff`` is plain data: it travels with a call as a short list, so that whichever worker sees
the error knows the delay without knowing the caller. A malformed one that arrives from outside is
a ``SerializationError``, which fails that task alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

from conveyor.errors import ConfigurationError, SerializationError
from conveyor.moments import LONGEST_MS, Duration, to_ms
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from random import Random

Strategy: TypeAlias = Literal["constant", "linear", "exponential"]

STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delay before each error retry; made by ``constant``, ``linear`` or ``exponential``.

    Attributes:
        strategy: How the delay grows: not at all, by ``factor`` a retry, or twofold a retry.
        factor: The first delay, in seconds.
        maximum: No delay is longer than this many seconds; None: no such limit.
        jitter: A fraction from 0 to 1; each delay is multiplied by a random factor between
            ``1 - jitter`` and ``1 + jitter``, so that tasks that failed together spread out.

    Raises:
        ConfigurationError: A value out of its range.
    """

    strategy: Strategy
    factor: float
    maximum: float | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could not be computed or packed."""
        if self.strategy not in STRATEGIES:
            raise ConfigurationError(_unknown(self.strategy))
        if to_ms(self.factor, "a backoff's factor") is None:
            raise ConfigurationError("a backoff's factor cannot be unlimited: use seconds")
        if self.maximum is not None and to_ms(self.maximum, "a backoff's maximum") is None:
            raise ConfigurationError("a backoff without a maximum has maximum=None")
        if not _is_fraction(self.jitter):
            raise ConfigurationError(
                f"a backoff's jitter cannot be {self.jitter!r}: use a fraction from 0 to 1"
            )

    def delay(self, retry: int, rng: Random) -> float:
        """Return the seconds to wait before a retry, at most ``maximum`` and 1,000 years.

        Args:
            retry: Which retry this is, from 1.
            rng: Where the jitter comes from.

        Example:
            >>> from random import Random
            >>> exponential(1, maximum=60).delay(3, Random())
            4.0
        """
        longest = LONGEST_MS / 1_000 if self.maximum is None else self.maximum
        delay = min(self.factor * self._growth(retry), longest)
        # Jitter around a delay at its maximum only shortens it: cut off after the draw instead,
        # half of the delays would be the maximum itself, and those tasks would run together.
        return rng.uniform(delay * (1 - self.jitter), min(delay * (1 + self.jitter), longest))

    def pack(self) -> list[str | float | None]:
        """Return this as values that any codec can carry; ``unpack`` is the way back."""
        return [self.strategy, self.factor, self.maximum, self.jitter]

    @classmethod
    def unpack(cls, packed: object) -> Backoff:
        """Return the backoff that ``pack`` made a list of.

        Raises:
            SerializationError: ``packed`` is not such a list.
        """
        if not isinstance(packed, list | tuple):
            raise SerializationError(f"{packed!r} is not a packed backoff")
        try:
            return cls(*cast("list[Any]", packed))
        except (TypeError, ConfigurationError) as error:
            raise SerializationError(f"{packed!r} is not a packed backoff: {error}") from error

    def _growth(self, retry: int) -> float:
        if retry < 1:
            raise ValueError(f"retries are counted from 1, not {retry}")
        if self.strategy == "constant":
            return 1.0
        if self.strategy == "linear":
            return float(retry)
        # Every delay has long met its limit by the 1,000th doubling; the 1,025th overflows.
        return 2.0 ** min(retry - 1, 1_000)


def constant(f: Duration, *, maximum: Duration | None = None, jitter: float = 0.0) -> Backoff:
    """Wait ``f`` before every retry.

    Args:
        f: The delay: seconds or a ``timedelta``.
        maximum: The longest delay; None or ``math.inf``: no limit.
        jitter: The fraction by which a delay may differ at random, from 0 to 1.

    Raises:
        ConfigurationError: A value out of its range.
        TypeError: A value of a wrong type.

    Example:
        >>> constant(5)
        Backoff(strategy='constant', factor=5.0, maximum=None, jitter=0.0)
    """
    return _backoff("constant", f, maximum, jitter)


def linear(f: Duration, *, maximum: Duration | None = None, jitter: float = 0.0) -> Backoff:
    """Wait ``f`` before the first retry and ``f`` longer before each next one.

    Takes and raises the same as ``constant``.

    Example:
        >>> linear(2, maximum=30)
        Backoff(strategy='linear', factor=2.0, maximum=30.0, jitter=0.0)
    """
    return _backoff("linear", f, maximum, jitter)


def exponential(f: Duration, *, maximum: Duration | None = None, jitter: float = 0.0) -> Backoff:
    """Wait ``f`` before the first retry and twice as long before each next one.

    Takes and raises the same as ``constant``.

    Example:
        >>> exponential(1, maximum=300, jitter=0.1)
        Backoff(strategy='exponential', factor=1.0, maximum=300.0, jitter=0.1)
    """
    return _backoff("exponential", f, maximum, jitter)


def parse_backoff(value: Backoff | str) -> Backoff:
    """Return a backoff as it is, or the one that a strategy's name stands for, of factor 1.

    Raises:
        ConfigurationError: No strategy has this name; the message has the nearest.
        TypeError: It is neither a ``Backoff`` nor a name.

    Example:
        >>> parse_backoff("linear")
        Backoff(strategy='linear', factor=1.0, maximum=None, jitter=0.0)
    """
    if isinstance(value, Backoff):
        return value
    if not isinstance(value, str):
        raise TypeError(f"a backoff must be a Backoff or a strategy's name, not {value!r}")
    for strategy in STRATEGIES:
        if value == strategy:
            return Backoff(strategy, 1.0)
    raise ConfigurationError(_unknown(value))


def _backoff(strategy: Strategy, f: Duration, maximum: Duration | None, jitter: float) -> Backoff:
    longest = math.inf if maximum is None else _seconds(maximum, "a backoff's maximum")
    limit = None if longest == math.inf else longest
    return Backoff(strategy, _seconds(f, "a backoff's factor"), limit, jitter)


def _seconds(value: Duration, what: str) -> float:
    ms = to_ms(value, what)
    return math.inf if ms is None else ms / 1_000


def _is_fraction(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1


def _unknown(strategy: object) -> str:
    likely = nearest(str(strategy), STRATEGIES)
    return f"there is no backoff {strategy!r}: did you mean {likely!r}?"


#: 1, 2, 4, … seconds, at most 5 minutes, give or take a tenth.
DEFAULT_BACKOFF: Final = Backoff("exponential", 1.0, maximum=300.0, jitter=0.1)
