"""`conveyor beat`: moves what comes due to its queue, and runs no tasks."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from conveyor.cli.apps import find_app
from conveyor.cli.logs import set_up_logs
from conveyor.cli.parsing import Exit, Parser, add_app, add_logs
from conveyor.cli.worker import add_queues, check_server, describe_server
from conveyor.orchestrator import Orchestrator
from conveyor.worker.plan import parse_queues

if TYPE_CHECKING:
    import argparse

log = logging.getLogger("conveyor.orchestrator")

_DESCRIPTION = """\
Moves scheduled tasks to their queues when they are due, and looks after stalled and expired ones.

Workers do the same unless they are started with --no-beat. Any number may run at once.
TERM or INT (Ctrl-C) ends it."""

_EXAMPLES = (
    ("conveyor -A myapp beat", "for the app's queue and those of its tasks"),
    ("conveyor -A myapp beat -Q high,default", "for two queues"),
)


def make_parser() -> Parser:
    """The parser of `beat`."""
    parser = Parser("beat", _DESCRIPTION, _EXAMPLES)
    add_app(parser)
    add_queues(parser, "NAME,…", "the app's queue and those of its tasks")
    add_logs(parser)
    return parser


def run(options: argparse.Namespace) -> Exit:
    """Looks after the queues until a signal ends it."""
    handler = set_up_logs(options.log_level or "INFO", options.log_format or "text")
    app = find_app(options.app)
    set_up_logs(
        options.log_level or app.settings.log_level,
        options.log_format or app.settings.log_format,
        handler,
    )
    orchestrator = Orchestrator(app, parse_queues(options.queues)[0] if options.queues else None)

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # one more must not break off the end
        orchestrator.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    check_server(app)
    queues = ", ".join(orchestrator.queues)
    log.info("beat of %s: %s on %s", app.name, queues, describe_server(app))
    with app:
        orchestrator.run()
    return Exit.DONE
