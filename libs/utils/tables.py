"""`format_table`: all tables that tools print.

Not pandas: `DataFrame.to_string` cannot left-align single columns, `to_markdown` needs another package, and the import takes
0.35 s and 42 MB for a table of ten rows.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def format_table(rows: Iterable[Sequence[Any]], columns: Sequence[str], *, left: Collection[str] = (), digits: int = 2,
                 markdown: bool = False) -> str:
    """The lines of a table under its column names, without a line end after the last.

    Floats get `digits` decimals, None becomes "-", all other values `str(value)`; pass text for another format.
    The first column and those named in `left` are left-aligned, the others right-aligned.
    markdown: a Markdown table instead, `|` in a cell escaped.
    """
    cells = [list(columns), *([_cell(value, digits) for value in row] for row in rows)]
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
        cells.insert(1, ["---"] * len(columns))
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    pad = [str.ljust if i == 0 or name in left else str.rjust for i, name in enumerate(columns)]
    return "\n".join("  ".join(p(cell, w) for p, cell, w in zip(pad, line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
