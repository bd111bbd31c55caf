"""Demonstrations are right, read by the data part as they are, and pictured so that one can tell what is where."""

import json

import pytest
from PIL import Image, ImageChops
from reading import learned, shown, sources

from dft_mm.config import SourceConfig
from dft_mm.data.images import load_image
from dft_mm.data.layouts.choose import choose_layout
from dft_mm.evaluate.games import verify
from dft_mm.evaluate.games.demonstrations import demonstrations, write_demonstrations
from dft_mm.evaluate.games.drawing import board, hand, save
from dft_mm.evaluate.games.play import GAMES

BOTH = pytest.mark.parametrize("task", ["general_points", "sokoban"])


@BOTH
def test_every_demonstration_is_verified(task):
    for style in ("cot", "answer_only"):
        rows = demonstrations(task, 1000, seed=1, style=style)
        assert {verify(task, row["state"], row["solution"]).status for row in rows} == {"correct"}
        assert all(row["solution"] == f"Answer: {row['answer']}" for row in rows) == (style == "answer_only")
        assert {row["split"] for row in rows} == {"in_distribution"}
    assert demonstrations(task, 30, seed=1) == demonstrations(task, 1000, seed=1)[:30]


@BOTH
def test_wordings_are_fixed_or_many(task):
    seen = GAMES[task].wordings.seen
    for prompts, count in (("fixed", 1), ("diverse", len(seen))):
        used = {
            number
            for row in demonstrations(task, 200, prompts=prompts)
            for number, template in enumerate(seen)
            if template.format(**GAMES[task].words(row, False)) == row["problem"]
        }
        assert used == set(range(count))


@BOTH
@pytest.mark.parametrize("pictures", ["none", "standard", "other_colours"])
def test_a_written_folder_is_read_by_the_data_part(task, pictures, tmp_path):
    file = write_demonstrations(tmp_path / "data", task, 12, seed=2, prompts="diverse", pictures=pictures)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    expected = demonstrations(task, 12, seed=2, prompts="diverse", pictures=pictures)
    layout = choose_layout(SourceConfig(path=str(file)), file, rows)
    assert "would fit" not in layout.why
    for row, demonstration in zip(rows, expected, strict=True):
        conversation = layout.read(row)
        mark = "" if pictures == "none" else "~"
        assert shown(conversation)[0] == ("user", mark + demonstration["problem"])
        assert learned(conversation) == [demonstration["solution"]]
        assert conversation.id == demonstration["id"]
        if pictures != "none":
            (path,) = sources(conversation)
            drawn = GAMES[task].picture(demonstration, pictures == "other_colours")
            assert ImageChops.difference(load_image(path, file.parent), drawn).getbbox() is None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data/images").glob("*")}
    assert write_demonstrations(tmp_path / "data", task, 12, seed=2, prompts="diverse", pictures=pictures) == file
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data/images").glob("*")} == before
    assert len(before) == (0 if pictures == "none" else 12)


def _cells(picture, width, height):
    return [
        picture.crop((x, y, x + width, y + height))
        for y in range(0, picture.height, height)
        for x in range(0, picture.width, width)
    ]


def _all_differ(pictures):
    """Whether any two can be told apart in grey, at half their size."""
    small = [picture.convert("L").reduce(2) for picture in pictures]
    return all(
        ImageChops.difference(a, b).point(lambda value: 255 * (value > 60)).getbbox() is not None
        for number, a in enumerate(small)
        for b in small[:number]
    )


@pytest.mark.parametrize("other", [False, True])
def test_things_differ_without_their_colours(other):
    cells = _cells(board("#@+$*. ", other), 56, 56)
    assert len(cells) == 7
    assert _all_differ(cells)
    cards = [hand([rank], other) for rank in ("A", *map(str, range(2, 11)), "J", "Q", "K")]
    assert _all_differ(cards)


def test_other_colours_are_other_colours_of_the_same_places():
    text = "######\n#@ $.#\n######"
    assert board(text).size == board(text, True).size == (6 * 56, 3 * 56)
    assert hand(["A", "10", "K", "K"]).size == (4 * 112, 140)
    assert ImageChops.difference(board(text), board(text, True)).getbbox() == (0, 0, 6 * 56, 3 * 56)

    def red(picture):
        return sum(r > 150 and g < 60 for r, g, _ in picture.get_flattened_data())

    assert red(hand(["A", "K"], False)) == 0 < red(hand(["A", "K"], True))


def test_the_same_rank_twice_has_two_suits():
    first, second, third = _cells(hand(["7", "7", "7"]), 112, 140)
    assert ImageChops.difference(first, second).getbbox() is not None
    assert ImageChops.difference(first, third).getbbox() is None


def test_a_damaged_picture_is_written_anew(tmp_path):
    picture = Image.new("RGB", (4, 4), "red")
    name = save(picture, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:20])
    assert save(picture, tmp_path) == name
    assert (tmp_path / name).read_bytes() == whole
    assert save(Image.new("RGB", (4, 4), "blue"), tmp_path) != name
    assert len(list(tmp_path.iterdir())) == 2
