"""The Lua scripts: one state transition each, put together from `scripts/*.lua` and `scripts/lib`.

A script's header names the libraries it USES; they are put between its first line (the `#!lua`
flags) and its body. What follows each library stands in a function of its own: every run of a
script makes all its functions anew, and to make one Lua walks through all locals of the same
function that others use already. Nested, the start of `settle` takes a third less time.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

_FOLDER: Final = resources.files("conveyor.broker") / "scripts"
_USES = re.compile(r"^-- USES +(.+)$", re.MULTILINE)
_NEST, _END_NEST = "return (function()", "end)()"


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server is given it.

    Attributes:
        name: Its file's name without the ending.
        source: The whole text.
        sha: By which the server knows it.
    """

    name: str
    source: str
    sha: str


def load_script(name: str) -> Script:
    """Reads a script and the libraries it uses."""
    shebang, _, body = (_FOLDER / f"{name}.lua").read_text().partition("\n")
    uses = _USES.search(body)
    libraries = uses.group(1).split() if uses else []
    parts = [_read_library(library) + _NEST for library in libraries]
    source = "\n".join([shebang, *parts, body, *[_END_NEST] * len(parts)])
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def _read_library(name: str) -> str:
    return (_FOLDER / "lib" / f"{name}.lua").read_text()
