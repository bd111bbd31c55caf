import csv
import random

import pandas as pd
import pytest
from parted import records, values, write

from dft_mm.data.reading.files import split
from dft_mm.errors import InputError

NAMES = {",": "a.csv", "\t": "a.tsv"}


def random_table(seed):
    """Cells full of what a careless reader stumbles over."""
    rng = random.Random(seed)
    alphabet = ',\t;"\n\r|{}[]\\ ab\u00e9\u2028'
    cells = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(8))) for _ in range(90)]
    return [dict(zip("xyz", cells[at : at + 3])) for at in range(0, 90, 3)]


@pytest.mark.parametrize("delimiter", NAMES)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_tables_are_what_other_writers_wrote(tmp_path, delimiter, quoting, ending):
    for seed in range(5):
        rows = random_table(seed)
        if ending == "\n" and quoting == csv.QUOTE_MINIMAL:  # csv then leaves "\r" unquoted, and refuses it
            rows = [{name: cell.replace("\r", "") for name, cell in row.items()} for row in rows]
        path = tmp_path / NAMES[delimiter]
        pd.DataFrame(rows).to_csv(path, sep=delimiter, quoting=quoting, lineterminator=ending, index=False)
        for size in (1, 4, 100):
            assert values(path, tmp_path, size) == rows


def test_tables_are_what_pandas_reads(tmp_path):
    path = write(tmp_path, '\ufeffid,text\n1,"a ""b"", c"\n\n007,\n" 3 ","\n\n"\n', "a.csv")
    expected = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    assert values(path, tmp_path) == expected
    assert [row["id"] for row in expected] == ["1", "007", " 3 "]


def test_a_row_begins_on_its_physical_line(tmp_path):
    text = '\n"id\nname",b\r\n1,"x\n\ny"\n\n\n2,z\n3,"\n"\n4,'
    for size in (1, 2, 9):
        found = records(write(tmp_path, text, "a.csv"), tmp_path, size)
        assert [(line, value["id\nname"]) for line, _, value in found] == [(4, "1"), (9, "2"), (10, "3"), (12, "4")]


def test_a_cell_may_be_as_long_as_a_picture(tmp_path):
    cell = "AB,\n" * 500_000
    csv.field_size_limit(131072)
    path = write(tmp_path, f'index\timage\n0\t"{cell}"\n1\tx\n', "a.tsv")
    assert values(path, tmp_path, 1) == [{"index": "0", "image": cell}, {"index": "1", "image": "x"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,2,3", "columns"), (b"1", "columns"), (b"  ", "columns"), (b'1,"2"3', "broken_csv"),
        (b"1,\xff", "not_utf8"),
        (b'\xe9,"a\nb"', "not_utf8"), (b"1,a\rb", "broken_csv"),
    ],
)  # fmt: skip
def test_a_damaged_row_costs_itself_alone(tmp_path, row, reason):
    for place in range(3):
        content, expected = [b"1,2"] * 2, [{"a": "1", "b": "2"}] * 2
        content.insert(place, row)
        expected.insert(place, reason)
        for size in (1, 2, 9):
            assert values(write(tmp_path, b"\n".join([b"a,b", *content]), "a.csv"), tmp_path, size) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "is empty"),
        ("a,,c\n1,2,3\n", "no name for column 2 of 3; name every column"),
        (",a\n0,1\n", "no name for column 1"),
        ("a, \n0,1\n", "no name for column 2"),
        ("a,b,a\n1,2,3\n", "several columns of the name 'a'"),
        ("a;b;c\n1;2;3\n", "separated by ';'; save it with ','"),
        ("a\tb\n1\t2\n", r"separated by '\\t'"),
        (b"a\xff,b\n1,2\n", "header that cannot be read"),
        ('"a"x,b\n1,2\n', "header that cannot be read"),
        ("a,b\r1,2\r3,4\r", "header that cannot be read"),
        ('a,b\n1,2\n3,"4\n5,6\n', r"\(line 3\) .*a row has a quote that nothing closes"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_table_that_cannot_be_read_names_itself_and_the_way_out(tmp_path, content, message):
    path = write(tmp_path, content, "a.csv")
    with pytest.raises(InputError, match=message) as error:
        split(path, 10, tmp_path)
    assert str(path) in str(error.value)


def test_rows_of_json_are_json_under_the_name_of_a_table(tmp_path):
    assert values(write(tmp_path, '{"a": 1}\n{"a": 2}\n', "a.csv"), tmp_path) == [{"a": 1}, {"a": 2}]
