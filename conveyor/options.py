"""What can be said about a task and about one call of it, checked and in the record's own units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from conveyor.backoff import DEFAULT_BACKOFF
from conveyor.broker.keys import check_id, check_name
from conveyor.errors import ConfigurationError
from conveyor.moments import Duration, moment_to_ms, to_ms
from conveyor.packed_options import Options
from conveyor.records import FOREVER, UNLIMITED, Flag, Limits
from conveyor.settings import check_setting
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import tzinfo

    from conveyor.backoff import Backoff, Strategy
    from conveyor.records import TaskRecord
    from conveyor.recurrence import CatchUp, Overlap
    from conveyor.settings import Settings

OnExisting: TypeAlias = Literal["return", "error", "replace_ended"]
Moment: TypeAlias = "datetime | float"


class RunOptions(TypedDict, total=False):
    """Options that a task has and that a call may change; see the guide for each."""

    queue: str
    retry_limit: float | None
    error_retry_limit: float | None
    stall_retry_limit: float | None
    execution_timeout: Duration | None
    stall_timeout: Duration
    acknowledgement_interval: Duration | None
    expires: Duration | datetime | None
    priority: int
    remove_on_success: bool
    remove_on_failed: bool
    retain_success: Duration
    retain_failed: Duration
    headers: Mapping[str, str]


class CallOptions(RunOptions, total=False):
    """Options of one call: `task.options(...)`."""

    id: str
    on_existing: OnExisting
    backoff: Backoff | Strategy


class RecurringOptions(TypedDict, total=False):
    """What recurs when: `app.add_recurring(...)`, and of a task `@app.task(...)`.

    Attributes:
        cron: Five fields, or six with seconds first; this or `every`.
        every: Seconds or a timedelta between two moments, counted from 1970 (UTC).
        timezone: In which `cron` is meant: a name or a ZoneInfo. Default: the app's, else UTC.
        catch_up: What becomes of moments that were missed, since no orchestrator was there within
            60 s: none is run ("skip", the default), one for all ("one"), or each ("all").
        overlap: Whether one is left out ("skip") while the task of the one before has not ended;
            default "allow".
    """

    cron: str | None
    every: Duration | None
    timezone: str | tzinfo | None
    catch_up: CatchUp
    overlap: Overlap


class TaskOptions(RunOptions, RecurringOptions, total=False):
    """Options of a task: `@app.task(...)`."""

    name: str
    backoff: Backoff | Strategy | Callable[[TaskRecord, BaseException], Duration]
    retry_on: type[BaseException] | Sequence[type[BaseException]]
    no_retry_on: type[BaseException] | Sequence[type[BaseException]]


RECURRING_OPTIONS = frozenset(RecurringOptions.__annotations__)
_TASK_ONLY = frozenset({"name", "retry_on", "no_retry_on", "bind"}) | RECURRING_OPTIONS
_CALL_ONLY = frozenset({"id", "on_existing"})
_SETTINGS = frozenset(RunOptions.__annotations__) - {"queue", "expires"} | {
    "backoff",
    "retry_on",
    "no_retry_on",
}
TASK_OPTIONS = frozenset(RunOptions.__annotations__) | {"backoff"} | _TASK_ONLY
CALL_OPTIONS = frozenset(RunOptions.__annotations__) | {"backoff"} | _CALL_ONLY


@dataclass(frozen=True, slots=True)
class Plan:
    """A task's options, or one call's, ready to be packed.

    Attributes:
        queue: Where it goes.
        limits: The part that the scripts read.
        options: The part that the child reads.
        expires: ARGV of enqueue.lua: "", "+ms" or POSIX ms.
        id: A custom id, or None.
        on_existing: What to do when that id exists.
    """

    queue: str
    limits: Limits
    options: Options
    expires: str
    id: str | None = None
    on_existing: OnExisting = "return"


def make_plan(
    given: Mapping[str, Any],
    settings: Settings,
    *,
    queue: str,
    is_async: bool,
    timezone: tzinfo | None,
) -> Plan:
    """Turns options into a plan; what is not given is the app's setting.

    Raises:
        ConfigurationError: A value is not allowed.
    """
    chosen = {name: getattr(settings, name) for name in _SETTINGS}
    chosen.update(_checked(given))
    implied = "backoff" not in given and chosen["backoff"] == DEFAULT_BACKOFF
    backoff = None if implied else chosen["backoff"]
    options = Options(backoff, _finite(chosen["execution_timeout"]), chosen["headers"])
    custom_id = given.get("id")
    return Plan(
        queue=check_name(given.get("queue", queue), "queue"),
        limits=_limits(chosen, is_async),
        options=options,
        expires=_expires(given.get("expires", settings.expires), timezone),
        id=None if custom_id is None else check_id(custom_id),
        on_existing=_on_existing(given.get("on_existing", "return")),
    )


def retried_errors(settings: Settings) -> dict[str, Any]:
    """The options that say which errors are retried, where the app has set them."""
    set_once = {"retry_on": settings.retry_on, "no_retry_on": settings.no_retry_on}
    return {name: value for name, value in set_once.items() if value is not None}


def refuse_unknown(given: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Raises ConfigurationError for the first option that does not exist, naming the nearest."""
    for name in given:
        if name in known:
            continue
        hint = f"did you mean {nearest(name, known)!r}?"
        if name in TASK_OPTIONS:
            hint = f"give it to @app.task({name}=...)"
        elif name in CALL_OPTIONS:
            hint = f"give it to a call, task.options({name}=...)"
        raise ConfigurationError(f"{what} has no option {name!r}: {hint}")


