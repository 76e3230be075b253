"""The codec: types that are registered, or found in annotations."""

from __future__ import annotations

import abc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NewType,
    Optional,
    Required,
    TypedDict,
    TypeVar,
)

import pytest
from codec_samples import (
    Box,
    Boxed,
    Color,
    Empty,
    Level,
    Line,
    Mood,
    Node,
    Pair,
    Point,
    refusal,
    trip,
)
from typing_extensions import TypeAliasType

from conveyor.codec import Codec, Opaque, types_in
from conveyor.errors import ConfigurationError
from conveyor.forms import dataclass_form

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    from nowhere import Ghost


@pytest.mark.parametrize("what", [int, dict, Pair, object, 5, "Point", Point(1), list[Point]])
def test_only_dataclasses_and_enums_can_be_registered(what: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Codec([Point, what])
    assert str(caught.value) == (
        f"{what!r} is neither a dataclass nor an Enum; take it out of types="
    )


def test_registering_again_changes_nothing_and_fields_types_come_along() -> None:
    codec = Codec()
    assert "Line is not a registered type" in refusal(codec, Line(Point(1)))
    codec.register(Line)
    codec.register(Line, Line)
    trip(codec, Line(Point(1)))
    trip(codec, Opaque("gone:Type", 1))
    codec.register(Opaque)
    trip(codec, Opaque("gone:Type", 1))


def test_types_are_looked_for_once_when_one_is_missed() -> None:
    line, asked = Line(Point(1)), count()

    def find() -> set[type]:
        assert next(asked) == 0
        return types_in(Line)

    known, writer, reader = Codec([Line]), Codec(), Codec()
    for codec in known, writer:
        codec.register_later("app.draw", find)
    trip(known, line)
    trip(writer, line)
    trip(writer, Opaque("gone:Type", 1))
    reader.register_later("app.draw", lambda: types_in(Line))
    assert reader.decode(writer.encode(line, "the result")) == line


def test_threads_may_register_a_type_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec()

    def let_another_be_first(kind: Any) -> Any:
        monkeypatch.undo()
        codec.register(kind)
        return dataclass_form(kind)

    monkeypatch.setattr("conveyor.codec.dataclass_form", let_another_be_first)
    codec.register(Point)
    trip(codec, Point(1))


def define_again() -> type:
    @dataclass
    class Again:
        x: int

    return Again


def test_class_found_later_takes_nobody_s_place() -> None:
    former, latter = define_again(), define_again()
    codec = Codec([latter])
    codec.register_later("app.draw", lambda: [former])
    trip(codec, Opaque("gone:Type", 1))
    trip(codec, latter(1))


def test_class_defined_anew_takes_the_place_of_the_former() -> None:
    former, latter = define_again(), define_again()
    codec = Codec([former, latter])
    trip(codec, latter(1))
    text = refusal(codec, former(1))
    assert text.endswith("Again is not the class known by that name; rename one of the two")


def test_script_s_types_are_those_of_the_module_it_is(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from dataclasses import dataclass\n"
        "import sys\n"
        "from conveyor.codec import Codec\n"
        "@dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "if __name__ == '__main__':\n"
        "    sys.stdout.buffer.write(Codec([Order]).encode(Order(5), ''))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for command in (["shop.py"], ["-m", "shop"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        )
        assert Codec().decode(done.stdout) == Opaque("shop:Order", {"number": 5})


UserPoint = NewType("UserPoint", Point)
Either = TypeVar("Either", Point, Color)


class Wish(TypedDict, total=False):
    where: Required[Point]
    color: "list[Color]"  # noqa: UP037
    unknown: Missing  # type: ignore[name-defined]  # noqa: F821


Bound = TypeVar("Bound", bound=Empty)


Points = TypeAliasType("Points", list[Point])


class Endless:
    def __getattr__(self, name: str) -> Endless:
        return Endless()


class Abstract(abc.ABC):
    @abc.abstractmethod
    def area(self) -> int: ...


@dataclass
class Family:
    parent: Family | None
    date: date | None
    ghost: Ghost
    ghosts: list[Ghost | Color]
    mood: Annotated[Mood | None, "a note"] = None
    limit: ClassVar[Level] = Level.LOW


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, set()),
        (None, set()),
        (Any, set()),
        ("Point", set()),
        (Ellipsis, set()),
        (Pair, set()),
        (Abstract, set()),
        (Point, {Point}),
        (Color, {Color}),
        (list[Point], {Point}),
        (dict[str, Point | None], {Point}),
        (dict[Color, tuple[Level, ...]], {Color, Level}),
        (Optional[Point], {Point}),  # noqa: UP045
        (Annotated[list[Color], Level, Endless()], {Color}),
        (Literal[Color.RED, 1], {Color}),
        (Callable[[Point], Color], {Color}),
        (UserPoint, {Point}),
        (Bound, {Empty}),
        (Points, {Point}),
        (dict[str, Points] | UserPoint, {Point}),
        (Box[Color], {Box, Color}),
        (Line, {Line, Point}),
        (list[Node], {Node}),
        (Boxed, {Boxed}),
        (Family, {Family, Mood}),
        (Wish, {Point, Color}),
        (list[Either], {Point, Color}),
    ],
)
def test_types_in_an_annotation(annotation: Any, expected: set[type]) -> None:
    assert types_in(annotation) == expected


def test_types_in_ends_for_an_alias_of_itself() -> None:
    tree: Any = type("TypeAliasType", (), {})()
    tree.__value__ = dict[str, tree] | Point
    assert types_in(tree) == {Point}


def test_types_in_a_field_inherited_from_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from enum import Enum\n"
        "class Kind(Enum):\n"
        "    A = 1\n"
        "@dataclass\n"
        "class Base:\n"
        "    kind: Kind\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import elsewhere  # type: ignore[import-not-found]

    @dataclass
    class Derived(elsewhere.Base):  # type: ignore[misc]
        point: Point

    assert types_in(Derived) == {Derived, Point, elsewhere.Kind}
