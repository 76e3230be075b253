"""Every default that an app can set once, where each may come from, and what it may be.

A setting is an argument of the app, else ``CONVEYOR_<NAME>`` in the environment, else a key of
``[tool.conveyor]`` in the nearest pyproject.toml, else the default below. Every value is checked
here, once, when the app is created; a wrong one is a ``ConfigurationError`` that says where it
came from and what is allowed, so that nothing after this module meets one.

A setting is one field of ``Settings`` and one line of ``_RULES``, at the end of this module.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from conveyor.backoff import DEFAULT_BACKOFF, STRATEGIES, Backoff, parse_backoff
from conveyor.errors import ConfigurationError
from conveyor.rules import Rule, choice, duration, exceptions, flag, size, texts, whole
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conveyor.rules import Limit


@dataclass(frozen=True, slots=True)
class Settings:
    """An app's defaults, checked; made by ``resolve_settings``. Durations are in seconds.

    ``math.inf`` is unlimited or never; None is what the field's comment says.

    Example:
        >>> Settings().stall_timeout
        15.0
    """

    #: Most retries of any kind, after errors and stalls together. None: no common limit.
    retry_limit: Limit | None = None
    #: Most retries after an error. None: ``retry_limit`` if it is set, else 0.
    error_retry_limit: Limit | None = None
    #: Most retries after a stall. None: ``retry_limit`` if it is set, else 3.
    stall_retry_limit: Limit | None = None
    #: The delay before an error retry: a ``Backoff``, or given as a strategy's name.
    backoff: Backoff = DEFAULT_BACKOFF
    #: The errors that are retried. None: all. Like the next, given in code alone.
    retry_on: Sequence[type[BaseException]] | None = None
    #: The errors that are not retried. None: none.
    no_retry_on: Sequence[type[BaseException]] | None = None
    #: How long one run may take before it is stopped, in seconds.
    execution_timeout: float = math.inf
    #: The silence after which a running task counts as stalled, in seconds.
    stall_timeout: float = 15.0
    #: How often a running task is acknowledged, in seconds. None: ``stall_timeout / 3``.
    acknowledgement_interval: float | None = None
    #: How long after it is due a task that has not begun fails, in seconds.
    expires: float = math.inf
    #: From 0 to 9; tasks of priority 9 run first.
    priority: int = 5
    #: Whether a task's record is dropped as soon as it has succeeded.
    remove_on_success: bool = False
    #: Whether a task's record is dropped as soon as it has failed.
    remove_on_failed: bool = False
    #: How long the record of a task that succeeded is kept, in seconds: 1 hour.
    retain_success: float = 3_600.0
    #: How long the record of a task that failed is kept, in seconds: 7 days.
    retain_failed: float = 604_800.0
    #: Most records of tasks that succeeded kept in a queue; the oldest are dropped first.
    retain_success_count: Limit = 1_000_000
    #: Carried along with every task (trace, tenant). As a text: JSON. None: no headers.
    headers: Mapping[str, str] | None = None
    #: The largest encoded call or result, in bytes: 1 MiB. May be given as ``"1M"``.
    max_payload: Limit = 1_048_576
    #: How long a task whose name no worker knows waits before it fails, in seconds: 1 day.
    unknown_task_grace: float = 86_400.0

    #: Children of a worker. None: as many as ``available_cpus()``.
    concurrency: int | None = None
    #: Sync tasks that run at once in one child.
    threads: int = 1
    #: ``async def`` tasks that run at once in one child.
    coroutines: int = 100
    #: Runs after which a child is replaced by a new one.
    max_tasks_per_child: Limit = math.inf
    #: Memory (RSS), in bytes, above which a child is replaced. May be given as ``"200M"``.
    max_memory_per_child: Limit = math.inf
    #: How long a warm shutdown waits for running tasks, in seconds.
    grace: float = 25.0
    #: Whether a worker also moves what comes due.
    beat: bool = True
    #: How long a worker has nothing to do before `on_idle` is called, in seconds.
    idle_timeout: float = 0.25
    #: The least severe messages that are logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.
    log_level: str = "INFO"
    #: How a log line is written.
    log_format: Literal["text", "json"] = "text"
    #: Whether arguments and results of tasks are shown in events and logs.
    log_arguments: bool = False


def resolve_settings(
    arguments: Mapping[str, Any], *, environ: Mapping[str, str], directory: Path
) -> tuple[Settings, dict[str, str]]:
    """Find, check and collect an app's settings.

    A variable that is empty counts as not set. An unknown ``CONVEYOR_`` variable is only warned
    about, since other programs may share the environment.

    Args:
        arguments: The settings given to the app, by name.
        environ: The environment.
        directory: Where the search for a pyproject.toml begins; it goes on upwards.

    Returns:
        The settings, and where each came from: ``"argument"``, the name of a variable such as
        ``"CONVEYOR_GRACE"``, ``"pyproject.toml"``, or ``"default"``.

    Raises:
        ConfigurationError: An unknown argument or key, a value that is not allowed, or a
            pyproject.toml that cannot be read.

    Example:
        >>> settings, origins = resolve_settings(
        ...     {"threads": 4}, environ={"CONVEYOR_GRACE": "60"}, directory=Path("/")
        ... )
        >>> settings.threads, settings.grace, origins["threads"], origins["grace"]
        (4, 60.0, 'argument', 'CONVEYOR_GRACE')
    """
    _refuse_unknown(arguments, {*_RULES, *_ARGUMENTS}, "argument")
    _warn_of_unknown_variables(environ)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_RULES, "default")
    table: Mapping[str, Any] | None = None
    for name in _RULES:
        if name in arguments:
            origins[name] = "argument"
            values[name] = check_setting(name, arguments[name], "argument")
        elif text := environ.get(variable := _PREFIX + name.upper()):
            origins[name] = variable
            values[name] = check_setting(name, text, variable, text=True)
        else:
            table = _known_table(directory) if table is None else table
            if name in table:
                origins[name] = "pyproject.toml"
                values[name] = check_setting(name, table[name], "pyproject.toml")
    settings = Settings(**values)
    _check_acknowledgements(settings, origins)
    return settings, origins


def find_broker(*, environ: Mapping[str, str], directory: Path) -> str | None:
    """Find the server's URL for an app that was given none; None where it is not said.

    Raises:
        ConfigurationError: It stands in a pyproject.toml and is no text.
    """
    if url := environ.get("CONVEYOR_BROKER"):
        return url
    url = _known_table(directory).get("broker")
    if url is not None and not isinstance(url, str):
        raise ConfigurationError(f"broker cannot be {url!r} (pyproject.toml): use a URL")
    return url


def check_setting(name: str, value: object, origin: str, *, text: bool = False) -> Any:
    """Return a setting's value in the form that ``Settings`` holds.

    Serves the options of a task as well: those that have a setting's name may be the same.

    Args:
        name: A field of ``Settings``.
        value: What was given for it. None stands for the default where that is None or unlimited.
        origin: Where it came from, for the error.
        text: Whether ``value`` is a string that spells the value, as a variable's is.

    Raises:
        ConfigurationError: The value is not allowed.

    Example:
        >>> check_setting("grace", timedelta(minutes=1), "argument")
        60.0
    """
    if value is None and _DEFAULTS[name] in (None, math.inf):
        return _DEFAULTS[name]
    rule = _RULES[name]
    try:
        return rule.check(rule.read(str(value)) if text else value)
    except (TypeError, ValueError) as error:
        allowed = rule.allowed.replace("math.inf", "inf") if text else rule.allowed
        raise ConfigurationError(f"{name} cannot be {value!r} ({origin}): use {allowed}") from error


def find_pyproject(directory: Path) -> Path | None:
    """Return the nearest pyproject.toml at or above ``directory``, or None."""
    directory = directory.absolute()
    for folder in (directory, *directory.parents):
        # os.path.isfile is also False where a folder may not be searched; Path.is_file raises.
        if os.path.isfile(path := folder / "pyproject.toml"):
            return path
    return None


def read_pyproject(path: Path) -> Mapping[str, Any]:
    """Return the table ``[tool.conveyor]`` of a pyproject.toml, empty if it has none.

    Raises:
        ConfigurationError: The file cannot be read, or is not TOML.
    """
    try:
        content = path.read_bytes()
        if b"conveyor" not in content:
            return {}
        # Imported here because it takes longer than all else that creating an app does.
        import tomllib

        tool: Any = tomllib.loads(content.decode()).get("tool")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}; mend or remove it") from error
    mapping = cast("dict[str, Any]", tool) if isinstance(tool, dict) else {}
    table: Any = mapping.get("conveyor", {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"tool.conveyor in {path} must be a table, not {table!r}")
    return cast("dict[str, Any]", table)


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: its affinity, lowered by a cgroup v2 quota.

    A fraction of a CPU counts as one; at least 1.

    Args:
        root: The root of the file system that has the cgroups.
    """
    if sys.platform == "linux":
        cpus = len(os.sched_getaffinity(0))
        return max(1, math.ceil(min(cpus, _cgroup_cpus(root))))
    return os.cpu_count() or 1