def due_text(at: Moment | None, after: Duration | None, timezone: tzinfo | None, task: str) -> str:
    """When a call is due, as ARGV of enqueue.lua.

    Raises:
        ConfigurationError: Neither or both are given, or one is not valid.
    """
    if (at is None) == (after is None):
        raise ConfigurationError(f"{task}: give schedule() either at= or after=")
    if at is not None:
        return str(moment_to_ms(at, timezone, "at"))
    assert after is not None
    delay = to_ms(after, "after")
    if delay is None:
        raise ConfigurationError(f"{task}: after cannot be unlimited")
    return f"+{delay}"


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _SETTINGS:
            continue
        # A callable stays with the function: it cannot travel, so the child looks for it there.
        is_code = name == "backoff" and callable(value)
        checked[name] = None if is_code else check_setting(name, value, "option")
    return checked


def _limits(chosen: Mapping[str, Any], is_async: bool) -> Limits:
    common = chosen["retry_limit"]
    stall_ms = _ms(chosen["stall_timeout"], UNLIMITED)
    interval_ms = _interval_ms(chosen["acknowledgement_interval"], stall_ms)
    flags = (
        Flag.REMOVE_ON_SUCCESS * bool(chosen["remove_on_success"])
        + Flag.REMOVE_ON_FAILED * bool(chosen["remove_on_failed"])
        + Flag.ASYNC * is_async
    )
    return Limits(
        priority=chosen["priority"],
        flags=flags,
        retry_limit=_count(math.inf if common is None else common),
        error_retry_limit=_count(_first(chosen["error_retry_limit"], common, 0)),
        stall_retry_limit=_count(_first(chosen["stall_retry_limit"], common, 3)),
        stall_ms=stall_ms,
        acknowledgement_ms=interval_ms,
        retain_success_ms=_ms(chosen["retain_success"], FOREVER),
        retain_failed_ms=_ms(chosen["retain_failed"], FOREVER),
    )


def _interval_ms(interval: float | None, stall_ms: int) -> int:
    ms = max(stall_ms // 3, 1) if interval is None else _ms(interval, UNLIMITED)
    if interval is not None and ms >= stall_ms:
        raise ConfigurationError(
            f"acknowledgement_interval={interval} must be shorter than"
            f" stall_timeout={stall_ms / 1000}: leave it out for a third of it"
        )
    return ms


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _count(limit: float) -> int:
    return UNLIMITED if limit >= UNLIMITED else int(limit)


def _ms(seconds: float, most: int) -> int:
    return most if seconds == math.inf else min(max(round(seconds * 1000), seconds > 0), most)


def _finite(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds


def _expires(value: Any, timezone: tzinfo | None) -> str:
    if isinstance(value, datetime):
        return str(moment_to_ms(value, timezone, "expires"))
    ms = to_ms(check_setting("expires", value, "option"), "expires")
    return "" if ms is None else f"+{ms}"


def _on_existing(value: object) -> OnExisting:
    known: tuple[OnExisting, ...] = get_args(OnExisting)
    for choice in known:
        if value == choice:
            return choice
    raise ConfigurationError(
        f"on_existing cannot be {value!r} (option): use 'return', 'error' or 'replace_ended'"
    )
