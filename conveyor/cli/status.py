"""`conveyor status`: what the server knows of an app's queues and workers."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from conveyor.broker import commands
from conveyor.cli.apps import find_app
from conveyor.cli.parsing import Exit, Parser, add_app, add_json, seconds
from conveyor.cli.tables import make_console, make_table
from conveyor.queues import read_announcement

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from conveyor.app import Conveyor
    from conveyor.broker.commands import QueueStatus

_EXAMPLES = (
    ("conveyor -A myapp status", "counts by queue, workers, what is parked and why"),
    ("conveyor -A myapp status --json", "the same for programs"),
    ("conveyor -A myapp status --watch", "again and again, until Ctrl-C"),
)
#: Seconds, a year: no sleep may last for some hundreds.
_LONGEST_PAUSE = 31_536_000.0
_COUNTS = ("scheduled", "queued", "processing", "success", "failed", "cancelled", "parked")
_WORKER = ("host", "pid", "queues", "concurrency", "threads", "coroutines", "beat", "paused")


@dataclass(frozen=True, slots=True)
class Status:
    """An app's queues and workers, as `--json` prints them.

    Attributes:
        app: Its name.
        namespace: Its namespace.
        server: Where the data is, without password.
        queues: Name, then one number each of scheduled, queued (parked ones included), processing,
            success, failed, cancelled, parked; and `rate`, runs that ended a second in the last
            minute.
        workers: Id, host, pid, queues, concurrency, threads, coroutines, beat, paused.
        parked: Queue, id and reason of the first tasks that no worker knows.
    """

    app: str
    namespace: str
    server: str
    queues: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    parked: list[dict[str, Any]]


def make_parser() -> Parser:
    """The parser of `status`."""
    parser = Parser(
        "status", "Counts an app's tasks, lists its workers and what is parked.", _EXAMPLES
    )
    add_app(parser)
    add_json(parser)
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=seconds,
        const=2.0,
        help="show it again and again, as often (default: every 2 s)",
    )
    return parser


def run(options: argparse.Namespace) -> Exit:
    """Prints the status, once or again and again."""
    console = make_console()
    with find_app(options.app) as app:
        if options.watch is None:
            _print(read_status(app), console, as_json=options.json)
        else:
            with suppress(KeyboardInterrupt):  # that is how one stops watching
                _watch(app, console, options.watch, as_json=options.json)
    return Exit.DONE


def _watch(app: Conveyor, console: Console, pause: float, *, as_json: bool) -> None:
    pause = min(pause, _LONGEST_PAUSE)
    if as_json or not console.is_terminal:
        while True:
            _print(read_status(app), console, as_json=as_json)
            time.sleep(pause)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(render(read_status(app), console), refresh=True)
            time.sleep(pause)


def _print(status: Status, console: Console, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(status)), flush=True)
    else:
        console.print(render(status, console))


def read_status(app: Conveyor) -> Status:
    """Asks the server about every queue that the app has or ever had.

    Raises:
        BrokerUnavailable: It cannot be reached.
    """
    broker = app.client.broker
    own = {app.queue, *(task.plan().queue for task in app.tasks.values())}
    names = sorted(own | set(broker.queues()), key=lambda name: (name != app.queue, name))
    found = {name: broker.run(commands.status(broker.keys(name))) for name in names}
    return Status(
        app=app.name,
        namespace=app.namespace,
        server=broker.server.address,
        queues=[
            {
                "name": name,
                **{count: getattr(queue, count) for count in _COUNTS},
                "rate": round(queue.rate, 2),
            }
            for name, queue in found.items()
        ],
        workers=_workers(found),
        parked=[
            {"queue": name, "id": _text(task_id), "reason": _text(reason)}
            for name, queue in found.items()
            for task_id, reason in queue.parked_reasons.items()
        ],
    )


def _workers(found: Mapping[str, QueueStatus]) -> list[dict[str, Any]]:
    """Each worker once: one that serves several queues is announced on each."""
    workers: dict[bytes, dict[str, Any]] = {}
    for queue in found.values():
        for worker_id, about in queue.workers.items():
            fields = read_announcement(about)
            workers[worker_id] = {
                "id": _text(worker_id),
                **{name: fields.get(name) for name in _WORKER},
            }
    return list(workers.values())


def render(status: Status, console: Console) -> Group:
    """The status as it is printed on a console."""
    queues = [list(queue.values()) for queue in status.queues]
    parts: list[Text | Table] = [
        Text(f"{status.app} on {status.server}", style="bold"),
        make_table(console, "Queues", ("queue", *_COUNTS, "runs/s"), queues),
    ]
    if status.workers:
        workers = [[_cell(value) for value in worker.values()] for worker in status.workers]
        parts += [Text(), make_table(console, "Workers", ("worker", *_WORKER), workers)]
    else:
        parts.append(Text("no worker is running: start one with `conveyor worker`"))
    if status.parked:
        parked = [list(task.values()) for task in status.parked]
        parts += [Text(), make_table(console, "Parked", ("queue", "id", "reason"), parked)]
    return Group(*parts)


def _cell(value: Any) -> Any:
    match value:
        case None:
            return "?"
        case True | False:
            return "yes" if value else "no"
        case [*names]:
            return ", ".join(map(str, names))
        case _:
            return str(value)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
