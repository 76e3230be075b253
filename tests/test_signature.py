"""Signatures: which calls fit, their one canonical form, and the types that annotations name."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor import Conveyor
from conveyor.errors import ConfigurationError
from conveyor.signature import Signature, annotated_types

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from somewhere import Missing  # type: ignore[import-not-found]


def plain(a: int, b: int, c: int = 3) -> None: ...
def only(a: int, b: int, /) -> None: ...
def named(a: int, *, b: int) -> None: ...
def optional(a: int = 1, *, b: int = 2) -> None: ...
def rest(a: int, *more: int, b: int = 2, **others: int) -> None: ...
def extra(a: int, **others: int) -> None: ...
def nothing() -> None: ...
def late(a: int, b: int = 2, *, c: int) -> None: ...


FUNCTIONS = (plain, only, named, optional, rest, extra, nothing, late)
arguments = st.lists(st.integers(), max_size=4).map(tuple)
keywords = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "others"]), st.integers())


def bind(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return Signature(function, "name", bind=False).bind(args, kwargs)


@given(st.sampled_from(FUNCTIONS), arguments, keywords)
def test_what_python_takes_is_bound_and_what_it_refuses_is_refused(
    function: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    try:
        function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"^name\("):
            bind(function, *args, **kwargs)
    else:
        bound, rest = bind(function, *args, **kwargs)
        function(*bound, **rest)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "bound"),
    [
        (plain, (1,), {"b": 2}, ((1, 2), {})),
        (plain, (), {"b": 2, "a": 1}, ((1, 2), {})),
        (plain, (1, 2), {"c": 4}, ((1, 2, 4), {})),
        (named, (), {"b": 2, "a": 1}, ((1,), {"b": 2})),
        (rest, (1, 2, 3), {"b": 4, "c": 5}, ((1, 2, 3), {"b": 4, "c": 5})),
        (extra, (), {"a": 1, "self": 2}, ((1,), {"self": 2})),
        (nothing, (), {}, ((), {})),
    ],
)
def test_whatever_can_be_positional_is(
    function: Callable[..., Any], args: Any, kwargs: Any, bound: Any
) -> None:
    assert bind(function, *args, **kwargs) == bound


def test_the_names_are_those_of_positional_arguments() -> None:
    assert Signature(plain, "name", bind=False).names == ("a", "b", "c")
    assert Signature(plain, "name", bind=True).names == ("b", "c")
    assert Signature(rest, "name", bind=False).names == ("a",)
    assert Signature(named, "name", bind=False).names == ("a",)


def test_binding_hides_the_first_parameter() -> None:
    signature = Signature(plain, "name", bind=True)
    assert signature.bind((), {"b": 1}) == ((1,), {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'a'"):
        signature.bind((1,), {"a": 1})


def test_schedule_keeps_its_own_names() -> None:
    for function in (lambda at: 1, lambda *, after: 1, lambda x, at=1: 1):
        with pytest.raises(ConfigurationError, match="which schedule"):
            Signature(function, "name", bind=False)
    Signature(lambda at: 1, "name", bind=True)


@dataclass
class Point:
    x: int


@dataclass
class Line:
    start: Point


class Color(Enum):
    RED = 1


def test_annotations_name_the_types_that_travel() -> None:
    def draw(point: Point, colors: list[Color], *more: Optional[Line]) -> dict[str, Point]:  # noqa: UP045
        raise NotImplementedError

    assert annotated_types(draw) >= {Point, Color, Line}


def test_annotations_name_types_that_are_local_to_a_function() -> None:
    @dataclass
    class Point:  # not the module's
        y: int

    class Kind(Enum):
        ONE = 1

    def used(point: Point) -> Kind:
        return later(Point, Kind)  # the cell of `later` is empty yet

    def named(point: Point, color: Color) -> Kind: ...

    assert annotated_types(used) == {Point, Kind}
    frame = inspect.currentframe()
    assert annotated_types(named, frame) == {Point, Kind, Color}
    assert annotated_types(plainly, frame) == {Line, globals()["Point"]}

    def later(*_: object) -> Any: ...


def plainly(line: Line, kind: Kind) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def test_text_within_an_annotation_names_types_too() -> None:
    def draw() -> None: ...

    draw.__annotations__ = {"points": list["Point"], "line": Optional["Line"], "color": "Color"}
    assert annotated_types(draw) == {Point, Line, Color}


def test_an_annotation_that_cannot_be_resolved_names_none() -> None:
    def draw(point: Point, missing: Missing, wrong: "no such thing" = 1) -> Color:  # type: ignore[valid-type]  # noqa: F722
        raise NotImplementedError

    assert annotated_types(draw) == {Point, Color}


EARLY = Conveyor("early", broker="redis://127.0.0.1:1/0")


@EARLY.task
def show(shape: Shape) -> None: ...


@dataclass
class Shape:
    corner: Corner


@dataclass
class Corner:
    x: int


def test_annotations_may_name_types_that_come_after_the_task() -> None:
    assert show.call(Shape(Corner(1))).pack()


#: As it is written for Python 3.14, where an annotation is not looked up before it is asked for.
_LATE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict
from conveyor import Conveyor
if TYPE_CHECKING:
    from somewhere import Missing
app = Conveyor("late", broker="redis://127.0.0.1:1/0")
@app.task
def show(shapes: list[Shape], options: Options, missing: Missing | None = None) -> None: ...
@dataclass
class Shape:
    corner: Corner | None = None
class Options(TypedDict):
    color: Color
@dataclass
class Corner:
    x: int
@dataclass
class Color:
    name: str
"""


def test_annotations_are_not_looked_up_at_the_decoration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = "" if sys.version_info >= (3, 14) else "from __future__ import annotations"
    (tmp_path / "late_shapes.py").write_text(early + _LATE)
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module("late_shapes")
    assert late.show.call([late.Shape(late.Corner(1))], {"color": late.Color("red")}).pack()
    with pytest.raises(TypeError, match=r"^late_shapes\.show\(shapes: .*Shape.*too many"):
        late.show.delay(1, 2, 3, 4)


def test_what_has_no_annotations_names_none() -> None:
    assert annotated_types(lambda x: x) == set()
    assert annotated_types(len) == set()


def test_what_it_wraps_need_not_have_a_name() -> None:
    @functools.wraps(functools.partial(print, 1))
    def wrapping(size: int) -> None: ...

    assert annotated_types(wrapping, sys._getframe()) == set()
