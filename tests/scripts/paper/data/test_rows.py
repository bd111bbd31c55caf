"""Rows that are drawn from files."""

import json
import tracemalloc
from collections import Counter

import pytest

from dft_mm.errors import InputError
from scripts.paper.data.rows import count_rows, draw, read_rows


def taken(folder, files, wanted, columns=("number",)):
    paths = [folder / name for name in files]
    return [row["number"] for row in read_rows(paths, [count_rows(path) for path in paths], wanted, columns)]


def numbered(count):
    return [{"number": number, "text": "x" * (number % 7)} for number in range(count)]


def test_a_draw_is_a_function_of_seed_and_number_of_rows():
    drawn = draw(300, 1000, 0)
    assert drawn == draw(300, 1000, 0)
    assert drawn != draw(300, 1000, 1)
    assert len(set(drawn)) == 300
    assert drawn == sorted(drawn)
    assert drawn[0] >= 0
    assert drawn[-1] < 1000
    assert draw(7, 7, 3) == list(range(7))


def test_a_draw_stays_what_it_was():
    """So that a data set made by one version is the one that another makes."""
    assert draw(5, 100, 0) == [44, 61, 68, 72, 92]


def test_every_row_is_as_likely_to_be_drawn():
    times = Counter(number for seed in range(400) for number in draw(10, 50, seed))
    assert len(times) == 50
    assert all(40 <= count <= 125 for count in times.values())  # 80 expected, standard deviation 8


@pytest.mark.parametrize(
    "files", [("a.parquet",), ("a.parquet", "b.parquet", "c.parquet"), ("a.jsonl",), ("a.jsonl", "b.jsonl")]
)
def test_the_same_rows_come_from_any_sharding(place, files):
    wanted = draw(400, 1500, 0)
    folder = place(files, numbered(1500))
    assert taken(folder, files, wanted) == wanted


def test_a_table_is_read_no_further_than_its_wanted_columns(place):
    folder = place(["a.parquet"], numbered(5))
    assert list(read_rows([folder / "a.parquet"], [5], [1, 3], ["text"])) == [{"text": "x"}, {"text": "xxx"}]


def test_blank_lines_are_no_rows_and_line_separators_end_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"number": "a\u2028b"}\n\n{"number": 1}\n', encoding="utf-8")
    assert taken(tmp_path, ["a.jsonl"], [0, 1]) == ["a\u2028b", 1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"number": 1}\n{"number": \n', "line 2 is no JSON"),
        ("a.jsonl", b"\n[1]\n", "line 2 is a list, not an object"),
        ("a.jsonl", b'{"other": 1}\n', "line 1 has no 'number'; there are other"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        taken(tmp_path, [name], range(2))
    assert str(path) in str(error.value)


def test_a_table_without_a_column_is_named(place):
    folder = place(["a.parquet"], numbered(3))
    with pytest.raises(InputError, match="it has no 'problem'; there are number, text"):
        list(read_rows([folder / "a.parquet"], [3], [0], ["problem"]))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"number": number, "text": "x" * 2000}) + "\n")
    tracemalloc.start()
    found = sum(1 for _ in read_rows([path], [20_000], draw(2_000, 20_000, 0), ["number"]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 2_000
    assert peak < 4 << 20 < path.stat().st_size
