"""What all scripts of data sets do: write whole files with a manifest, make nothing twice, and tell damage."""

import hashlib
import json
from dataclasses import replace

import pytest

from scripts.paper.data.derive import Derived, each, main
from scripts.paper.data.sources import Hub

FILES = ("data/one.parquet", "data/two.parquet")
TOY = Derived(
    name="toy",
    folder="data/toy",
    file="toy.jsonl",
    source=Hub("org/toy", FILES, "c" * 40),
    columns=("number",),
    convert=each(lambda row: "odd" if row["number"] % 2 else row),
)
ROWS = [{"number": number} for number in range(100)]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def make(place, tmp_path, capsys):
    """Run the toy's script on its files: (exit code, standard output, standard error)."""
    folder = place(FILES, ROWS)

    def make(*words, derived=TOY):
        code = main(derived, "", ["--files", str(folder), "--out", str(tmp_path / "out"), *words])
        return (code, *capsys.readouterr())

    return make


def test_the_manifest_says_what_was_made_of_what(make, tmp_path, read):
    assert make("--rows", "40", "--seed", "3")[0] == 0
    out = tmp_path / "out"
    manifest = json.loads((out / "toy.json").read_text())
    made = read(out / "toy.jsonl")
    assert [row["number"] % 2 for row in made] == [0] * len(made)
    assert manifest["rows"] == {"there": 100, "drawn": 40, "out": len(made), "dropped": {"odd": 40 - len(made)}}
    assert manifest["settings"] == {"rows": 40, "draw": "random", "seed": 3}
    (source,) = manifest["sources"]
    assert source["of"] == "org/toy@" + "c" * 40
    for told, name in zip(source["files"], FILES, strict=True):
        path = tmp_path / "files" / name
        assert told == {"name": name, "size": path.stat().st_size, "sha256": digest(path)}
    (output,) = manifest["outputs"]
    assert output["sha256"] == digest(out / "toy.jsonl")


def test_the_first_rows_can_be_taken_instead_of_drawn_ones(make, tmp_path, read):
    make("--rows", "10", "--draw", "first")
    assert [row["number"] for row in read(tmp_path / "out/toy.jsonl")] == [0, 2, 4, 6, 8]


def test_what_is_finished_is_not_made_again(make, tmp_path):
    make()
    path = tmp_path / "out/toy.jsonl"
    before = path.stat().st_mtime_ns
    code, said, _ = make()
    assert code == 0
    assert "is there already" in said
    assert path.stat().st_mtime_ns == before


def _other_revision(make):
    return make(derived=replace(TOY, source=replace(TOY.source, revision="d" * 40)))


@pytest.mark.parametrize(
    "again",
    [
        lambda make: make("--rows", "100"),
        lambda make: make(derived=replace(TOY, settings={"longest": 3})),
        _other_revision,
    ],
    ids=["draw", "settings", "revision"],
)
def test_what_was_made_otherwise_is_made_again(make, again):
    make()
    code, said, _ = again(make)
    assert code == 0
    assert "is there already" not in said


def test_a_damaged_output_is_made_again(make, tmp_path):
    make()
    path = tmp_path / "out/toy.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert make()[0] == 0
    assert path.read_bytes() == whole


def test_other_published_files_are_noticed(make, place, tmp_path, read):
    make()
    place(FILES, [{"number": number} for number in range(200, 320)])
    make()
    assert read(tmp_path / "out/toy.jsonl")[0] == {"number": 200}


def test_an_error_leaves_what_was_there(make, tmp_path):
    make("--rows", "50")
    before = (tmp_path / "out/toy.jsonl").read_bytes()

    def breaks(row):
        if row["number"] == 70:
            raise KeyboardInterrupt
        return row

    with pytest.raises(KeyboardInterrupt):
        make(derived=replace(TOY, convert=each(breaks)))
    assert (tmp_path / "out/toy.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["toy.json", "toy.jsonl"]


def test_check_tells_whole_from_damaged(make, tmp_path):
    make()
    assert make("--check")[:2] == (0, f"{tmp_path}/out/toy.jsonl: whole\n")
    path = tmp_path / "out/toy.jsonl"
    path.write_bytes(path.read_bytes().replace(b"4", b"5", 1))
    code, said, _ = make("--check")
    assert code == 1
    assert f"{path}: damaged" in said
    path.unlink()
    code, said, _ = make("--check")
    assert code == 1
    assert f"{path}: missing" in said


def test_check_looks_at_the_published_files_too(make, tmp_path):
    make()
    path = tmp_path / "files" / FILES[1]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    code, said, _ = make("--check")
    assert code == 1
    assert f"{path}: damaged" in said


def test_check_of_nothing_is_wrong_input(make, tmp_path):
    code, _, said = make("--check")
    assert code == 2
    assert f"{tmp_path}/out/toy.json: not found" in said


@pytest.mark.parametrize(
    ("derived", "words", "says"),
    [
        (TOY, ["--rows", "101"], "101 rows are to be taken, and 100 are there"),
        (replace(TOY, convert=each(lambda row: "dull")), [], "would hold no row\n  100 left out: dull"),
        (replace(TOY, columns=("word",)), [], "has no 'word'; there are number"),
    ],
)
def test_wrong_input_is_one_message(make, tmp_path, derived, words, says):
    code, _, said = make(*words, derived=derived)
    assert code == 2
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out/toy.json").exists()


def test_half_a_character_is_left_out_and_counted(make, tmp_path):
    broken = each(lambda row: {**row, "text": "\ud83d" if row["number"] == 5 else "whole"})
    make(derived=replace(TOY, convert=broken))
    dropped = json.loads((tmp_path / "out/toy.json").read_text())["rows"]["dropped"]
    assert dropped == {"broken text (half a surrogate pair)": 1}


def test_a_missing_file_is_named_with_all_that_are_wanted(make, tmp_path):
    (tmp_path / "files" / FILES[1]).unlink()
    code, _, said = make()
    assert code == 2
    assert f"not found: {tmp_path}/files/data/two.parquet" in said
    assert f"hf download org/toy {' '.join(FILES)} --repo-type dataset --revision {'c' * 40}" in said
