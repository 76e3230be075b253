"""What every command of the command line shares: exit codes, options, and errors of one line."""

from __future__ import annotations

import argparse
import math
from enum import IntEnum
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn

from conveyor.errors import ConfigurationError
from conveyor.moments import LONGEST_MS
from conveyor.rules import LARGEST_COUNT
from conveyor.settings import check_setting
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Exit(IntEnum):
    """What a command's exit code says."""

    #: It did what it was asked to.
    DONE = 0
    #: It could not: a task failed, a wait was over, a worker was killed.
    FAILED = 1
    #: It was asked for something that cannot be, a wrong ``-A`` included.
    USAGE = 2
    #: The server cannot be reached, or is not one we can use.
    UNREACHABLE = 3


class Parser(argparse.ArgumentParser):
    """One command's arguments: options may stand anywhere, errors are one line.

    Args:
        command: The command, or "" for what stands before it.
        description: What it does.
        examples: Command lines that a reader can run, each with what it does.
    """

    def __init__(self, command: str, description: str, examples: Sequence[tuple[str, str]]) -> None:
        width = max(len(line) for line, _ in examples) + 2
        lines = [f"  {line:{width}}{meaning}" for line, meaning in examples]
        super().__init__(
            prog=f"conveyor {command}".strip(),
            description=description,
            epilog="\n".join(["examples:", *lines]),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses a command's arguments.

        Raises:
            ConfigurationError: They do not fit.
        """
        found, unknown = self.parse_known_intermixed_args(list(arguments))
        self.refuse(unknown)
        return found

    def refuse(self, unknown: Sequence[str]) -> None:
        """Says of the first argument that has no meaning what may have been meant.

        Raises:
            ConfigurationError: There is one.
        """
        for argument in unknown:
            if argument.startswith("-"):
                option = argument.partition("=")[0]
                meant = nearest(option, self._option_string_actions)
                self.error(f"there is no option {option}: did you mean {meant}?")
            self.error(f"{argument!r} is one argument too many")

    def error(self, message: str) -> NoReturn:
        """Says in one line what is wrong and where to read on."""
        raise ConfigurationError(f"{message} (`{self.prog} --help` says more)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the examples as they are, and gives every option's help the same column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def version() -> str:
    """The version that is installed."""
    try:
        return metadata.version("conveyor-mq")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def add_app(parser: argparse.ArgumentParser) -> None:
    """Adds ``-A``."""
    parser.add_argument(
        "-A",
        "--app",
        metavar="MODULE[:ATTRIBUTE]",
        help="where the app is; else CONVEYOR_APP, or `app` in [tool.conveyor] of pyproject.toml",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Adds ``-l`` and ``--log-format``."""
    parser.add_argument(
        "-l",
        "--log-level",
        metavar="LEVEL",
        type=setting("log_level"),
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL (default: INFO)",
    )
    parser.add_argument(
        "--log-format",
        metavar="FORMAT",
        type=setting("log_format"),
        help="text, or json: one object a line (default: text)",
    )


def setting(name: str) -> Callable[[str], Any]:
    """The type of an option that has a setting's name and rules."""

    def read(text: str) -> Any:
        try:
            return check_setting(name, text, "option", text=True)
        except ConfigurationError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def count(text: str) -> int:
    """The type of an option that is a whole number from 1."""
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """The type of an option that is a duration."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_MS / 1000 and value != math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, up to 1,000 years")
    return value
