import json

import pytest

from dft_mm.report.examples import read_examples
from dft_mm.report.read import read_paths


@pytest.fixture
def two(make_results, tmp_path):
    """Results of two models that differ on questions 10 to 29."""
    return [make_results(tmp_path / "a", 30), make_results(tmp_path / "b", 10)]


def read(paths, **more):
    return read_examples(read_paths(paths).results, **more)


def test_all_questions_are_shown_where_there_is_room(two):
    examples = read(two)
    (shown,) = examples.shown
    assert (len(examples.examples), shown.total, shown.spread + shown.more) == (40, 40, 40)
    assert [example.id for example in examples.examples] == [f"q{number}" for number in range(40)]
    assert examples.differing() == [(0, 1, 20)]
    first = examples.examples[0]
    assert (first.problem, first.gold, len(first.pictures)) == ("What is it?", "55", 1)
    assert first.pictures[0].startswith("data:image/webp;base64,")
    assert [(answer.model, answer.status, answer.extracted) for answer in first.answers] == [
        (0, "correct", "55"), (1, "correct", "55"),
    ]  # fmt: skip


def test_half_of_a_choice_is_spread_by_place_and_half_are_questions_on_which_models_differ(two):
    examples = read(two, most=12)
    (shown,) = examples.shown
    assert (shown.spread, shown.more, shown.differing) == (6, 6, 20)
    places = [int(example.id[1:]) for example in examples.examples]
    assert places == sorted(places)
    assert sum(10 <= place < 30 for place in places) >= 6
    assert min(places) < 10
    assert max(places) >= 30


def test_examples_take_no_more_than_their_room(two):
    examples = read(two, most_bytes=10_000)
    assert 0 < len(examples.examples) < 40
    assert sum(example.size for example in examples.examples) <= 10_000


def test_room_is_shared_by_benchmarks_and_what_one_leaves_is_the_next_one_s(two, make_results, tmp_path):
    more = make_results(tmp_path / "c", 10, benchmark="pairs")
    counts = [shown.spread + shown.more for shown in read([*two, more], most=60).shown]
    assert counts == [30, 30]
    counts = [shown.spread + shown.more for shown in read([*two, more], most=90).shown]
    assert counts == [40, 40]
    examples = read([*two, more], most_bytes=16_000)
    assert {example.benchmark for example in examples.examples} == {"writers", "pairs"}
    assert sum(example.size for example in examples.examples) <= 16_000


def test_a_question_is_right_as_often_as_its_samples(two):
    for folder, wrong in zip(two, (1, 2)):
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        more = [line | {"sample": n, "status": "wrong"} for line in lines for n in range(1, 1 + wrong)]
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    examples = read(two)
    assert examples.several
    assert [(answer.right, answer.samples) for answer in examples.examples[0].answers] == [(1, 2), (1, 3)]
    assert examples.differing() == [(0, 1, 30)]


def test_where_the_questions_are_gone_the_prompts_are_shown(two, questions):
    questions.unlink()
    for folder in two:
        path = folder / "generations.jsonl"
        path.write_text(path.read_text().replace('"prompt": ""', '"prompt": "<image> What is it?"'))
    examples = read(two)
    assert examples.shown[0].prompts
    assert examples.examples[0].problem == "<image> What is it?"
    assert examples.examples[0].pictures == ()
    assert examples.examples[0].gold == "55"


def test_a_picture_that_is_gone_is_told(two, questions):
    (questions.parent / "0.png").unlink()
    assert read(two).examples[0].pictures == (None,)


def test_long_texts_are_cut_and_told(make_results, tmp_path):
    folder = make_results(tmp_path / "a", 30, text="x" * 5000 + "{}")
    answer = read([folder]).examples[0].answers[0]
    assert (len(answer.text), answer.length) == (2000, 5002)
