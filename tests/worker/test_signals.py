"""Signals come as bytes, and only those that were asked for."""

from __future__ import annotations

import signal
import sys

import pytest

from conveyor.worker.signals import Signals, ignore


@pytest.mark.skipif(sys.platform == "darwin", reason="it has no real-time signals")
def test_a_signal_that_has_no_name_is_left_to_its_own_handler() -> None:
    nameless = signal.SIGRTMIN + 1
    before = signal.signal(nameless, ignore)
    try:
        with Signals([signal.SIGTERM]) as signals:
            signal.raise_signal(nameless)
            signal.raise_signal(signal.SIGTERM)
            assert signals.read() == [signal.SIGTERM]
    finally:
        signal.signal(nameless, before)
