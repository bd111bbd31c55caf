import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parted import records, values
from PIL import Image

from dft_mm.config import SourceConfig
from dft_mm.data.reading.files import find_files, read, split
from dft_mm.data.records import BadRow
from dft_mm.errors import InputError

ROWS = [
    {
        "id": number,
        "image": {"bytes": bytes([number % 256]) * number, "path": None if number % 3 else f"{number}.png"},
        "messages": [{"role": "user", "content": f"q {number}\n"}] * (number % 4),
        "score": None if number % 5 else number / 7,
    }
    for number in range(300)
]


def table():
    return pa.Table.from_pylist(ROWS)


def write_parquet(path, group):
    pq.write_table(table(), path, row_group_size=group)


def write_file(path, group):
    with pa.ipc.new_file(path, table().schema) as sink:
        sink.write_table(table(), max_chunksize=group)


def write_stream(path, group):
    with pa.ipc.new_stream(path, table().schema) as sink:
        sink.write_table(table(), max_chunksize=group)


@pytest.mark.parametrize("write", [write_parquet, write_file, write_stream])
@pytest.mark.parametrize("group", [1, 7, 64, 300])
@pytest.mark.parametrize("size", [1, 13, 64, 299, 1000])
def test_tables_are_what_pyarrow_wrote(tmp_path, write, group, size):
    write(tmp_path / "a", group)  # no name: the content decides
    found = records(tmp_path / "a", tmp_path / "work", size)
    assert [value for *_, value in found] == ROWS
    assert {line for line, *_ in found} == {None}


def test_long_row_groups_are_unpacked_once(tmp_path):
    path, work = tmp_path / "a.parquet", tmp_path / "work"
    write_parquet(path, 300)
    parts = split(path, 10, work)
    (unpacked,) = work.iterdir()
    assert {part.path for part in parts} == {path}
    assert {part.real for part in parts} == {unpacked}
    before = unpacked.stat()
    assert split(path, 10, work) == parts
    assert unpacked.stat() == before
    assert {part.real for part in split(path, 100, work)} == {path}


def test_a_saved_data_set_is_read_with_its_pictures_as_they_are(tmp_path):
    pictures = [Image.fromarray(np.full((3, 4, 3), 60 * number, np.uint8)) for number in range(5)]
    made = datasets.Dataset.from_dict({"problem": list("abcde"), "image": pictures})
    made = made.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": made, "test": made.select([4, 1])}).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "test": 1}
    )
    for name, expected in (("train", made), ("test", made.select([4, 1]))):
        files = find_files(SourceConfig(path=str(tmp_path / "saved"), split=name))
        assert len(files) == (3 if name == "train" else 1)
        undecoded = expected.cast_column("image", datasets.Image(decode=False))
        assert [row for file in files for row in values(file, tmp_path)] == list(undecoded)
    alone = find_files(SourceConfig(path=str(tmp_path / "saved" / "test")))
    assert [row["problem"] for row in values(alone[0], tmp_path)] == ["e", "b"]
    with pytest.raises(InputError, match="no split 'dev'; there are train, test"):
        find_files(SourceConfig(path=str(tmp_path / "saved"), split="dev"))


def test_a_damaged_text_costs_its_row_alone(tmp_path):
    texts = pa.StringArray.from_buffers(3, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc"))
    damaged = pa.table({"x": texts, "y": [1, 2, 3]})
    pq.write_table(damaged, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", damaged.schema) as sink:
        sink.write_table(damaged)
    for name in ("a.parquet", "a.arrow"):
        assert values(tmp_path / name, tmp_path, 9) == [{"x": "a", "y": 1}, "not_utf8", {"x": "c", "y": 3}]


def test_offsets_that_point_elsewhere_are_never_followed(tmp_path):
    offsets = pa.array([0, 1, 2**30, 3], pa.int32()).buffers()[1]
    damaged = pa.table({"x": pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"abc"))})
    with pa.ipc.new_file(tmp_path / "a.arrow", damaged.schema) as sink:
        sink.write_table(damaged)
    found = [record.value for part in split(tmp_path / "a.arrow", 9, tmp_path) for record in read(part)]
    assert found[0] == {"x": "a"}
    assert [isinstance(value, BadRow) for value in found] == [False, True, True]


@pytest.mark.parametrize("write", [write_parquet, write_file, write_stream])
def test_a_file_that_breaks_off_is_refused_by_its_name(tmp_path, write):
    write(tmp_path / "whole", 64)
    content = (tmp_path / "whole").read_bytes()
    for cut in (40, len(content) // 2, len(content) - 100):
        (tmp_path / "a.arrow").write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"a\.arrow cannot be read"):
            values(tmp_path / "a.arrow", tmp_path)


def test_a_damaged_page_is_refused_by_the_files_name(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet", write_page_checksum=True, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[content.index(b"q 7\n")] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    for rows in (100, 10):
        with pytest.raises(InputError, match=r"a\.parquet cannot be read"):
            values(tmp_path / "a.parquet", tmp_path / "work", rows)
        assert not list((tmp_path / "work").glob("*"))


def test_tables_of_no_rows_or_twice_the_same_column_are_refused(tmp_path):
    for name, made, message in (
        ("empty", table().slice(0, 0), "is empty"),
        ("twice", pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]), "several columns of the name 'x'"),
    ):
        pq.write_table(made, tmp_path / f"{name}.parquet")
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", made.schema) as sink:
            sink.write_table(made)
        for kind in ("parquet", "arrow"):
            with pytest.raises(InputError, match=message):
                split(tmp_path / f"{name}.{kind}", 10, tmp_path)


def test_something_else_under_the_name_of_a_table_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"does not begin as \.parquet files do"):
        split(tmp_path / "a.parquet", 10, tmp_path)