def _cgroup_cpus(root: Path) -> float:
    """Return the smallest quota of this process's cgroup and those it lies in, in CPUs."""
    mount = root / "sys/fs/cgroup"
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    groups = (mount / own, *(mount / parent for parent in Path(own).parents))
    return min(_quota(_read(group / "cpu.max")) for group in groups)


def _quota(cpu_max: str) -> float:
    quota, _, period = cpu_max.partition(" ")
    return int(quota) / int(period) if period and quota != "max" else math.inf


def _read(path: Path) -> str:
    """Return a text of the kernel's; empty where there is none, or none that we may read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _known_table(directory: Path) -> Mapping[str, Any]:
    path = find_pyproject(directory)
    table: Mapping[str, Any] = {} if path is None else read_pyproject(path)
    _refuse_unknown(table, {*_RULES, "app", "broker"}, f"[tool.conveyor] in {path}")
    return table


def _refuse_unknown(given: Iterable[str], known: Iterable[str], origin: str) -> None:
    known = set(known)
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"there is no setting {name!r} ({origin}): did you mean {nearest(name, known)!r}?"
            )


def _warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {_PREFIX + name.upper() for name in (*_RULES, "app", "broker", "debug")}
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known:
            warnings.warn(
                f"{variable} is not a setting and has no effect:"
                f" did you mean {nearest(variable, known)}?",
                stacklevel=4,  # the line that creates the app
            )


def _check_acknowledgements(settings: Settings, origins: Mapping[str, str]) -> None:
    interval, timeout = settings.acknowledgement_interval, settings.stall_timeout
    if interval is not None and interval >= timeout:
        raise ConfigurationError(
            f"acknowledgement_interval={interval} ({origins['acknowledgement_interval']}) must be"
            f" shorter than stall_timeout={timeout} ({origins['stall_timeout']}), or every task"
            " stalls: leave it out for a third of it"
        )


#: What the name of every variable of ours begins with.
_PREFIX: Final = "CONVEYOR_"

#: What an app can be given beside its settings.
_ARGUMENTS: Final = ("broker", "queue", "namespace", "timezone", "plugins", "types")

_FLAG: Final = flag()
_SIZE: Final = size()
_RETRIES: Final = whole(0, unlimited=True)

#: What each setting may be.
_RULES: Final[Mapping[str, Rule]] = {
    "retry_limit": _RETRIES,
    "error_retry_limit": _RETRIES,
    "stall_retry_limit": _RETRIES,
    "backoff": Rule("a Backoff, or " + ", ".join(STRATEGIES), parse_backoff),
    "retry_on": exceptions(),
    "no_retry_on": exceptions(),
    "execution_timeout": duration(zero=False),
    "stall_timeout": duration(zero=False),
    "acknowledgement_interval": duration(zero=False),
    "expires": duration(zero=False),
    "priority": whole(0, 9),
    "remove_on_success": _FLAG,
    "remove_on_failed": _FLAG,
    "retain_success": duration(zero=True),
    "retain_failed": duration(zero=True),
    "retain_success_count": whole(0, unlimited=True),
    "headers": texts(),
    "max_payload": _SIZE,
    "unknown_task_grace": duration(zero=True),
    "concurrency": whole(1),
    "threads": whole(1),
    "coroutines": whole(1),
    "max_tasks_per_child": whole(1, unlimited=True),
    "max_memory_per_child": _SIZE,
    "grace": duration(zero=True),
    "beat": _FLAG,
    "idle_timeout": duration(zero=True),
    "log_level": choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "log_format": choice("text", "json"),
    "log_arguments": _FLAG,
}

_DEFAULTS: Final[Mapping[str, Any]] = {field.name: field.default for field in fields(Settings)}
