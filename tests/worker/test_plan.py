"""What a worker may be asked to be."""

from __future__ import annotations

import pytest

from conveyor import ConfigurationError
from conveyor.settings import Settings, available_cpus
from conveyor.worker.plan import make_plan, parse_queues


def test_queues_come_in_order_or_with_weights() -> None:
    assert parse_queues(["high", "default"]) == (["high", "default"], None)
    assert parse_queues(["high:3", "default:1"]) == (["high", "default"], [3, 1])


@pytest.mark.parametrize(
    ("queues", "message"),
    [
        (["a:b"], "queue 'a:b' is not valid: use NAME or NAME:WEIGHT"),
        (["a:0"], "queue 'a:0' is not valid: use NAME or NAME:WEIGHT"),
        (["a b"], "queue 'a b' is not valid: use 1 to 64 letters, digits, '_', '.' or '-'"),
        (["a", "a"], "a queue is named twice in a, a: name each once"),
        (["a:2", "b"], "only some of a:2, b have a weight: give all one or none"),
    ],
)
def test_wrong_queues_are_refused_in_one_line(queues: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r".") as caught:
        parse_queues(queues)
    assert str(caught.value) == message


def test_one_text_names_queues_as_the_command_line_does() -> None:
    assert parse_queues("default") == (["default"], None)
    assert parse_queues("high:3,default:1") == (["high", "default"], [3, 1])


def test_options_come_before_settings_and_settings_before_the_machine() -> None:
    plan = make_plan(Settings(threads=3), {"concurrency": None}, queues=["q"], burst=False)
    assert (plan.threads, plan.concurrency) == (3, available_cpus())
    plan = make_plan(Settings(threads=3, concurrency=4), {"threads": 2}, queues=["q"], burst=False)
    assert (plan.threads, plan.concurrency) == (2, 4)


def test_a_wrong_option_names_itself_and_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"threads cannot be 0 \(option\)"):
        make_plan(Settings(), {"threads": 0}, queues=["q"], burst=False)
