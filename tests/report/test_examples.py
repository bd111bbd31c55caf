import json
import shutil
from dataclasses import replace

import pytest

from dft_mm.evaluate.answering import fingerprint
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.tasks.registry import TASKS
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


def test_room_is_counted_in_bytes(make_results, tmp_path):
    plain, chinese = (
        read([make_results(tmp_path / word, 30, text=500 * word + "{}")]).examples[0].size for word in ("a", "问")
    )
    assert chinese - plain == 1000


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
    assert examples.shown[0].missing == f"{questions} is gone"
    assert examples.examples[0].problem == "<image> What is it?"
    assert examples.examples[0].pictures == ()
    assert examples.examples[0].gold == "55"


def rewritten(questions, **changes):
    rows = [json.loads(line) | changes for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_that_holds_other_questions_by_now_is_not_shown(two, questions):
    rewritten(questions, problem="What else?", answer="12")
    examples = read(two)
    assert "their file has changed" in examples.shown[0].missing
    assert examples.examples[0].gold == "55"
    assert examples.examples[0].problem == ""


def test_models_that_were_asked_other_questions_of_the_same_ids_do_not_stand_side_by_side(
    two, questions, make_results, tmp_path
):
    rewritten(questions, problem="What else?")
    examples = read([*two, make_results(tmp_path / "c", 40)])
    assert [(shown.models, shown.total) for shown in examples.shown] == [(("a", "b"), 40), (("c",), 40)]
    assert {example.problem for example in examples.examples} == {"", "What else?"}
    assert all(
        [answer.model for answer in example.answers] == ([2] if example.problem else [0, 1])
        for example in examples.examples
    )
    keys = [examples.key(example, answer) for example in examples.examples for answer in example.answers]
    assert len(set(keys)) == len(keys) == 120


def change_entry(folder, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    (entry,) = manifest["suite"]["benchmarks"]
    name = entry["name"]
    entry.update(changes)
    path.write_text(json.dumps(manifest))
    return manifest, name, path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "no such task"}, "KeyError: 'no such task'"),
        ({"later": 1}, "ValidationError: 1 validation error for BenchmarkConfig later"),
    ],
)
def test_an_entry_that_this_version_cannot_read_leaves_the_answers_and_is_told(two, changes, reason):
    for folder in two:
        change_entry(folder, **changes)
    examples = read(two)
    assert reason in examples.shown[0].missing
    assert len(examples.examples) == 40


def test_a_storage_that_cannot_be_written_to_leaves_the_answers_and_is_told(two, monkeypatch):
    def load(bench, work):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(TASKS, "digits", replace(TASKS["digits"], load=load))
    examples = read(two)
    assert examples.shown[0].missing == "PermissionError: [Errno 13] Permission denied"
    assert len(examples.examples) == 40


def test_a_judge_is_not_asked_for_to_show_what_it_judged(two, questions, monkeypatch):
    def load(bench, work):
        assert bench.judge == "rule"
        return TASKS["digits"].load(bench, work)

    monkeypatch.setitem(TASKS, "wemath", replace(TASKS["wemath"], load=load))
    judge = {"url": "http://127.0.0.1:9/v1", "model": "j", "key_env": "NO_SUCH_KEY"}
    for folder in two:
        change_entry(folder, task="wemath", judge=judge)
    examples = read(two)
    assert examples.shown[0].missing == ""
    assert examples.examples[0].problem == "What is it?"


def test_nothing_is_downloaded_to_show_published_questions(two, monkeypatch, tmp_path):
    monkeypatch.setenv("LMUData", str(tmp_path))
    for task in ("math500", "humaneval", "mathvision"):
        monkeypatch.setitem(TASKS, task, replace(TASKS[task], load=lambda *_: pytest.fail("asked another machine")))
        change_entry(two[0], task=task, data=None)
        assert read(two[:1]).shown[0].missing == "they are not on this machine"


def test_an_official_table_that_vlmevalkit_has_downloaded_is_shown(two, monkeypatch, tmp_path):
    table = tmp_path / "lmu" / "WeMath.tsv"
    table.parent.mkdir()
    shutil.copy(two[0].parent / "data/writers.jsonl", table)
    for picture in (two[0].parent / "data").glob("*.png"):
        shutil.copy(picture, table.parent)
    monkeypatch.setenv("LMUData", str(table.parent))
    monkeypatch.setitem(TASKS, "wemath", replace(TASKS["wemath"], load=TASKS["digits"].load))
    change_entry(two[0], task="wemath", data=None)
    examples = read(two[:1])
    assert examples.shown[0].missing == ""
    assert len(examples.examples[0].pictures) == 1


def test_questions_of_a_game_are_made_anew(make_results, tmp_path):
    folder = make_results(tmp_path / "a", 30)
    bench = BenchmarkConfig(task="general_points", limit=40)
    asked = TASKS["general_points"].load(bench, tmp_path / "work")
    manifest, name, path = change_entry(folder, task="general_points", data=None, limit=40)
    path.write_text(json.dumps(manifest | {"data_sha256": {name: fingerprint(asked)}}))
    for file in ("generations.jsonl", "scores.jsonl"):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        lines = [line | {"id": question.id} for line, question in zip(lines, asked)]
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = read([folder])
    assert examples.shown[0].missing == ""
    assert examples.examples[0].problem == asked[0].text


def test_a_picture_that_is_gone_is_told(two, questions):
    (questions.parent / "0.png").unlink()
    assert read(two).examples[0].pictures == (None,)


def test_long_texts_are_cut_and_told(make_results, tmp_path):
    folder = make_results(tmp_path / "a", 30, text="x" * 5000 + "{}")
    answer = read([folder]).examples[0].answers[0]
    assert (len(answer.text), answer.length) == (2000, 5002)
