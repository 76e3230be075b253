"""Finds the app that ``-A`` names: in an option, the environment or pyproject.toml.

A wrong name is a ``ConfigurationError`` that says what there is instead. An exception that the
user's own module raises is one too, with the part of its traceback that is theirs.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor.app import Conveyor
from conveyor.errors import BrokerUnavailable, ConfigurationError
from conveyor.settings import find_pyproject, read_pyproject
from conveyor.spelling import nearest

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

_NO_APP = (
    "which app? Say -A MODULE[:ATTRIBUTE], set CONVEYOR_APP, "
    'or put  app = "MODULE"  under [tool.conveyor] in pyproject.toml'
)
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SPEC = re.compile(rf"(?P<module>{_DOTTED})(?::(?P<attribute>{_DOTTED}))?")


def find_app(given: str | None) -> Conveyor:
    """Imports the app.

    Args:
        given: What ``-A`` says; None looks into CONVEYOR_APP, then into pyproject.toml.

    Raises:
        ConfigurationError: None is named, or the name leads to no app.
        BrokerUnavailable: Its module sends tasks while it is imported, and the server is down.

    Example:
        >>> find_app("myapp:app")
        <Conveyor myapp>
    """
    here = Path.cwd()
    directories = [here]
    spec = given or os.environ.get("CONVEYOR_APP")
    if not spec:
        pyproject = find_pyproject(here)
        spec = read_pyproject(pyproject).get("app") if pyproject else None
        directories += [pyproject.parent] if pyproject else []
    if not spec:
        raise ConfigurationError(_NO_APP)
    parts = _SPEC.fullmatch(str(spec))
    if parts is None:
        raise ConfigurationError(
            f"app {spec!r} is not MODULE or MODULE:ATTRIBUTE{_as_module(str(spec))}"
        )
    sys.path += [str(path) for path in directories if str(path) not in sys.path]
    module = _imported(parts["module"])
    return _named(module, parts["attribute"]) if parts["attribute"] else _only(module)


def _as_module(spec: str) -> str:
    """What somebody who gave a file's path has to say instead."""
    path, _, attribute = spec.partition(":")
    if not path.endswith(".py"):
        return ", such as myapp or shop.tasks:app"
    module = ".".join(part for part in Path(path).with_suffix("").parts if part not in ("/", "."))
    return f": it takes a module, not a file; say -A {module}{':' if attribute else ''}{attribute}"


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BrokerUnavailable:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        raise ConfigurationError(_missing(error.name)) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _missing(module: str) -> str:
    here = Path.cwd()
    text = f"there is no module {module!r} in {here}, nor among the installed ones"
    neighbours = {path.stem for path in here.glob("*.py")} | {
        path.parent.name for path in here.glob("*/__init__.py")
    }
    meant = get_close_matches(module, sorted(neighbours), n=1)
    return (
        f"{text}: did you mean {meant[0]!r}?" if meant else f"{text}: go where it is, or install it"
    )


def _broken(module: str, error: BaseException) -> ConfigurationError:
    if isinstance(error, SystemExit):
        return ConfigurationError(
            f"module {module!r} ended while it was imported (SystemExit: {error}): "
            "put what only a script does under  if __name__ == '__main__':"
        )
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{_place(error.__traceback__)}: {error}")
    what = " ".join(traceback.format_exception_only(error)[-1].split())
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        place = _place(error.__traceback__)
    return ConfigurationError(
        f'module {module!r} cannot be imported: {what} ({place}): see  python -c "import {module}"'
    )


def _place(trace: TracebackType | None) -> str:
    """The file and line where a mistake of theirs was noticed by us."""
    package = str(Path(__file__).parent.parent)
    others = (package, importlib.__file__, "<frozen")
    frames = traceback.extract_tb(trace)
    theirs = [frame for frame in frames if not frame.filename.startswith(others)]
    frame = (theirs or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _named(module: ModuleType, attribute: str) -> Conveyor:
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            apps = _apps(module)
            hint = f": did you mean {nearest(name, apps)!r}?" if apps else ""
            raise ConfigurationError(f"module {module.__name__!r} has no {attribute!r}{hint}")
        found = getattr(found, name)
    if not isinstance(found, Conveyor):
        raise ConfigurationError(
            f"{module.__name__}:{attribute} is no Conveyor but {found!r:.50}{_instead(module)}"
        )
    return found


def _only(module: ModuleType) -> Conveyor:
    apps = _apps(module)
    if "app" in apps:
        return apps["app"]
    if not apps:
        where = getattr(module, "__file__", None) or f"package {module.__name__!r}"
        raise ConfigurationError(
            f"there is no app in {where}: create one there, "
            f"app = Conveyor({module.__name__.rpartition('.')[2]!r}), or name another module"
        )
    if len({id(app) for app in apps.values()}) > 1:
        raise ConfigurationError(
            f"module {module.__name__!r} has several apps ({', '.join(apps)}){_instead(module)}"
        )
    return next(iter(apps.values()))


def _apps(module: ModuleType) -> dict[str, Conveyor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Conveyor)}


def _instead(module: ModuleType) -> str:
    choices = " or ".join(f"-A {module.__name__}:{name}" for name in _apps(module))
    return f": say {choices}" if choices else ""
