"""CSV files as tables of text; the caller converts.

    table = read_csv("EPIC_100_video_info.csv", required=("video_id", "duration", "fps"), what="table of videos")
    for line, row in numbered_rows(table):
        row["video_id"]                       # as written: NA, None and 007 stay what they are
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import read_text

if TYPE_CHECKING:  # importing pandas takes as long as all of libs: functions import it
    import pandas


def read_csv(path: str | os.PathLike, *, required: Sequence[str], optional: Sequence[str] = (), what: str, delimiters: str = ",",
             strip: bool = False, column_name: Callable[[str], str] = str.strip, remedy: Callable[[str], str] | None = None,
             text: str | None = None) -> pandas.DataFrame:
    """The required columns, and the optional ones that the file has, as Python strings; the index holds line numbers.

    what: the kind of file, for messages; delimiters: the one that is most frequent in the first line is taken; strip: cells lose
    their outer spaces, and rows of blank cells are skipped; column_name: applied to every name in the first line; remedy: missing
    column -> what to do; text: the contents, if the caller has read them (UTF-8, a byte order mark is allowed, otherwise).

    Empty lines are skipped.  Raises UserError naming the file, the line or column, and the remedy: for a missing column, one
    that is there twice, a row of another length than the first, and quotes that do not close.

    The lines are split by `csv`, not by `pandas.read_csv`: its C engine fills short rows up without a word, and its Python engine
    takes twice as long and names no line for a broken quote.
    """
    import pandas

    text = read_text(path, what) if text is None else text
    delimiter = max(delimiters, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[int] = []
    cells: list[str] = []  # of all rows: a list per row would cost as much time in garbage collection as the reading
    try:
        header = [column_name(name) for name in next(reader, [])]
        for name in required:
            if name not in header:
                found = f"it has {', '.join(header)}" if any(header) else "the file is empty"
                advice = remedy(name) if remedy else f"expected a {what} with the columns {', '.join(required)}"
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
        raise UserError(f"{path}: line {reader.line_num}: not valid CSV ({error}); expected a {what}") from error
    values = np.array(cells, dtype=object).reshape(len(lines), len(header))
    return pandas.DataFrame(values, index=lines, columns=header)[columns]


def numbered_rows(table: pandas.DataFrame) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row of a table of `read_csv`."""
    for line, *cells in table.itertuples(name=None):
        yield line, dict(zip(table.columns, cells, strict=True))
