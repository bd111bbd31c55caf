"""Preparing what was prepared before, or was broken off, or by several processes."""

import json
from dataclasses import replace

import pytest
from prepared import good, ids_of, quarantine, renderer, rows, run, settings, source

from dft_mm.config import DataConfig
from dft_mm.data.preparing import pictures
from dft_mm.data.preparing.prepare import prepare


class Counting:
    """A renderer that counts what it is asked for."""

    def __init__(self):
        self.inner, self.rendered = renderer(), 0
        self.fingerprint, self.end_id = self.inner.fingerprint, self.inner.end_id

    def render(self, messages, grids):
        self.rendered += 1
        return self.inner.render(messages, grids)


def again(tmp_path, seed=0, renders=None, images_max=1003520, merge_size=2, **more):
    """How many rows are rendered when the same data folder is prepared (again)."""
    config = DataConfig(**{"train": [source(tmp_path / "a.jsonl")], "max_pixels": images_max} | more)
    counting = renders or Counting()
    images = replace(settings(config), merge_size=merge_size)
    prepare(config, counting, images, tmp_path / "data", seed)
    return counting.rendered


def test_nothing_is_read_again_until_something_changes(tmp_path):
    rows(tmp_path)
    assert again(tmp_path) == 6
    assert again(tmp_path) == 0
    assert again(tmp_path, seed=5) == 0, "the seed decides nothing here"
    assert again(tmp_path, bad_rows=0.5, workers=0) == 0, "nor do limits on what is accepted"
    for change in ({"max_length": 500}, {"too_long": "truncate"}, {"images_max": 100352}, {"merge_size": 1}):
        assert again(tmp_path, **change) == 6, change
        assert again(tmp_path, **change) == 0, change
        again(tmp_path)
    for seed in (0, 1):
        assert again(tmp_path, heldout_fraction=0.5, seed=seed) == 0, "the split is drawn anew, the rows are the same"
    other = Counting()
    other.fingerprint = "another template"
    assert again(tmp_path, renders=other) == 6
    assert again(tmp_path) == 6
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text().replace("What is 5?", "What is 6?"))
    assert again(tmp_path) == 6
    limited = [source(path, limit=4)]
    assert again(tmp_path, train=limited) == 4
    assert again(tmp_path, train=[source(path, weight=2.0, loss="sft")]) == 6
    assert again(tmp_path, train=[source(path, weight=3.0, loss="dft")]) == 0, "how often and how is not what"


@pytest.mark.parametrize("name", ["index.arrow", "quarantine.jsonl", "duplicates.jsonl", "parts/*.arrow"])
def test_a_missing_or_cut_file_of_the_index_is_made_anew(tmp_path, name):
    rows(tmp_path)
    again(tmp_path)
    (path,) = (tmp_path / "data").glob(name)
    before, rendered = path.read_bytes(), 6 if name == "parts/*.arrow" else 0
    path.unlink()
    assert again(tmp_path) == rendered
    assert path.read_bytes() == before
    path.write_bytes(before[:-1] if before else b"x")
    assert again(tmp_path) == rendered
    assert path.read_bytes() == before


def test_preparing_that_breaks_off_leaves_no_manifest_and_no_half_files(tmp_path):
    rows(tmp_path)
    again(tmp_path)

    class Dies(Counting):
        def render(self, messages, grids):
            if self.rendered == 4:
                raise KeyboardInterrupt
            return super().render(messages, grids)

    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, renders=Dies(), max_length=500)
    assert not (tmp_path / "data/manifest.json").exists()
    assert not list((tmp_path / "data").rglob(".*"))
    assert again(tmp_path, max_length=500) == 6


def test_preparing_that_was_killed_goes_on_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("dft_mm.data.preparing.prepare._PART_ROWS", 2)
    rows(tmp_path)

    class Dies(Counting):
        def render(self, messages, grids):
            if self.rendered == 5:
                raise KeyboardInterrupt
            return super().render(messages, grids)

    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, renders=Dies())
    assert again(tmp_path) == 2
    assert ids_of(tmp_path / "data") == [f"a:{n}" for n in range(6)]


def test_a_changed_picture_costs_its_own_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("dft_mm.data.preparing.prepare._PART_ROWS", 2)
    rows(tmp_path)
    again(tmp_path)
    content = (tmp_path / "images/2.png").read_bytes()
    (tmp_path / "images/2.png").write_bytes(content)
    assert again(tmp_path) == 0, "written anew with the same content"
    (tmp_path / "images/2.png").write_bytes((tmp_path / "images/4.png").read_bytes())
    assert again(tmp_path) == 2
    (tmp_path / "images/2.png").unlink()
    assert again(tmp_path, bad_rows=0.5) == 1  # and row 3 beside it
    assert [row["reason"] for row in quarantine(tmp_path / "data")] == ["missing_image"]
    (tmp_path / "images/2.png").write_bytes(content)
    assert again(tmp_path) == 2
    assert quarantine(tmp_path / "data") == []


def test_all_cores_make_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr("dft_mm.data.preparing.prepare._PART_ROWS", 3)
    bad = ["broken\n", good(1, "none.png"), good(2) | {"refined_cot": ""}]
    data = rows(tmp_path, *bad, *[good(n % 5, f"{n % 3 * 2}.png") for n in range(20)], count=6)
    one = run(tmp_path / "one", data)
    for name in ("_ALONE", "_ALONE_PICTURES"):
        monkeypatch.setattr(f"dft_mm.data.preparing.prepare.{name}", 0)
    monkeypatch.setattr("dft_mm.data.preparing.prepare.cores", lambda: 2)
    two = run(tmp_path / "two", data)
    assert one == two
    for name in [*one["files"], *(f"parts/{part['name']}.jsonl" for part in one["parts"])]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_each_distinct_picture_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    real = pictures.decode_image
    monkeypatch.setattr(pictures, "decode_image", lambda data, name: decoded.append(name) or real(data, name))
    data = rows(tmp_path, *[good(n, "0.png") for n in range(30)], *[good(n, ["2.png", "0.png"]) for n in range(30)])
    run(tmp_path / "data", data)
    assert sorted(decoded) == ["0.png", "2.png", "4.png"]
    run(tmp_path / "data", data, max_length=400)
    assert len(decoded) == 3


def test_a_new_file_in_a_folder_is_noticed(tmp_path):
    (tmp_path / "rows").mkdir()
    for number in range(2):
        (tmp_path / "rows" / f"{number}.jsonl").write_text(json.dumps(good(number)) + "\n")
    data = {"path": str(tmp_path / "rows")}
    assert run(tmp_path / "data", data)["sources"][0]["rows"] == 2
    (tmp_path / "rows/2.jsonl").write_text(json.dumps(good(2)) + "\n")
    manifest = run(tmp_path / "data", data)
    assert (manifest["sources"][0]["rows"], manifest["sources"][0]["files"]) == (3, 3)
    (tmp_path / "rows/0.jsonl").unlink()
    assert run(tmp_path / "data", data)["sources"][0]["rows"] == 2
    assert len(list((tmp_path / "data/parts").glob("*.arrow"))) == 2


def test_rows_are_read_again_when_the_entry_that_names_their_columns_changes(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"ask": "q", "say": "a", "other": "b"}) + "\n")
    info = tmp_path / "elsewhere.json"
    train = [{"path": str(tmp_path / "a.jsonl"), "dataset_info": f"{info}#mine"}]
    for column in ("say", "other"):
        info.write_text(json.dumps({"mine": {"columns": {"prompt": "ask", "response": column}}}))
        assert again(tmp_path, train=train) == 1
        assert again(tmp_path, train=train) == 0
