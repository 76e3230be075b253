"""A claimed task as the parent holds it."""

from __future__ import annotations

from conveyor.options import make_plan
from conveyor.records import Template
from conveyor.settings import Settings
from conveyor.worker.job import Job


def test_what_others_wrote_neither_forges_a_line_nor_commands_a_terminal() -> None:
    plan = make_plan({}, Settings(), queue="q", is_async=False, timezone=None)
    record = Template("a\x1b[2J\nb", plan.limits, b"").record(b"")
    assert str(Job(1, 0, b"i\rd", record, 0.0)) == r"a\x1b[2J\nb[i\rd]"
