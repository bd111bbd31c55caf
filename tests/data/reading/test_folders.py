import shutil

import datasets
import pytest
from parted import values, write

from dft_mm.config import SourceConfig
from dft_mm.data.reading.files import find_files
from dft_mm.errors import InputError


def found(path, work, **more):
    return find_files(SourceConfig(path=str(path), **more))


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')


def names(path, work, **more):
    return [str(file.relative_to(path)) for file in found(path, work, **more)]


def test_a_file_is_itself_and_a_pattern_its_files_in_order(tmp_path):
    make(tmp_path, "b.jsonl", "a.jsonl", "c.json", "sub/d.jsonl")
    assert found(tmp_path / "c.json", tmp_path) == [tmp_path / "c.json"]
    assert found(tmp_path / "*.jsonl", tmp_path) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert len(found(tmp_path / "**" / "*.jsonl", tmp_path)) == 3
    make(tmp_path, "odd[1].jsonl")
    assert found(tmp_path / "odd[1].jsonl", tmp_path) == [tmp_path / "odd[1].jsonl"]


def test_a_path_is_relative_to_where_one_is(tmp_path, monkeypatch):
    make(tmp_path, "data/a.jsonl", "data/b.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(map(str, found("data", tmp_path))) == ["data/a.jsonl", "data/b.jsonl"]
    assert list(map(str, found("data/?.jsonl", tmp_path))) == ["data/a.jsonl", "data/b.jsonl"]
    assert found("~/data/a.jsonl", tmp_path) == [tmp_path / "data/a.jsonl"]


def test_a_folder_is_its_files_of_rows_and_not_what_lies_beside_them(tmp_path):
    make(tmp_path, "part-1.parquet", "part-0.parquet", "README.md", "a.png", "dataset_info.json", ".hidden.parquet")
    make(tmp_path, "images/x.png", "more/y.parquet")
    assert names(tmp_path, tmp_path) == ["part-0.parquet", "part-1.parquet"]


def test_a_folder_of_folders_is_their_files(tmp_path):
    make(tmp_path, "README.md", "data/b.parquet", "data/a.parquet", ".git/c.parquet", ".git/d.json")
    assert names(tmp_path, tmp_path) == ["data/a.parquet", "data/b.parquet"]
    make(tmp_path, "1/data.json", "1/logic_form.json", "2/x/data.json", "1/image.png")
    assert names(tmp_path, tmp_path) == ["1/data.json", "2/x/data.json"]


def test_splits_that_names_tell_apart_are_never_mixed(tmp_path):
    make(tmp_path, "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet")
    make(tmp_path, "data/validation-0.parquet")
    assert names(tmp_path, tmp_path) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert names(tmp_path, tmp_path, split="test") == ["data/test-00000.parquet"]
    assert names(tmp_path, tmp_path, split="val") == ["data/validation-0.parquet"]
    with pytest.raises(InputError, match="no split 'mini'; there are test, train, validation"):
        found(tmp_path, tmp_path, split="mini")
    make(tmp_path, "data/extra.parquet")
    with pytest.raises(InputError, match=r"extra\.parquet may be any's"):
        found(tmp_path, tmp_path)
    (tmp_path / "data/extra.parquet").unlink()
    make(tmp_path, "data/train-test.parquet")
    with pytest.raises(InputError, match=r"train-test\.parquet may be any's"):
        found(tmp_path, tmp_path)


def test_a_single_split_is_taken_whatever_its_name(tmp_path):
    make(tmp_path, "test/1/data.json", "test/2/data.json")
    assert len(found(tmp_path, tmp_path)) == 2


def test_files_that_map_left_in_a_cache_are_not_read_twice(tmp_path):
    make(tmp_path, "cache-0123abcd.arrow", "tmp1x2y.arrow", "gsm8k-train.arrow")
    assert names(tmp_path, tmp_path) == ["gsm8k-train.arrow"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.json", "b.jsonl"], r"several kinds \(1 \.json, 1 \.jsonl\); name one by a pattern"),
        (["a.csv", "b.xlsx"], r"several kinds"),
        (["a.jsonl", "a.jsonl.gz"], "a packed and unpacked; leave one out"),
        (["a.xlsx"], r"a\.xlsx: \.xlsx files are not read, save the sheet as CSV; known are JSONL"),
        (["a.png", "README.md"], "a folder without files of rows; known are JSONL"),
        ([], "a folder without files of rows"),
    ],
)
def test_a_folder_that_is_no_rows_says_why(tmp_path, files, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder, *files)
    with pytest.raises(InputError, match=message) as error:
        found(folder, tmp_path)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.jsonl", "not found: gone.jsonl"),
        ("data/gone.jsonl", "not found: data/gone.jsonl"),
        ("data/gone", "not found: data/gone"),
        ("org/gone.parquet", "not found: org/gone.parquet"),
        ("a/b/c", "not found: a/b/c"),
        ("data/*.csv", r"data/\*\.csv matches no file"),
        ("data/*", r"several kinds"),
        ("data/a.zip", r"data/a\.zip: \.zip files are not read, unpack it"),
        ("data/s.xlsx", r"data/s\.xlsx: \.xlsx files are not read, save the sheet as CSV"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_a_path_to_nothing_says_so(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("a path is no hub name"))
    make(tmp_path, "data/a.zip", "data/s.xlsx", "data/a.jsonl")
    with pytest.raises(InputError, match=message):
        found(path, tmp_path)


def test_a_damaged_description_of_a_data_set_is_refused(tmp_path):
    write(tmp_path, '{"_data_files": [', "state.json")
    with pytest.raises(InputError, match=r"damaged state\.json"):
        found(tmp_path, tmp_path)


def test_a_hub_name_is_fetched_into_the_cache_and_read_from_there(tmp_path, monkeypatch):
    write(tmp_path, "".join(f'{{"a": {number}}}\n' for number in range(5)), "rows.jsonl")
    load = datasets.load_dataset

    def fetched(name, subset, split, keep_in_memory):
        assert (name, subset, split, keep_in_memory) == ("org/name", "main", "test", False)
        files = {"test": str(tmp_path / "rows.jsonl")}
        return load("json", data_files=files, split=split, cache_dir=str(tmp_path / "hub"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", fetched)
    files = found("org/name", tmp_path, subset="main", split="test")
    assert [row for file in files for row in values(file, tmp_path)] == [{"a": number} for number in range(5)]
    with pytest.raises(InputError, match=r"no split 'train\[:10%\]'; name a whole one, and cut it by `limit`"):
        found("org/name", tmp_path, split="train[:10%]")


def test_a_hub_name_that_cannot_be_fetched_says_why(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"org/name is not here.*Couldn't reach the Hub.*mend the path"):
        found("org/name", tmp_path)


def test_real_folders_of_one_row_a_file(tmp_path, shared):
    """Counts as the folder's own SOURCE.md states them."""
    for name, count in (("train_iconqa", 90), ("train_geometry3k", 10)):
        files = found(shared / "data" / name, tmp_path)
        rows = [row for file in files for row in values(file, tmp_path)]
        assert len(files) == len(rows) == count
        assert all({"answer"} <= set(row) for row in rows)
    shutil.copytree(shared / "data/train_iconqa/choose_img", tmp_path / "test/choose_img")
    shutil.copytree(shared / "data/train_iconqa/choose_txt", tmp_path / "train/choose_txt")
    assert len(found(tmp_path, tmp_path)) == 30
