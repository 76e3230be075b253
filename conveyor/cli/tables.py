"""Tables on a terminal, and plain columns in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from conveyor.escaping import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Wide enough that nothing is cut off where no terminal sets a width.
_PIPE_WIDTH = 10_000


def make_console() -> Console:
    """A console on stdout that prints text as it is: no markup, no guessing at what it means."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def make_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> Table:
    """A table of values; numbers stand to the right.

    Args:
        console: Where it will be printed.
        title: Above it.
        columns: The headings.
        rows: One value a column.
    """
    rows = [list(row) for row in rows]
    table = Table(
        title=title if console.is_terminal else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    unbounded = console.options.update(max_width=_PIPE_WIDTH)
    if console.measure(table, options=unbounded).maximum > console.width:
        table.padding = 0  # before words are broken
    return table


def shown(value: object) -> str:
    """A value as a table has it; control characters are escaped: others may have written it."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return escaped(text)
