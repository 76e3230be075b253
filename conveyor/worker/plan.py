"""What a worker was asked to be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conveyor.broker.keys import check_name
from conveyor.errors import ConfigurationError
from conveyor.settings import available_cpus, check_setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conveyor.settings import Settings

_WEIGHTED = re.compile(r"(?P<name>[^:]+)(?::(?P<weight>[1-9][0-9]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """A worker's options, checked.

    Attributes:
        queues: Names, in order.
        weights: One for each queue, or None for strict order.
        concurrency: Children.
        threads: Sync tasks at once in a child.
        coroutines: Async tasks at once in a child.
        grace: Seconds that a warm shutdown waits.
        beat: Whether it also is an orchestrator.
        burst: Whether it ends when the queues are empty.
        max_tasks: Runs after which a child is replaced.
        max_memory: Bytes above which a child is replaced.
    """

    queues: Sequence[str]
    weights: Sequence[int] | None
    concurrency: int
    threads: int
    coroutines: int
    grace: float
    beat: bool
    burst: bool
    max_tasks: float
    max_memory: float


def make_plan(
    settings: Settings,
    given: Mapping[str, Any],
    *,
    queues: str | Sequence[str],
    burst: bool,
) -> WorkerPlan:
    """Checks a worker's options; what is None in `given` is the app's setting.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    def chosen(name: str) -> Any:
        value = given.get(name)
        return getattr(settings, name) if value is None else check_setting(name, value, "option")

    names, weights = parse_queues(queues)
    return WorkerPlan(
        queues=names,
        weights=weights,
        concurrency=chosen("concurrency") or available_cpus(),
        threads=chosen("threads"),
        coroutines=chosen("coroutines"),
        grace=chosen("grace"),
        beat=chosen("beat"),
        burst=burst,
        max_tasks=chosen("max_tasks_per_child"),
        max_memory=chosen("max_memory_per_child"),
    )


def parse_queues(queues: str | Sequence[str]) -> tuple[list[str], list[int] | None]:
    """Reads "high", "default" (strict order) or "high:3", "default:1" (weighted).

    A text is what ``-Q`` takes: its commas separate the entries.

    Raises:
        ConfigurationError: A name is not valid, is there twice, or only some have a weight.
    """
    if isinstance(queues, str):
        queues = queues.split(",")
    names: list[str] = []
    weights: list[int] = []
    for entry in queues:
        match = _WEIGHTED.fullmatch(entry.strip())
        if match is None:
            raise ConfigurationError(f"queue {entry!r} is not valid: use NAME or NAME:WEIGHT")
        names.append(check_name(match["name"], "queue"))
        if match["weight"]:
            weights.append(int(match["weight"]))
    if len(set(names)) != len(names):
        raise ConfigurationError(f"a queue is named twice in {', '.join(queues)}: name each once")
    if weights and len(weights) != len(names):
        raise ConfigurationError(
            f"only some of {', '.join(queues)} have a weight: give all one or none"
        )
    return names, weights or None
