"""The part of a task's options that travels in its payload: only what differs from the defaults.

No script reads it: its caller packs it, and the child that runs the task unpacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from conveyor.backoff import Backoff
from conveyor.errors import SerializationError
from conveyor.packing import pack, unpack


@dataclass(frozen=True, slots=True)
class Options:
    """The part of a task's options that only its caller and its child read.

    Attributes:
        backoff: Delay before an error retry; None is the task's function, or the default.
        execution_timeout: Seconds one run may take, or None.
        headers: Carried along, never read by Conveyor.
    """

    backoff: Backoff | None = None
    execution_timeout: float | None = None
    headers: Mapping[str, str] | None = None

    def pack(self, nonce: bytes = b"") -> bytes:
        """Encodes what differs from the defaults; a nonce makes this very call recognisable."""
        fields: dict[str, Any] = {}
        if self.backoff is not None:
            fields["b"] = self.backoff.pack()
        if self.execution_timeout is not None:
            fields["t"] = self.execution_timeout
        if self.headers:
            fields["h"] = dict(self.headers)
        if nonce:
            fields["u"] = nonce
        return pack(fields) if fields else b""

    @classmethod
    def unpack(cls, data: bytes) -> Options:
        """Decodes what `pack` wrote."""
        if not data:
            return _DEFAULT_OPTIONS
        try:
            fields = unpack(data, "the options of a task")
            backoff = Backoff.unpack(fields["b"]) if "b" in fields else None
            return cls(backoff, _seconds(fields.get("t")), _headers(fields.get("h")))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise SerializationError(f"the options of a task cannot be read: {error}") from error


_DEFAULT_OPTIONS = Options()


def _seconds(value: object) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    raise TypeError(f"an execution timeout cannot be {value!r}")


def _headers(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"headers cannot be {value!r}")
    given = cast("Mapping[object, object]", value)
    if not all(isinstance(text, str) for item in given.items() for text in item):
        raise TypeError(f"headers cannot be {value!r}")
    return cast("Mapping[str, str]", value)
