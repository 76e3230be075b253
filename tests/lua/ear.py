"""What a queue publishes, as one who subscribes by hand hears it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from conveyor.broker import commands
from conveyor.events import decode_event

if TYPE_CHECKING:
    from engine import Engine

    from conveyor import Event


class Told(NamedTuple):
    """One event as it was published."""

    type: str
    now_ms: int
    id: str | None
    record: bytes
    extras: dict[bytes, bytes]
    data: bytes | None
    worker: str | None
    message: bytes


class Ear:
    """A subscription to the events of a queue, read by hand."""

    def __init__(self, engine: Engine) -> None:
        server: Any = engine.broker.server
        self.engine = engine
        self.connection = server.connection(engine.keys.memory)
        self.connection.send_command("SSUBSCRIBE", engine.keys.events)
        assert self.connection.read_response()[0] == b"ssubscribe"
        engine.call("HDEL", engine.keys.memory, "unheard")

    def heard(self) -> list[Told]:
        """What was published since it was asked last."""
        self.connection.send_command("PING")
        told: list[Told] = []
        while (message := self.connection.read_response(disable_decoding=True))[0] != b"pong":
            told.append(_told(message[2]))
        return told

    def types(self) -> list[str]:
        """The same, of each its type."""
        return [one.type for one in self.heard()]

    def events(self, *, reveal: bool = False) -> list[Event]:
        """The same, as users see it."""
        codec = self.engine.app.client.codec
        queue = self.engine.queue
        return [decode_event(queue, one.message, codec, reveal=reveal) for one in self.heard()]


def _told(message: bytes) -> Told:
    kind, now, task_id, record, extras, data, worker = msgpack.unpackb(message, raw=True)
    return Told(
        kind.decode(),
        now,
        task_id.decode() if task_id else None,
        record or b"",
        commands.pairs(extras or []),
        None if data is False else data,
        worker.decode() if worker else None,
        message,
    )
