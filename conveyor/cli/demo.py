"""`conveyor demo`: see it work on real input, with nothing to set up."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor.cli.parsing import Exit, Parser, count
from conveyor.cli.tables import make_console
from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse

_DESCRIPTION = """\
Parses every Python file of the standard library on an embedded server of its own, in the children of one
worker, kills one of them (SIGKILL) while it parses, and checks the sums against a plain loop.

Exits with 0 when every file was counted once, the killed run included, and with 1 when not."""

_EXAMPLES = (
    ("conveyor demo", "about 1,500 files, in less than a minute"),
    ("conveyor demo --path ~/src/project -c 8", "your own code, eight children"),
    ("conveyor demo --no-kill", "without the kill"),
)


def make_parser() -> Parser:
    """The parser of `demo`."""
    parser = Parser("demo", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--path", metavar="DIR", type=Path, help="parse the Python files of this directory"
    )
    parser.add_argument(
        "-c", "--concurrency", metavar="N", type=count, default=2, help="children (default: 2)"
    )
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="kill nothing")
    return parser


def run(options: argparse.Namespace) -> Exit:
    """Runs the demo."""
    from conveyor import demo  # its app reads settings, of which only this command may complain

    directory = Path(options.path or sysconfig.get_path("stdlib")).expanduser()
    files = demo.source_files(directory)
    if not files:
        raise ConfigurationError(
            f"there are no Python files in {directory}: name another directory with --path"
        )
    succeeded = demo.run(
        files, children=options.concurrency, kill=options.kill, console=make_console()
    )
    return Exit.DONE if succeeded else Exit.FAILED
