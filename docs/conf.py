"""How Sphinx builds these pages: `nox -s docs`, or `sphinx-build -W -n docs docs/_build`.

The reference is made from the package itself: one page a group of `conveyor.__all__`, each name
with its docstring, so a name that is exported is described and none is forgotten.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conveyor
from conveyor import errors

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
#: Methods of exported classes that are for the package itself.
INTERNAL = "   :exclude-members: pack, plan, unpack"

project = "Conveyor"
author = "The Conveyor authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Conveyor"
html_show_copyright = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
# `name` in a docstring is code, and a link where there is something to link to.
default_role = "py:obj"
# What is exported must be found wherever it is named; what else there is has no page.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", rf"(?!conveyor\.(\w+\.)*({'|'.join(conveyor.__all__)})$).*"),
]
# Python's `type` in a signature is taken for attributes of that name, of which there are several.
suppress_warnings = ["ref.python"]


def setup(app: Sphinx) -> None:
    """Have the reference written before pages are read."""
    app.connect("builder-inited", lambda _: write_reference(HERE / "reference"))
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
    app.connect("autodoc-process-signature", drop_what_users_never_write)


def keep_colons(_: Sphinx, what: str, *details: Any) -> None:
    """Napoleon takes what is before a colon in the first line on a field for its type.

    So that line becomes one that says nothing: an escaped space.
    """
    lines = details[-1]
    if what in ("attribute", "data", "property") and lines:
        lines.insert(0, "\\ ")


def drop_what_users_never_write(
    _: Sphinx, what: str, name: str, thing: Any, __: object, signature: str | None, *___: Any
) -> tuple[str, None] | None:
    """A class that does not describe its arguments is made by others; so are most errors."""
    written = what not in ("class", "exception") or "Args:" in (inspect.getdoc(thing) or "")
    return None if written or not signature else ("", None)


def write_reference(folder: Path) -> None:
    """Write a page for each group of exports; one that has not changed is left alone."""
    folder.mkdir(exist_ok=True)
    pages = {slug(group): page(group, names) for group, names in groups().items()}
    pages["settings"] = page("Settings", ["settings.Settings"])
    for stale in {path.stem for path in folder.glob("*.md")} - set(pages):
        (folder / f"{stale}.md").unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def groups() -> dict[str, list[str]]:
    """The names of `conveyor.__all__`, by the comment above them."""
    source = inspect.getsource(conveyor)
    found: dict[str, list[str]] = {}
    for line in source[source.index("__all__ = [") :].splitlines()[1:]:
        text = line.strip()
        if text.startswith("]"):
            break
        if text.startswith("#"):
            found[text.strip("# ")] = []
        else:
            found[list(found)[-1]].append(ast.literal_eval(text.rstrip(",")))
    return found


def slug(group: str) -> str:
    """A group's file name."""
    return re.sub(r"\W+", "-", group.lower())


def page(title: str, names: list[str]) -> str:
    """A page that has autodoc describe some names of the package."""
    body = "\n\n".join(directive(name) for name in names)
    tree = f"```text\n{inspect.getdoc(errors)}\n```\n\n" if title == "Errors" else ""
    return f"# {title}\n\n{tree}```{{eval-rst}}\n{body}\n```\n"


def directive(name: str) -> str:
    """What has autodoc describe one name."""
    thing: Any = conveyor
    for part in name.split("."):
        thing = getattr(thing, part)
    if not inspect.isclass(thing):
        kind = "autofunction" if callable(thing) else "autodata"
        return f".. {kind}:: conveyor.{name}"
    is_error = issubclass(thing, BaseException)
    lines = [f".. auto{'exception' if is_error else 'class'}:: conveyor.{name}", "   :members:"]
    if is_error:
        lines.append("   :show-inheritance:")
    elif issubclass(thing, (Enum, tuple)) or is_dataclass(thing):
        lines += [INTERNAL] + ["   :undoc-members:"] * ("Attributes:" not in thing.__doc__)
    else:
        lines += ["   :inherited-members:", INTERNAL]
    return "\n".join(lines)
