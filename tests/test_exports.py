"""What `conveyor` exports: a table of contents that leads somewhere."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import conveyor
from conveyor import errors

SOURCE = Path(conveyor.__file__).read_text()


def groups() -> dict[str, list[str]]:
    """The names of `__all__`, by the comment above them."""
    found: dict[str, list[str]] = {}
    inside = SOURCE[SOURCE.index("__all__ = [") :].splitlines()[1:]
    for line in inside[: next(n for n, one in enumerate(inside) if one.startswith("]"))]:
        if line.strip().startswith("#"):
            found[line.strip(" #")] = []
        else:
            found[list(found)[-1]].append(ast.literal_eval(line.strip(" ,")))
    return found


def test_every_name_can_be_imported() -> None:
    space: dict[str, Any] = {}
    exec("from conveyor import *", space)
    assert set(space) - {"__builtins__"} == set(conveyor.__all__)


def test_every_name_stands_once_in_a_sorted_group() -> None:
    listed = groups()
    assert [name for names in listed.values() for name in names] == list(conveyor.__all__)
    assert len(set(conveyor.__all__)) == len(conveyor.__all__)
    for group, names in listed.items():
        assert names == sorted(names), group


def test_every_name_that_is_imported_is_exported() -> None:
    modules = (one for one in vars(conveyor).values() if inspect.ismodule(one))
    hidden = {one.__name__.rpartition(".")[2] for one in modules}
    public = {name for name in vars(conveyor) if not name.startswith("_")}
    assert public - hidden == set(conveyor.__all__)


def test_every_error_is_exported() -> None:
    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.ConveyorError)
    }
    assert set(groups()["Errors"]) == kinds


def test_everything_exported_is_described() -> None:
    for name in conveyor.__all__:
        thing = getattr(conveyor, name)
        assert inspect.getdoc(thing), name
        assert thing.__module__.startswith("conveyor."), name


def test_the_package_ships_its_types() -> None:
    assert (Path(conveyor.__file__).parent / "py.typed").exists()
