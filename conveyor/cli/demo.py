"""`conveyor demo`: see it work on real input, with nothing to set up."""

from __future__ import annotations

import os
import signal
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor.broker import embedded
from conveyor.cli.parsing import Exit, Parser, count
from conveyor.cli.tables import make_console
from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

_DESCRIPTION = """\
Parses every Python file of the standard library in the children of a worker, on an embedded server
of its own; kills one child (SIGKILL) while it parses; then compares with a plain loop.

Exits with 0 when every file was counted once, that of the killed run included, else with 1."""

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
    directory = Path(options.path or sysconfig.get_path("stdlib")).expanduser()
    signal.signal(signal.SIGTERM, _interrupt)
    with _private_server():
        from conveyor.cli import comparison  # the app learns here where its server is
        from conveyor.demo import source_files

        files = source_files(directory)
        if not files:
            raise ConfigurationError(
                f"there are no Python files in {directory}: name another with --path"
            )
        succeeded = comparison.compare(
            files, children=options.concurrency, kill=options.kill, console=make_console()
        )
    return Exit.DONE if succeeded else Exit.FAILED


def _interrupt(_number: int, _frame: object) -> None:
    """Ends the demo as Ctrl-C does: with its worker and its server."""
    signal.raise_signal(signal.SIGINT)


@contextmanager
def _private_server() -> Generator[None]:
    """An embedded server for the app that is created meanwhile; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="conveyor-demo-") as name:
        os.environ["CONVEYOR_BROKER"] = f"embedded://{name}"
        server = embedded.EmbeddedServer(Path(name))
        try:
            server.acquire()  # not `start`: it must not stay where this process is killed
            yield
        finally:
            server.release()
            embedded.stop(Path(name))
