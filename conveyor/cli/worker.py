"""`conveyor worker`: runs an app's tasks until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor.broker.connect import TRANSIENT
from conveyor.broker.embedded import NotReady
from conveyor.cli.apps import find_app
from conveyor.cli.logs import set_up_logs
from conveyor.cli.parsing import Exit, Parser, add_app, add_logs, setting, version
from conveyor.cli.reload import OPTION, Reloader
from conveyor.worker.signals import ignore
from conveyor.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor.app import Conveyor
    from conveyor.worker.plan import WorkerPlan

log = logging.getLogger("conveyor.worker")

#: Most names of tasks that the banner has.
_NAMES_SHOWN = 20

_DESCRIPTION = """\
Runs the tasks of an app, in child processes, until a signal ends it.

TERM or INT (Ctrl-C) once: takes nothing more and finishes what runs, within the grace.
INT twice, or QUIT: ends what runs at once; it goes back to its queue.
USR1: prints what runs, with stacks."""

_EXAMPLES = (
    ("conveyor -A myapp worker", "the tasks of myapp.py, one child a CPU"),
    ("conveyor -A myapp worker -c 8 --threads 4", "eight children of four threads"),
    ("conveyor -A myapp worker -Q high,default", "default only while high is empty"),
    ("conveyor -A myapp worker -Q high:3,default:1", "three of high for one of default"),
    ("conveyor -A myapp worker --burst --no-beat", "do what is queued, then end"),
    ("conveyor -A myapp worker --reload", "start again when a file changes"),
    ("conveyor -A myapp worker --max-memory-per-child 200M", "replace children that grow"),
)


def make_parser() -> Parser:
    """The parser of `worker`."""
    parser = Parser("worker", _DESCRIPTION, _EXAMPLES)
    add_app(parser)
    children = (
        ("-c", "--concurrency", "N", "children (default: the CPUs there are)"),
        ("--threads", "N", "plain tasks at once in a child (default: 1)"),
        ("--coroutines", "N", "`async def` tasks at once in a child (default: 100)"),
        ("--max-tasks-per-child", "N", "runs after which a child is replaced"),
        ("--max-memory-per-child", "SIZE", "memory, such as 200M, above which a child is replaced"),
        ("--grace", "SECONDS", "how long a warm shutdown waits for what runs (default: 25)"),
    )
    add_queues(parser, "NAME,… in strict order, or NAME:WEIGHT,…")
    for *names, metavar, text in children:
        name = names[-1].removeprefix("--").replace("-", "_")
        parser.add_argument(*names, metavar=metavar, type=setting(name), help=text)
    parser.add_argument(
        "--beat",
        action=argparse.BooleanOptionalAction,
        help="also move what comes due to its queue (default: yes)",
    )
    parser.add_argument("--burst", action="store_true", help="end when the queues are empty")
    parser.add_argument(
        OPTION, action="store_true", help="start again when a Python file here changes"
    )
    add_logs(parser)
    return parser


def add_queues(
    parser: argparse.ArgumentParser, text: str, default: str = "the app's queue"
) -> None:
    """Adds ``-Q``."""
    parser.add_argument(
        "-Q", "--queues", metavar="QUEUES", type=_named, help=f"{text} (default: {default})"
    )


def _named(queues: str) -> str:
    """Refuses an empty text: a variable that is not set is no wish for the default."""
    if not queues.strip():
        raise argparse.ArgumentTypeError("no queue is named: name one, or leave it out")
    return queues


def run(options: argparse.Namespace) -> int:
    """Works until told to stop."""
    if options.reload:
        return Reloader(options.arguments, Path.cwd()).run()
    signal.signal(signal.SIGUSR1, ignore)  # until there is something to print
    handler = set_up_logs(options.log_level or "INFO", options.log_format or "text")
    app = find_app(options.app)
    level = options.log_level or app.settings.log_level
    kind = options.log_format or app.settings.log_format
    set_up_logs(level, kind, handler)
    worker = Worker(
        app,
        options.queues,
        options.concurrency,
        threads=options.threads,
        coroutines=options.coroutines,
        grace=options.grace,
        max_tasks_per_child=options.max_tasks_per_child,
        max_memory_per_child=options.max_memory_per_child,
        beat=options.beat,
        burst=options.burst,
    )
    check_server(app)
    _set_signals(lambda *_: worker.shutdown())  # while the worker does not listen yet, or no more
    if kind == "text":
        print(_banner(app, worker.plan), file=sys.stderr, flush=True)
    else:
        log.info("worker of %s on %s", app.name, describe_server(app))
    with app:
        worker.run()
    _set_signals(signal.SIG_IGN)
    return Exit.FAILED if worker.killed else Exit.DONE


def _set_signals(handler: Callable[..., object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def check_server(app: Conveyor) -> None:
    """Connects, so that a server we cannot use is found at once; one that is down may be up soon.

    Raises:
        BrokerUnavailable: It is too old, or there is none to embed, or that does not start.
        ConfigurationError: The broker's URL is not valid.
        redis.RedisError: It refuses us for good.
    """
    try:
        app.client.broker.server.client()
    except (*TRANSIENT, NotReady):
        log.debug("the server does not answer yet: whoever needs it says so, and goes on trying")


def describe_server(app: Conveyor) -> str:
    """Where an app's tasks are, and for an embedded server what else there is."""
    server = app.client.broker.server
    if not server.embedded:
        return server.address
    directory = server.address.removeprefix("embedded://")
    return f"embedded, in {directory} (another: CONVEYOR_BROKER=redis://HOST:6379/0, or broker=)"


def _banner(app: Conveyor, plan: WorkerPlan) -> str:
    lines = {
        "app": f"{app.name} ({app.module})" if app.module else app.name,
        "server": describe_server(app),
        "queues": _describe_queues(plan),
        "children": _describe_children(app, plan),
        "tasks": _describe_tasks(sorted(app.tasks)),
        "beat": "yes"
        if plan.beat
        else "no: what comes due needs another worker, or `conveyor beat`",
        "to stop": "empty the queues, or press Ctrl-C"
        if plan.burst
        else f"press Ctrl-C: what runs is finished, for {plan.grace:g} s at most; twice: at once",
    }
    return "\n".join(
        [f"conveyor {version()}", *(f"  {name:9} {text}" for name, text in lines.items()), ""]
    )


def _describe_queues(plan: WorkerPlan) -> str:
    if plan.weights is None:
        return ", then ".join(plan.queues)
    pairs = zip(plan.queues, plan.weights, strict=True)
    return ", ".join(f"{name} (weight {weight})" for name, weight in pairs)


def _describe_children(app: Conveyor, plan: WorkerPlan) -> str:
    text = f"{plan.concurrency}, each with {plan.threads} task{'s' * (plan.threads != 1)} at once"
    if any(task.definition.is_async for task in app.tasks.values()):
        text += f" and {plan.coroutines} `async def` ones"
    return text


def _describe_tasks(names: list[str]) -> str:
    if not names:
        return "none: the module must import those that have your @app.task functions"
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f", and {more} more" if more > 0 else "")
