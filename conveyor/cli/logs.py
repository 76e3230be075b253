"""Log lines on stderr, for people or, one JSON object a line, for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

#: What our log calls add to a record, and a JSON line shows.
EXTRA: Final = ("task", "id", "queue")

_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"


def set_up_logs(level: str, kind: str, handler: logging.Handler | None = None) -> logging.Handler:
    """Sends every log record of this process to stderr; children inherit it.

    Args:
        level: The least severe that is shown.
        kind: "text" or "json".
        handler: What an earlier call returned, to change it; None adds one.
    """
    root = logging.getLogger()
    if handler is None:
        handler = logging.StreamHandler()
        root.addHandler(handler)
    handler.setFormatter(
        JsonFormatter() if kind == "json" else logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S")
    )
    root.setLevel(level)
    return handler


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: time (UTC), level, logger, message, and what there is else.

    Example:
        {"time": "2027-01-01T00:00:00.000Z", "level": "INFO", "logger": "conveyor.worker", …}
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {
            name: value for name in EXTRA if (value := getattr(record, name, None)) is not None
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
