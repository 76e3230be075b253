"""The app that workers of these tests run, as their environment describes it."""

from __future__ import annotations

import os

from conveyor import Conveyor

from .tasks import declare

app = Conveyor(os.environ["TEST_NAMESPACE"])
declare(app, os.environ.get("TEST_TASKS", ""))
