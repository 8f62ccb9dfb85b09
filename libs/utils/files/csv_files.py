"""Read CSV files as tables of strings; the caller converts them.

    table = read_csv("EPIC_100_video_info.csv", required=("video_id", "duration", "fps"), what="table of videos")
    for line, row in numbered_rows(table):
        row["video_id"]                       # as in the file: NA, None and 007 are not converted
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from libs.core.errors import UserError, article, nearest
from libs.core.files import read_text

if TYPE_CHECKING:  # functions import pandas, because that takes as long as importing all of libs
    import pandas


def read_csv(path: str | os.PathLike, *, required: Sequence[str], optional: Sequence[str] = (), what: str, delimiters: str = ",",
             strip: bool = False, column_name: Callable[[str], str] = str.strip, remedy: Callable[[str], str] | None = None,
             text: str | None = None) -> pandas.DataFrame:
    """The required columns, and the optional ones that the file has, as Python strings; the index holds line numbers.

    what: the kind of file, for messages; delimiters: candidates, the most frequent one in the first line is used; strip: strip
    cells, and skip rows of blank cells; column_name: applied to every name in the first line, whose case does not matter;
    remedy: missing column -> remedy;
    text: the contents, if already read (by default the file is read as UTF-8, with or without a byte order mark).

    Empty lines are skipped.  Raises UserError with the file, the line or column, and the remedy for missing or duplicate columns,
    a row with another number of cells than the first, and unclosed quotes.

    `csv` splits the lines, not `pandas.read_csv`: its C engine silently fills up short rows, and its Python engine takes twice as
    long and does not report the line of an unclosed quote.
    """
    import pandas

    text = read_text(path, what) if text is None else text
    delimiter = max(delimiters, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[int] = []
    cells: list[str] = []  # of all rows: with a list per row, garbage collection takes as long as reading
    try:
        header = _in_our_case([column_name(name) for name in next(reader, [])], (*required, *optional))
        for name in required:
            if name not in header:
                found = f"it has {', '.join(header)}" if any(header) else "the file is empty"
                advice = remedy(name) if remedy else f"expected {article(what)} with the columns {', '.join(required)}"
                raise UserError(f"{path}: the first line lacks the column {name!r}{nearest(name, header)} ({found}); {advice}")
        columns = [name for name in dict.fromkeys((*required, *optional)) if name in header]
        if twice := [name for name in columns if header.count(name) > 1]:
            raise UserError(f"{path}: the first line names the column {twice[0]!r} twice; remove one, or rename it")
        for row in reader:
            row = [cell.strip() for cell in row] if strip else row
            if not row or (strip and not any(row)):
                continue
            if len(row) != len(header):
                raise UserError(f"{path}: line {reader.line_num}: {len(row)} cells, the first line has {len(header)}; correct "
                                "it, or get the complete file")
            lines.append(reader.line_num)
            cells += row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not valid CSV ({error}); expected {article(what)}") from error
    values = np.array(cells, dtype=object).reshape(len(lines), len(header))
    return pandas.DataFrame(values, index=lines, columns=header)[columns]


def _in_our_case(header: list[str], wanted: Sequence[str]) -> list[str]:
    """The names of the first line; one that differs from a wanted column in case only (Video) is that column (video)."""
    ours = {name.casefold(): name for name in wanted if name not in header}
    return [name if name in wanted else ours.get(name.casefold(), name) for name in header]


def to_number(value: Any) -> float:
    """A number, or the text of one, as a float; ValueError or TypeError for anything else (true, 1_000)."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # Python reads 1_0 as 10
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def numbered_rows(table: pandas.DataFrame) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row of a table of `read_csv`."""
    for line, *cells in table.itertuples(name=None):
        yield line, dict(zip(table.columns, cells, strict=True))
