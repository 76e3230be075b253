"""Conveyor's own small structures as msgpack: options, errors, announcements."""

from __future__ import annotations

from typing import Any, cast

import msgpack

from conveyor.errors import SerializationError

_msgpack: Any = msgpack  # it has no types


def pack(value: Any) -> bytes:
    """Packs plain values; text that is no valid Unicode is mended."""
    return cast("bytes", _msgpack.packb(value, unicode_errors="replace"))


def unpack(data: bytes, what: str, *, raw: bool = False) -> Any:
    """Unpacks what `pack` or a script packed.

    Args:
        data: The bytes.
        what: What they should be, for the error.
        raw: Whether strings stay bytes.

    Raises:
        SerializationError: They are no msgpack.
    """
    try:
        return _msgpack.unpackb(data, raw=raw, unicode_errors="replace")
    except (ValueError, TypeError) as error:
        raise SerializationError(f"{what} cannot be read: {error}") from error


def pack_error(kind: str, message: str, traceback: str = "") -> bytes:
    """How an error travels: as text, never as a class to rebuild."""
    return pack([kind, message, traceback])


def unpack_error(data: bytes) -> tuple[str, str, str]:
    """The error's type, message and traceback."""
    kind, message, traceback = unpack(data, "an error")
    return str(kind), str(message), str(traceback)


def read_error(data: bytes | None) -> tuple[str | None, str | None]:
    """An error as records have it: type and message in one text, and the traceback."""
    if not data:
        return None, None
    kind, message, traceback = unpack_error(data)
    return (f"{kind}: {message}" if message else kind), traceback or None
