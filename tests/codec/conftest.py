"""A codec that knows the sample types."""

from __future__ import annotations

import pytest
from codec_samples import KNOWN

from conveyor.codec import Codec


@pytest.fixture
def codec() -> Codec:
    return Codec(KNOWN)
