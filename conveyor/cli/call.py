"""`conveyor call`: sends one task, and prints its id or its result."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from conveyor.cli.apps import find_app
from conveyor.cli.parsing import Exit, Parser, add_app, seconds, setting
from conveyor.cli.values import read_arguments, to_json
from conveyor.errors import ConfigurationError
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyor.app import Conveyor
    from conveyor.result import TaskResult
    from conveyor.task import BaseTask, Call

_DESCRIPTION = """\
Sends a task and prints its id, or with --wait its result.

TASK is a task's name or its last part. Each ARG is one JSON value, or else the text itself:
1, true, [1,2] and '{"a": 1}' are values, hello is text, '"1"' is the text 1. NAME=ARG goes by name.

The result is one line of JSON, in which a tuple or set is a list, a dataclass an object, a moment
its ISO 8601 text, a timedelta its seconds, bytes their base64. What failed says so on stderr."""

_EXAMPLES = (
    ("conveyor -A myapp call add 1 2", "send it, print its id"),
    ("conveyor -A myapp call myapp.add 1 y=2 --wait", "wait for the result"),
    ("conveyor -A myapp call add 1 2 --wait=5", "for 5 seconds at most"),
    ("conveyor -A myapp call add 1 2 --after 60", "have it run in a minute"),
    ("conveyor -A myapp call report --at 2027-01-01T08:00Z", "or then"),
)


def make_parser() -> Parser:
    """The parser of `call`."""
    parser = _CallParser("call", _DESCRIPTION, _EXAMPLES)
    add_app(parser)
    parser.add_argument("task", metavar="TASK", help="a task's name, or its last part")
    parser.add_argument(
        "words", metavar="ARG", nargs="*", default=[], help="what to pass to it: ARG or NAME=ARG"
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        nargs="?",
        type=seconds,
        const=math.inf,
        help="wait for its end and print the result; --wait=5 for so many seconds at most",
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--after", metavar="SECONDS", type=seconds, help="how long from now it is due"
    )
    when.add_argument(
        "--at", metavar="MOMENT", type=_moment, help="when it is due, in ISO 8601 or POSIX seconds"
    )
    parser.add_argument("-Q", "--queue", metavar="NAME", help="the queue it goes to")
    parser.add_argument("--id", metavar="ID", help="its id; one that exists is not sent again")
    parser.add_argument(
        "--priority",
        metavar="N",
        type=setting("priority"),
        help="0 to 9, 9 first (default: the task's)",
    )
    return parser


def run(options: argparse.Namespace) -> Exit:
    """Sends the task."""
    with find_app(options.app) as app:
        task = find_task(app, options.task)
        args, kwargs = read_arguments(options.words)
        chosen = {name: getattr(options, name) for name in ("queue", "id", "priority")}
        task = task.options(**{name: value for name, value in chosen.items() if value is not None})
        try:
            call = task.call(*args, **kwargs)
        except TypeError as error:
            raise ConfigurationError(str(error)) from error
        result = _send(app, call, options)
        if not result.created:
            print(f"{result.id} exists already: nothing was sent", file=sys.stderr)
        if options.wait is None:
            print(result.id)
        else:
            print(to_json(result.wait(None if options.wait == math.inf else options.wait)))
    return Exit.DONE


def find_task(app: Conveyor, name: str) -> BaseTask[..., Any]:
    """The task of that name, or the only one whose name ends so.

    Raises:
        ConfigurationError: There is none, or more than one.
    """
    if name in app.tasks:
        return app.tasks[name]
    found = [full for full in app.tasks if full.endswith(f".{name}")]
    if len(found) == 1:
        return app.tasks[found[0]]
    if found:
        raise ConfigurationError(f"{name!r} may be any of {', '.join(sorted(found))}: say which")
    if not app.tasks:
        raise ConfigurationError(
            f"{app.name} has no tasks: its module must import those that have them"
        )
    last_parts = {full.rpartition(".")[2]: full for full in app.tasks}
    meant = nearest(name, app.tasks) if "." in name else last_parts[nearest(name, last_parts)]
    raise ConfigurationError(f"{app.name} has no task {name!r}: did you mean {meant}?")


def _send(app: Conveyor, call: Call[Any], options: argparse.Namespace) -> TaskResult[Any]:
    if options.at is not None:
        at = options.at
        if isinstance(at, datetime) and at.utcoffset() is None and app.client.timezone is None:
            naive = at.isoformat()
            raise ConfigurationError(
                f"--at {naive} has no time zone: add one, {naive}Z or {naive}+02:00"
            )
        return call.schedule(at=at)
    if options.after is not None:
        return call.schedule(after=options.after)
    return call.delay()


class _CallParser(Parser):
    """Takes the word after ``--wait`` for an ARG, as in ``call add --wait 1 2``."""

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments: see `Parser.read`."""
        words = list(arguments)
        for index in range(words.index("--") if "--" in words else len(words)):
            if words[index] == "--wait":
                words[index] = "--wait=inf"
        return super().read(words)


def _moment(text: str) -> datetime | float:
    # Digits alone may be both: 20270101 is a day, as ISO 8601 has it, and no second of 1970.
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text)
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a moment in ISO 8601, such as 2027-01-01T08:00Z, nor POSIX seconds"
        ) from error
