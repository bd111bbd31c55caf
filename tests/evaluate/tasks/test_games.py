"""Games in a suite: the questions that an entry asks for, in text and in pictures, and a whole evaluation of them."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from PIL import ImageChops

from dft_mm.data.images import load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.games import make
from dft_mm.evaluate.games.demonstrations import write_demonstrations
from dft_mm.evaluate.games.play import GAMES, problem
from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite, load_suite
from dft_mm.evaluate.tasks.registry import TASKS

BOTH = pytest.mark.parametrize("task", ["general_points", "sokoban"])


def _load(work, task, **entry):
    return TASKS[task].load(BenchmarkConfig(task=task, **entry), work)


def _suite(*benchmarks, **sampling):
    return Suite.model_validate({"name": "s", "sampling": sampling, "benchmarks": list(benchmarks)})


@BOTH
def test_questions_are_generated_and_the_same_for_everybody(task, tmp_path):
    questions = _load(tmp_path, task)
    rows = make(task, n=500)
    assert [question.id for question in questions] == [row["id"] for row in rows]
    assert [question.text for question in questions] == [row["problem"] for row in rows]
    assert [question.gold for question in questions] == [row["answer"] for row in rows]
    assert [question.about for question in questions] == [{"state": row["state"]} for row in rows]
    assert [len(question.messages) for question in questions] == [1] * 500
    for split in GAMES[task].splits:
        asked = _load(tmp_path, task, split=split, limit=7)
        assert [question.id for question in asked] == [row["id"] for row in make(task, split=split, n=7)]
    assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize("pictures", ["standard", "other_colours"])
def test_pictures_show_what_the_text_leaves_out(task, pictures, tmp_path):
    questions = _load(tmp_path, task, limit=8, pictures=pictures, instructions="unseen")
    for question, row in zip(questions, make(task, n=8), strict=True):
        (turn,) = question.messages
        assert turn["content"] == [{"type": "image"}, {"type": "text", "text": problem(row, "unseen", pictured=True)}]
        assert question.image_root == str(tmp_path)
        drawn = GAMES[task].picture(row, pictures == "other_colours")
        (path,) = question.images
        assert ImageChops.difference(load_image(path, tmp_path), drawn).getbbox() is None


@BOTH
def test_unseen_instructions_change_the_wording_alone(task, tmp_path):
    seen, unseen = (_load(tmp_path, task, limit=20, instructions=which) for which in ("seen", "unseen"))
    assert [question.about for question in seen] == [question.about for question in unseen]
    assert not {question.text for question in seen} & {question.text for question in unseen}


def _load_pictures(work):
    return [question.images for question in _load(Path(work), "sokoban", limit=40, pictures="standard")]


def test_two_processes_may_draw_into_the_same_folder(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        first, second = pool.map(_load_pictures, [str(tmp_path)] * 2)
    assert first == second == _load_pictures(tmp_path)
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == {path for (path,) in first}


@BOTH
def test_rows_of_a_file_are_put_as_the_entry_says(task, tmp_path):
    rows = make(task, split=GAMES[task].splits[1], n=5, seed=9)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = _load(tmp_path, task, data=str(file), instructions="unseen", limit=3)
    assert [question.id for question in questions] == [row["id"] for row in rows[:3]]
    assert [question.text for question in questions] == [problem(row, "unseen") for row in rows[:3]]
    assert len(_load(tmp_path, task, data=str(file), split=rows[0]["split"], pictures="standard")) == 5
    with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*it is of {task}, split {rows[0]['split']}"):
        _load(tmp_path, task, data=str(file), split="in_distribution")


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("sokoban", {"state": {"board": "#$.#"}}, "a board has one player"),
        ("sokoban", {"state": None}, "sokoban"),
        ("sokoban", {"task": "general_points"}, "it is of general_points"),
        ("sokoban", {"split": "huge"}, "split huge"),
        ("general_points", {"cards": ["A", "A", "A", "A"]}, "do not count as"),
        ("general_points", {"cards": None}, "cards"),
        ("general_points", {"cards": [["A"]]}, "general_points"),
        ("general_points", {"split": "huge"}, "split huge"),
        ("general_points", {"state": {"numbers": [1], "target": 24}}, "do not count as"),
        ("general_points", {"state": {"numbers": [1]}}, "a state of general_points"),
        ("general_points", {"answer": None}, "answer"),
    ],
)
@pytest.mark.parametrize("pictures", ["none", "standard"])
def test_a_row_that_is_none_is_named(task, change, words, pictures, tmp_path):
    rows = make(task, n=2)
    rows[1] |= change
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{words}"):
        _load(tmp_path, task, data=str(file), pictures=pictures)
    for missing in ("state", "answer", *(["cards"] if task == "general_points" else [])):
        file.write_text(json.dumps({k: v for k, v in rows[0].items() if k != missing}), encoding="utf-8")
        with pytest.raises(InputError, match=rf"rows\.jsonl:1: .*needs the field '{missing}'"):
            _load(tmp_path, task, data=str(file), pictures=pictures)


def test_a_prompt_stands_around_the_question(tmp_path):
    prompt = {"system": "Be brief.", "user": "Q: {question}\nA:"}
    (question,) = _load(tmp_path, "sokoban", limit=1, prompt=prompt, pictures="standard")
    assert [turn["role"] for turn in question.messages] == ["system", "user"]
    assert question.messages[1]["content"][1]["text"].startswith("Q: Solve this Sokoban board.")


def test_a_whole_evaluation_with_answers_made_elsewhere(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    entries = [
        {"task": task, "split": split, "limit": 8, "pictures": pictures, "name": f"{task}-{split}-{pictures}"}
        for task, game in GAMES.items()
        for split in game.splits
        for pictures in ("none", "standard")
    ]
    lines = []
    for entry in entries:
        for number, row in enumerate(make(entry["task"], split=entry["split"], n=8)):
            text = [row["solution"], "Answer: 1 + 1", "I give up.", "First, we"][number % 4]
            cut = {"finish_reason": "length"} if number % 4 == 3 else {}
            lines.append({"benchmark": entry["name"], "id": row["id"], "sample": 0, "text": text, **cut})
    replay = tmp_path / "answers.jsonl"
    replay.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for _ in range(2):  # and again, in the same folder
        results = evaluate(_suite(*entries), model, tmp_path / "out", replay=replay)
    assert len(results["benchmarks"]) == 12
    for entry in results["benchmarks"].values():
        assert entry["status"] == {"correct": 2, "no_answer": 2, "truncated": 2, "wrong": 2}
        assert entry["metrics"]["avg@1"]["value"] == 0.25
    scores = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores[0]["extracted"] == scores[0]["gold"]
    assert scores[1]["detail"]


def test_a_model_is_asked_in_text_and_in_pictures(picture_model, tmp_path):
    entries = [
        {"task": task, "limit": 2, "pictures": pictures, "name": f"{task}_{pictures}"}
        for task in GAMES
        for pictures in ("none", "standard", "other_colours")
    ]
    evaluate(_suite(*entries, max_tokens=4), picture_model, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/generations.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {(line["benchmark"], line["id"]): line["text"] for line in lines}
    assert len(texts) == 12
    shifted = [text != texts[key[0].replace("standard", "other_colours"), key[1]] for key, text in texts.items()]
    assert any(shifted), "the answers do not depend on the pictures"


def test_rows_of_demonstrations_are_no_questions(tmp_path):
    # They have no `answer` of their own; and what was learned is not to be asked.
    file = write_demonstrations(tmp_path, "sokoban", 2)
    with pytest.raises(InputError, match="needs the field 'answer'"):
        _load(tmp_path, "sokoban", data=str(file))


def test_the_shipped_suites_ask_every_split_and_every_shift(repo):
    text, drawn = (load_suite(repo / f"eval/suites/{name}.yaml").benchmarks for name in ("games", "games_pictures"))
    asked = {(bench.task, bench.split or "in_distribution") for bench in text}
    assert asked == {(task, split) for task, game in GAMES.items() for split in game.splits}
    assert {bench.pictures for bench in text} == {"none"}  # text models can take it
    for task in GAMES:
        assert {bench.pictures for bench in drawn if bench.task == task} == {"standard", "other_colours"}
        assert {bench.instructions for bench in text if bench.task == task} == {"seen", "unseen"}
