"""The errors: one tree, drawn as it is, and each as it can be caught."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest
from playing import SOON, end

from conveyor import Conveyor, errors
from conveyor.errors import (
    ConfigurationError,
    ConveyorError,
    PartialEnqueue,
    PayloadTooLarge,
    Retry,
    SerializationError,
    TaskFailed,
    WaitTimeout,
)
from conveyor.packing import pack_error

TREE = re.compile(r"^    (?P<indent>[│├└─ ]*)(?P<name>\w+)\b(?P<text>.*)$", re.MULTILINE)
ALL = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Exception)
}


def drawn() -> dict[str, tuple[str, str]]:
    """The tree in the docstring: each error's parent and description, by name."""
    tree: dict[str, tuple[str, str]] = {}
    above: list[tuple[int, str]] = []
    for line in TREE.finditer(errors.__doc__ or ""):
        depth = len(line["indent"])
        above = [one for one in above if one[0] < depth]
        parent = above[-1][1] if above else ""
        is_heading = line["name"].islower()
        above.append((depth, parent if is_heading else line["name"]))
        if not is_heading:
            tree[line["name"]] = (parent, line["text"].strip())
    return tree


def test_every_error_descends_from_one() -> None:
    assert set(ALL) == {kind.__name__ for kind in ALL.values()}
    assert all(issubclass(kind, ConveyorError) for kind in ALL.values())
    assert issubclass(ConveyorError, Exception)


def test_the_drawing_has_every_error_where_it_is() -> None:
    tree = drawn()
    assert set(tree) == set(ALL)
    for name, (parent, text) in tree.items():
        bases = [base.__name__ for base in ALL[name].__bases__]
        assert bases[0] == (parent or "Exception"), name
        for also in bases[1:]:
            assert f"a {also} too" in text, name
        assert text or name == "ConveyorError"


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_error_is_described(name: str) -> None:
    assert ALL[name].__doc__ not in (None, *(base.__doc__ for base in ALL[name].__bases__))


def test_no_error_hides_a_builtin() -> None:
    assert not set(ALL) & set(dir(builtins))


def test_errors_are_caught_as_what_they_are_like() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(WaitTimeout, TimeoutError)
    assert issubclass(PayloadTooLarge, SerializationError)


def test_a_failure_can_be_raised_in_another_process(app: Conveyor) -> None:
    result = app.task(pickle.dumps).delay(1)
    end(app, "fatal", pack_error("ValueError", "no"))
    with pytest.raises(TaskFailed) as caught:
        result.wait(SOON)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.record == caught.value.record


def test_what_errors_carry() -> None:
    partial = PartialEnqueue("half", (1,), (2, 3))
    assert (str(partial), partial.results, partial.pending) == ("half", [1], [2, 3])
    assert (str(Retry()), Retry().delay) == ("the task asked to be retried", None)
    assert (str(Retry("busy", 2.5)), Retry("busy", 2.5).delay) == ("busy", 2.5)
