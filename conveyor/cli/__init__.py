"""The command line: `conveyor -A myapp COMMAND`, or `python -m conveyor`, which is the same.

One file a group of commands, each with its parser and its action; `main` chooses between them and
turns every error into one line on stderr and an exit code (see `parsing.Exit`).
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

import redis

from conveyor.cli.parsing import Exit, Parser, add_app, version
from conveyor.errors import BrokerUnavailable, ConfigurationError, ConveyorError
from conveyor.escaping import escaped
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType


#: Name and what it does; each is a module here, which makes its parser and runs it.
COMMANDS: Final[Mapping[str, str]] = {
    "worker": "run tasks, in child processes",
    "beat": "only move what comes due to its queue",
    "status": "count tasks, list workers",
    "call": "send a task, and wait for its result",
    "server": "start, stop or describe the embedded server",
    "demo": "see it work on real input, no app needed",
}

_EXAMPLES = (
    ("conveyor demo", "see it work, nothing to set up"),
    ("conveyor -A myapp worker", "run the tasks of myapp.py, which is here"),
    ("conveyor -A myapp call add 1 2 --wait", "run a task and print its result"),
    ("conveyor -A myapp status", "what is queued, who works"),
    ("conveyor worker --help", "all about one command"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit code.

    Args:
        arguments: Without the program's name; None takes those of this process.
    """
    _replace_closed_output()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except ConfigurationError as error:
        return _fail(error, Exit.USAGE)
    except BrokerUnavailable as error:
        return _fail(error, Exit.UNREACHABLE)
    except redis.RedisError as error:
        return _fail(
            f"the server refused: {error}; see broker= or CONVEYOR_BROKER", Exit.UNREACHABLE
        )
    except ConveyorError as error:
        return _fail(escaped(str(error)), Exit.FAILED)  # it may quote what a task said
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.FAILED)
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def _replace_closed_output() -> None:
    """Whoever started us may have closed it: Python then has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _run(arguments: Sequence[str]) -> int:
    parser = _make_parser()
    found, unknown = parser.parse_known_args(arguments)
    parser.refuse(unknown)
    if found.command is None:
        parser.print_help()
        return Exit.USAGE
    if found.command not in COMMANDS:
        meant = nearest(found.command, COMMANDS)
        parser.error(f"there is no command {found.command!r}: did you mean {meant!r}?")
    command = load_command(found.command)
    options = command.make_parser().read(found.rest)
    if getattr(options, "app", None) is None:
        options.app = found.app
    options.arguments = arguments
    code: int = command.run(options)
    return code


def load_command(name: str) -> ModuleType:
    """The module of one of `COMMANDS`; the others, and what they import, cost no time."""
    return import_module(f"conveyor.cli.{name}")


def _make_parser() -> Parser:
    parser = Parser(
        "", "A distributed task queue: runs an app's tasks, and tells of them.", _EXAMPLES
    )
    parser.usage = "conveyor [-h] [--version] [-A MODULE[:ATTRIBUTE]] COMMAND ..."
    add_app(parser)
    parser.add_argument("--version", action="version", version=f"conveyor {version()}")
    width = max(map(len, COMMANDS)) + 2
    listing = [f"  {name:{width}}{summary}" for name, summary in COMMANDS.items()]
    parser.description = "\n".join([parser.description or "", "", "commands:", *listing])
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _fail(message: object, code: Exit) -> Exit:
    text = "\n".join(map(escaped, str(message).split("\n")))
    print(f"conveyor: {text}", file=sys.stderr)
    return code
