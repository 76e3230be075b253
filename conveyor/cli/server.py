"""`conveyor server`: the embedded server, looked at and kept running by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from conveyor.broker import embedded
from conveyor.cli.apps import find_app
from conveyor.cli.parsing import Exit, Parser, add_app, add_json
from conveyor.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse

    from conveyor.broker.embedded import ServerStatus

_DESCRIPTION = """\
Starts, stops or describes the embedded server of an app.

It starts by itself with the first process that needs it and ends with the last one; `start` makes
it stay until `stop`. A process that still needs it after `stop` starts it again.
`status` exits with 3 when it is not running."""

_EXAMPLES = (
    ("conveyor -A myapp server status", "does it run, and where is its data"),
    ("conveyor -A myapp server start", "keep it running"),
    ("conveyor server stop --dir .conveyor", "stop the one of this directory"),
)


def make_parser() -> Parser:
    """The parser of `server`."""
    parser = Parser("server", _DESCRIPTION, _EXAMPLES)
    add_app(parser)
    parser.add_argument(
        "action",
        metavar="ACTION",
        choices=("start", "stop", "status"),
        help="start, stop or status",
    )
    parser.add_argument(
        "--dir", metavar="PATH", type=Path, help="the server of this directory, of whatever app"
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> Exit:
    """Does what was asked, and says how things are then."""
    directory = _directory(options)
    stopped = False
    if options.action == "start":
        embedded.start(directory)
    elif options.action == "stop":
        stopped = embedded.stop(directory)
    status = embedded.status(directory)
    if options.json:
        print(json.dumps(asdict(status), default=str))
    else:
        print(_describe(status, stopped))
    return Exit.UNREACHABLE if options.action == "status" and not status.running else Exit.DONE


def _directory(options: argparse.Namespace) -> Path:
    if options.dir is not None:
        return Path(options.dir).expanduser()
    with find_app(options.app) as app:
        server = app.client.broker.server
        if not server.embedded:
            raise ConfigurationError(
                f"{app.name} uses {server.address}, which is not ours to start or stop: "
                "see to it where it runs, or name a directory with --dir"
            )
        return Path(server.address.removeprefix("embedded://"))


def _describe(status: ServerStatus, stopped: bool) -> str:
    if not status.running:
        return f"{'stopped' if stopped else 'not running'}: {status.directory}"
    version = status.version or "a server that does not answer"
    stays = "until `conveyor server stop`" if status.kept else "until its last user has left"
    lines = {
        "running": f"{version}, pid {status.pid}, {stays}",
        "directory": status.directory,
        "url": f"unix://{status.socket}",
        "users": f"{status.connections or 0} connections",
        "data": f"{status.data_bytes:,} bytes",
    }
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())
