import os

import pytest
from PIL import Image

from dft_mm.data.preparing import pictures
from dft_mm.data.preparing.pictures import Pictures, look, picture_stamp


@pytest.fixture
def root(tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(3):
        Image.new("RGB", (30 + number, 40), (number, 0, 0)).save(tmp_path / "p" / f"{number}.png")
    (tmp_path / "p" / "bad.png").write_bytes(b"no picture")
    return str(tmp_path / "p")


def looked(journal, root, *names):
    return list(journal.add((key, look(key)) for key in [(root, name) for name in names]))


def test_a_look_tells_hash_size_and_what_is_wrong(root):
    good, bad, gone = (look((root, name)) for name in ("1.png", "bad.png", "none.png"))
    assert (good.width, good.height, good.reason) == (31, 40, "")
    assert len(good.sha256) == 64
    assert (bad.reason, gone.reason) == ("broken_image", "missing_image")
    assert gone.stamp is None


def test_what_was_looked_at_survives_and_is_stale_only_when_it_changes(root, tmp_path):
    names = ["0.png", "1.png", "bad.png", "none.png"]
    looked(Pictures(tmp_path / "j.jsonl"), root, *names)
    journal = Pictures(tmp_path / "j.jsonl")
    keys = [(root, name) for name in names]
    assert journal.stale([*keys, (root, "2.png")]) == [(root, "2.png")]
    assert journal[root, "0.png"] == look((root, "0.png"))
    before = os.stat(f"{root}/1.png")  # noqa: PTH116
    Image.new("RGB", (31, 40), (9, 9, 9)).save(f"{root}/1.png")
    os.utime(f"{root}/1.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change cannot be set back
    Image.new("RGB", (9, 9)).save(f"{root}/none.png")
    assert journal.stale(keys) == [(root, "1.png"), (root, "none.png")]
    assert not journal.unchanged()


def test_a_torn_line_costs_one_look(root, tmp_path):
    path = tmp_path / "j.jsonl"
    looked(Pictures(path), root, "0.png", "1.png")
    path.write_bytes(path.read_bytes()[:-20])
    journal = Pictures(path)
    assert journal.stale([(root, "0.png"), (root, "1.png")]) == [(root, "1.png")]
    looked(journal, root, "1.png")
    assert Pictures(path).unchanged()
    assert len(Pictures(path)) == 2


def test_pictures_that_are_not_needed_any_more_are_forgotten(root, tmp_path):
    journal = Pictures(tmp_path / "j.jsonl")
    looked(journal, root, "0.png", "1.png", "2.png")
    journal.keep({(root, "1.png")})
    assert len(journal) == len(Pictures(tmp_path / "j.jsonl")) == 1


def test_a_picture_is_read_after_its_stamp_is_taken(root, monkeypatch):
    order = []
    monkeypatch.setattr(pictures, "picture_stamp", lambda key: order.append("stamp") or picture_stamp(key))
    monkeypatch.setattr(pictures, "read_image", lambda *a: order.append("read") or b"")
    look((root, "0.png"))
    assert order == ["stamp", "read"]  # else a change in between would go unnoticed for ever
