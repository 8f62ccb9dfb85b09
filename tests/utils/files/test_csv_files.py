"""CSV files as tables of text: nothing is guessed, and whatever does not fit is refused with its place."""
from __future__ import annotations

from pathlib import Path

import pytest

from libs.core.errors import UserError
from libs.utils.files.csv_files import numbered_rows, read_csv, to_number


def read(tmp_path: Path, content: str, **options):
    (tmp_path / "a.csv").write_bytes(content.encode())
    return read_csv(tmp_path / "a.csv", **{"required": ("id", "label"), "what": "table", **options})


def test_cells_stay_as_they_are_written(tmp_path):
    content = "\ufeff label ,more,id\nNone,,NA\n\n1e5,x, 007 \n\"a\nb\",\"x\"\"y\",true\nnan,,\n"
    table = read(tmp_path, content, optional=("gone",))
    assert list(numbered_rows(table)) == [(2, {"id": "NA", "label": "None"}), (4, {"id": " 007 ", "label": "1e5"}),
                                 (6, {"id": "true", "label": "a\nb"}), (7, {"id": "", "label": "nan"})]
    assert all(type(cell) is str for column in table for cell in table[column])


def test_numbers():
    assert [to_number(value) for value in (" 1.5 ", "1e3", 7)] == [1.5, 1000.0, 7.0]
    for wrong in ("1_0", "", "1,5", "ten", True):
        with pytest.raises(ValueError):
            to_number(wrong)


def test_no_rows(tmp_path):
    table = read(tmp_path, "id,label\n")
    assert list(table.columns) == ["id", "label"]
    assert list(numbered_rows(table)) == []


def test_delimiter_spaces_and_names(tmp_path):
    table = read(tmp_path, "my-id;label;x,y\r\n 1 ; a ;\r\n ;;\r\n  \r\n2;b;\r\n", delimiters=",;\t", strip=True,
                 required=("my_id",), optional=("label",), column_name=lambda name: name.replace("-", "_"))
    assert list(numbered_rows(table)) == [(2, {"my_id": "1", "label": "a"}), (5, {"my_id": "2", "label": "b"})]


def test_the_case_of_column_names_does_not_matter(tmp_path):
    assert list(numbered_rows(read(tmp_path, "ID,Label\n1,a\n"))) == [(2, {"id": "1", "label": "a"})]
    assert list(numbered_rows(read(tmp_path, "ID,id,label\n1,2,a\n"))) == [(2, {"id": "2", "label": "a"})]
    with pytest.raises(UserError, match="names the column 'id' twice"):
        read(tmp_path, "ID,Id,label\n1,2,a\n")


def test_text_that_was_read_before(tmp_path):
    table = read_csv(tmp_path / "gone.csv.gz", required=("id",), what="table", text="id\n1\n")
    assert table["id"].tolist() == ["1"]


@pytest.mark.parametrize(("content", "parts"), [
    ("id,lable\n1,a\n", ["'label'", "'lable'", "expected a table with the columns id, label"]),
    ("", ["'id'", "empty", "expected a table"]),
    ("id,label,id\n1,a,2\n", ["'id'", "twice", "remove one"]),
    ("id,label\n1,a\n\n2\n", ["line 4", "1 cells", "has 2"]),
    ("id,label\n1,a,\n", ["line 2", "3 cells", "has 2"]),
    ('id,label\n1,"a\n', ["line 2", "not valid CSV", "expected a table"]),
    ('id,label\n1,"a"b\n', ["line 2", "not valid CSV"])])
def test_what_does_not_fit_is_refused(tmp_path, content, parts):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert all(part in str(caught.value) for part in ["a.csv", *parts]), caught.value


def test_columns_that_nobody_asks_for_may_repeat(tmp_path):
    assert list(numbered_rows(read(tmp_path, "id,,label,\n1,x,a,y\n"))) == [(2, {"id": "1", "label": "a"})]
