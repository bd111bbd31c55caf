import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dft_mm.study.digits import FIRST_HELDOUT_DIGIT, Problem, Sizes, draw_problem, reasoning, split_problems, write_data

SIZES = Sizes(clean=400, mixed=200, heldout=60, wrong=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_data(folder, 0, SIZES)
    return folder


def _rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def _problem(row):
    """(a, sign, b) as the reasoning's first line reads it."""
    text = row["refined_cot"].split("\n")[0]
    sign = "+" if "+" in text else "-"
    a, b = text.split(sign)
    return int(a), sign, int(b)


def test_rows_have_wethinks_fields_and_their_pictures(data):
    for name, count in (("clean", 400), ("mixed", 200), ("writers", 60), ("pairs", 60)):
        rows = _rows(data, name)
        assert len(rows) == count
        assert len({row["id"] for row in rows}) == count
        for row in rows:
            assert row.keys() >= {
                "id", "problem", "answer", "category", "abilities", "refined_cot", "image_path", "reward",
            }  # fmt: skip
            with Image.open(data / row["image_path"]) as picture:
                assert (picture.size, picture.mode) == ((112, 28), "RGB")


def test_as_many_questions_of_heldout_pairs_as_are_wanted(tmp_path):
    write_data(tmp_path, 0, Sizes(clean=40, mixed=20, heldout=331))
    assert len(_rows(tmp_path, "pairs")) == len({_problem(row) for row in _rows(tmp_path, "pairs")}) == 331


def test_the_digits_in_a_picture_are_those_of_the_problem(data):
    from sklearn.datasets import load_digits

    target = load_digits().target
    for name in ("clean", "mixed", "writers", "pairs"):
        for row in _rows(data, name):
            a, _, b = _problem(row)
            assert [target[index] for index in row["digits"]] == [a // 10, a % 10, b]


def test_no_digit_of_a_heldout_sheet_is_learned_from(data):
    learned = {index for name in ("clean", "mixed") for row in _rows(data, name) for index in row["digits"]}
    heldout = {index for name in ("writers", "pairs") for row in _rows(data, name) for index in row["digits"]}
    assert max(learned) < FIRST_HELDOUT_DIGIT <= min(heldout)


def test_a_sheet_begins_where_the_heldout_digits_do():
    from sklearn.datasets import load_digits

    target = load_digits().target.tolist()
    form = target[:30]  # every sheet begins like the first one
    assert form == [*range(10)] * 3
    assert target[FIRST_HELDOUT_DIGIT : FIRST_HELDOUT_DIGIT + 30] == form


def test_no_heldout_pair_is_learned_from(data):
    def pairs(*names):
        return {(a, b) for name in names for a, _, b in map(_problem, _rows(data, name))}

    assert not pairs("clean", "mixed") & pairs("pairs")
    assert pairs("writers") <= pairs("clean")


def test_every_pair_is_seen_or_held_out_with_both_signs():
    split = split_problems(3)
    seen, heldout = ({(p.a, p.b) for p in part} for part in (split.seen, split.heldout))
    assert not seen & heldout
    assert (len(split.seen), len(split.heldout)) == (2 * len(seen), 2 * len(heldout)) == (1296, 324)


def test_the_stated_share_is_wrong_and_only_in_mixed(data):
    for name, wrong in (("clean", 0), ("mixed", 60), ("writers", 0), ("pairs", 0)):
        count = 0
        for row in _rows(data, name):
            a, sign, b = _problem(row)
            right = int(row["answer"]) == (a + b if sign == "+" else a - b)
            assert right == (row["reward"] == 1.0)
            count += not right
        assert count == wrong


@pytest.mark.parametrize("sign", ["+", "-"])
def test_steps_lead_to_the_right_answer(sign):
    for a in range(10, 100):
        for b in range(1, 10):
            steps, answer = reasoning(Problem(a, sign, b))
            assert int(answer) == (a + b if sign == "+" else a - b)
            first, *calculations = steps.split("\n")
            assert first == f"{a}{sign}{b}"
            for line in calculations:
                left, result = line.split("=")
                x, y = (int(part) for part in left.split(sign))
                assert int(result) == (x + y if sign == "+" else x - y)


def test_a_slip_always_makes_the_answer_wrong():
    for problem in split_problems(0).seen:
        for slip in range(1, 10):
            assert int(reasoning(problem, slip)[1]) != problem.result


def test_the_same_seed_writes_the_same_bytes(data, tmp_path):
    def digest(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()

    write_data(tmp_path / "again", 0, SIZES)
    write_data(tmp_path / "other", 1, SIZES)
    assert digest(tmp_path / "again") == digest(data) != digest(tmp_path / "other")


def test_each_character_stays_in_its_cell():
    ink = [np.full((8, 8), 255, np.uint8)]
    for seed in range(20):
        picture = draw_problem([0, "-", 0], ink, np.random.default_rng(seed))
        dark = np.asarray(picture)[:, :, 0] < 128
        counts = Counter({cell: int(dark[:, 28 * cell : 28 * cell + 28].sum()) for cell in range(3)})
        assert 350 < counts[0] <= 24 * 24
        assert 350 < counts[2] <= 24 * 24
        assert counts[1] == 16 * 3
