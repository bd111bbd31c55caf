"""Questions and tables of VLMEvalKit: against VLMEvalKit on its own, and what is refused."""

import base64
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vlmevalkit_tables import (
    SAMPLES,
    TABLES,
    ask,
    direct,
    drawn,
    grade,
    in_fractions,
    in_turn,
    picture,
    sampled,
    write_table,
)

from dft_mm.__main__ import main
from dft_mm.data.images import load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.choices import grade_choices, options_of
from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite
from dft_mm.evaluate.tasks.registry import TASKS
from dft_mm.evaluate.vlmevalkit import questions as asking
from dft_mm.evaluate.vlmevalkit.asking import Wrong, checked_table
from dft_mm.evaluate.vlmevalkit.metrics import FOUR_DIMENSIONS, Groups


@pytest.mark.parametrize("kind", SAMPLES)
def test_real_tables_give_vlmevalkits_own_numbers(shared, tmp_path, tmp_path_factory, kind):
    tsv, questions = sampled(kind, shared, tmp_path_factory)
    right, texts = in_turn(questions)
    scored = grade(kind, questions, texts.values(), tmp_path / "work")
    wanted = in_fractions(kind, direct(tmp_path / "direct", kind, tsv, texts, right=right))
    assert {name: metric["value"] for name, metric in scored.metrics.items()} == wanted
    assert [grade.status == "correct" for grade in scored.grades] == list(right.values())
    for metric in scored.metrics.values():
        assert metric["ci95"] is None or metric["ci95"][0] - 1e-4 <= metric["value"] <= metric["ci95"][1] + 1e-4


def test_our_counts_of_wemaths_groups_are_vlmevalkits(shared, tmp_path, tmp_path_factory):
    """What intervals, and tables that VLMEvalKit cannot make, are counted from."""
    _, questions = sampled("wemath", shared, tmp_path_factory)
    for step in (2, 3, 5):
        texts = [q.gold if n % step else "F" for n, q in enumerate(questions)]
        scored = grade("wemath", questions, texts, tmp_path / "work")
        right = np.array([[grade.status == "correct"] for grade in scored.grades])
        counted = Groups([question.about["row"] for question in questions], right)
        for name in (*FOUR_DIMENSIONS, "One-step(S1)"):
            assert counted.values(name)[0] == pytest.approx(scored.metrics[name]["value"], abs=0.51e-4), name


def test_wemaths_exact_matching_is_its_own(shared, tmp_path, tmp_path_factory):
    tsv, questions = sampled("wemath", shared, tmp_path_factory)
    forms = ["{}", "<Answer>: <<{}>>", "{}. because", "\\boxed{{{}}}", "A triangle, so {}"]
    texts = {q.id: forms[n % 5].format(q.gold) for n, q in enumerate(questions)}
    scored = grade("wemath", questions, texts.values(), tmp_path / "work", judge="exact")
    wanted = in_fractions("wemath", direct(tmp_path / "direct", "wemath", tsv, texts))
    assert {name: metric["value"] for name, metric in scored.metrics.items()} == wanted
    assert Counter(grade.status for grade in scored.grades)["no_answer"] == 5  # it does not see into boxes
    assert scored.headline == ("One-step(S1)", "Two-step(S2)", "Three-step(S3)")  # of a subset the scores mislead


def test_several_samples_are_tabulated_one_by_one(tmp_path, tmp_path_factory):
    questions = drawn("mathvision", tmp_path_factory)
    texts = [[f"\\boxed{{{q.gold}}}", "\\boxed{77}" if n else f"\\boxed{{{q.gold}}}"] for n, q in enumerate(questions)]
    metrics = grade("mathvision", questions, texts, tmp_path / "work").metrics
    assert metrics["Overall"]["value"] == (1.0 + 0.25) / 2
    assert metrics["counting"]["value"] == 1.0
    assert metrics["logic"]["value"] == 0.5
    assert metrics["Overall"]["n"] == 4


def test_samples_that_vlmevalkit_judges_are_kept_apart(tmp_path, tmp_path_factory):
    questions = drawn("wemath", tmp_path_factory)
    texts = [[q.gold, "-" if n else q.gold] for n, q in enumerate(questions)]
    scored = grade("wemath", questions, texts, tmp_path / "work", judge="exact")
    assert scored.metrics["One-step(S1)"]["value"] == pytest.approx((1 + round(1 / 7, 4)) / 2)
    assert scored.metrics["CompleteMastery (Strict)"]["value"] == pytest.approx(round(3 / 525, 4) / 2)
    assert "RoteMemorization (Strict)" not in scored.metrics  # 0 / 0 in the second sample
    assert Counter(grade.status for grade in scored.grades) == {"correct": 11, "no_answer": 9}


# ------------------------------------------------------------------------------------------------------- questions


def test_prompts_and_pictures_are_vlmevalkits(tmp_path, tmp_path_factory):
    questions = drawn("wemath", tmp_path_factory)
    first = questions[0]
    assert first.id == "1"
    assert first.gold == "A"
    assert [part["type"] for part in first.messages[0]["content"]] == ["image", "text"]
    text = "Question: Part 1?\nOptions:\nA. 300, 400\nB. 3 m\nC. No correct answer\n"
    assert first.messages[0]["content"][1]["text"] == text
    assert first.images == ("images/WeMath/1.png",)
    assert (Path(first.image_root) / first.images[0]).is_file()
    json.dumps([first.messages, first.images, dict(first.about)])


def test_a_vision_only_question_without_text_is_asked_in_words(tmp_path_factory):
    assert drawn("mathverse", tmp_path_factory)[4].text == "<image>\nPlease directly answer. "


def test_a_files_name_does_not_change_the_prompt_and_a_split_does(tmp_path, tmp_path_factory):
    assert drawn("mathverse", tmp_path_factory)[0].text == "<image>\nProblem 0"  # of a file my_cot_COT.tsv
    path = write_table(tmp_path / "t.tsv", TABLES["mathverse"]())
    before = path.read_bytes()
    vision = ask("mathverse", path, tmp_path / "work", split="vision_only_cot")
    assert [question.id for question in vision] == ["5", "10"]
    assert vision[0].text == "<image>\nPlease first reason. Problem 0"
    assert path.read_bytes() == before
    wemath = write_table(tmp_path / "w.tsv", TABLES["wemath"]())
    assert "your option" in ask("wemath", wemath, tmp_path / "work", split="cot")[0].text
    assert "your option" not in drawn("wemath", tmp_path_factory)[0].text


def test_pictures_of_another_table_are_never_shown(tmp_path):
    rows = TABLES["mathvision"]()
    first = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work", limit=2)
    assert [question.id for question in first] == ["4", "7"]
    again = ask("mathvision", tmp_path / "t.tsv", tmp_path / "work", limit=2)
    assert again == first
    rows[0]["image"] = picture("yellow", (60, 50))
    second = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work", limit=2)
    old, new = ((Path(q[0].image_root) / q[0].images[0]).read_bytes() for q in (first, second))
    assert old != new
    assert first[0].images == second[0].images
    assert first[0].about != second[0].about  # a resumed run must see the difference


def test_questions_appear_whole_and_another_rank_may_be_faster(tmp_path, monkeypatch):
    real = asking.run

    def overtaken(request, folder, **more):
        asked = real(request, folder, **more)
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing under its name yet
        finished = shutil.copytree(folder, folder.parent / "MathVision")
        (finished / "questions.json").write_text(json.dumps(asked))
        return asked

    monkeypatch.setattr(asking, "run", overtaken)
    path = write_table(tmp_path / "t.tsv", TABLES["mathvision"]())
    questions = ask("mathvision", path, tmp_path / "work")
    assert [child.name for child in Path(questions[0].image_root).parent.iterdir()] == ["MathVision"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_transparent_picture_is_shown_as_vlmevalkits_models_see_it(tmp_path, mode):
    """Without its alpha channel, whatever colour lies below; Qwen2VLChat's loader is `convert("RGB")`."""
    drawn = Image.linear_gradient("L").resize((40, 30)).convert(mode)
    if "A" in mode:
        drawn.putalpha(0)
    file = io.BytesIO()
    drawn.save(file, "PNG", **({} if "A" in mode else {"transparency": drawn.getpixel((20, 15))}))
    rows = TABLES["mathvision"]()[:1]
    rows[0]["image"] = base64.b64encode(file.getvalue()).decode()
    [question] = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work")
    shown = load_image(question.images[0], Path(question.image_root))
    seen = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    assert shown.tobytes() == seen.tobytes()


def test_one_picture_may_serve_several_rows(tmp_path):
    rows = TABLES["mathvision"]()
    rows[0]["image"] = "12"
    questions = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work", limit=1)
    assert (Path(questions[0].image_root) / questions[0].images[0]).is_file()


def _without(column):
    return lambda rows: [row.pop(column) for row in rows]


def _cell(row, column, value):
    return lambda rows: rows[row].update({column: value})


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("mathvision", _without("choices"), "no column 'choices'"),
        ("mathverse", _without("question_for_eval"), "no column 'question_for_eval'"),
        ("wemath", _without("key"), "no column 'key'"),
        ("mathvision", _cell(2, "index", "7"), r"row 3 \(index '7'\), column 'index': '7' is that of row 2"),
        ("mathvision", _cell(2, "index", ""), r"row 3 .*column 'index': is empty"),
        ("mathvision", _cell(2, "index", "../../x"), r"row 3 .*no name for a picture"),
        ("mathvision", _cell(1, "answer", "None"), r"row 2 \(index '7'\), column 'answer': is empty"),
        ("mathvision", _cell(1, "question", " "), r"row 2 \(index '7'\), column 'question'"),
        ("mathvision", _cell(3, "image", ""), r"row 4 \(index '12'\), column 'image': is empty"),
        ("mathvision", _cell(3, "image", "99"), r"row 4 .*column 'image': '99' is no picture, nor the index"),
        ("mathvision", _cell(0, "choices", "__import__('os')"), r"row 1 .*column 'choices'.*wanted is a list"),
        ("mathverse", _cell(0, "metadata", "{'subject': \"Euler's\"}"), r"row 1 .*column 'metadata'"),
        ("wemath", _cell(5, "key", "4steps_1"), r"row 6 .*column 'key': is '4steps_1'"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_named(tmp_path, kind, spoil, words):
    rows = TABLES[kind]()
    spoil(rows)
    path = write_table(tmp_path / "mine.tsv", rows)
    with pytest.raises(Wrong, match=words):
        checked_table(str(path), kind, cot=False)


@pytest.mark.parametrize("content", ["A" * 400, picture("red", (300, 200))[:400]])
def test_a_cell_that_is_no_picture_is_named(tmp_path, content):
    rows = TABLES["mathvision"]()
    rows[3]["image"] = content
    path = write_table(tmp_path / "mine.tsv", rows)
    with pytest.raises(InputError, match=r"mine\.tsv: row 4 \(index '12'\), column 'image': is no picture"):
        ask("mathvision", path, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("*.png"))


def test_files_that_are_no_tables_are_named(tmp_path):
    for name, content in {"b.tsv": b"\xff\xfe\0", "c.tsv": b"index\timage\n1\t2\t3\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            ask("wemath", tmp_path / name, tmp_path / "work")
    with pytest.raises(InputError, match=r"wemath: \S*d\.tsv cannot be read \(No such file or directory\)$"):
        ask("wemath", tmp_path / "d.tsv", tmp_path / "work")
    with pytest.raises(InputError, match=rf"{tmp_path} holds no WeMath\.tsv \(there: b\.tsv, c\.tsv, .*name the file"):
        ask("wemath", tmp_path, tmp_path / "work")


@pytest.mark.parametrize("content", ["", "\n", "\t".join(TABLES["wemath"]()[0]) + "\n"])
def test_a_table_without_a_question(tmp_path, content):
    (tmp_path / "e.tsv").write_text(content)
    with pytest.raises(Wrong, match=r"^holds no question$"):
        checked_table(str(tmp_path / "e.tsv"), "wemath", cot=False)


def test_without_vlmevalkit_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dft_mm\[eval\]'\n.*pip install --no-deps ms-vlmeval"):
        ask("wemath", tmp_path / "t.tsv", tmp_path)


def test_the_official_table_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody there
    with pytest.raises(InputError, match=r"MathVision_MINI\.tsv .*Failed to download.*data: FILE\.tsv"):
        TASKS["mathvision"].load(BenchmarkConfig(task="mathvision", split="mini"), tmp_path / "work")


# ---------------------------------------------------------------------------------------------------------- grades


@pytest.fixture(scope="module")
def grader():
    with Grader(1) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("B", "correct"), ("(B)", "correct"), ("B. blue", "correct"), (r"so \boxed{B}", "correct"),
        ("**B**", "correct"),
        ("The answer is B", "correct"), ("The answer is (B) blue, since", "correct"), ("blue", "correct"),
        (r"\boxed{\text{blue}}", "correct"), ("The answer is blue.", "correct"), ("<answer>B</answer>", "correct"),
        ("Reasons.\n\nB", "correct"), ("<Answer>: <<B>>", "correct"), ("The correct option is B.", "correct"),
        ("Therefore, option (B) is correct.", "correct"), ("So B is the right answer, not C.", "correct"),
        ("A", "wrong"), (r"\boxed{red}", "wrong"), ("The answer is A", "wrong"), (r"\boxed{12}", "wrong"),
        (r"\boxed{A} is tempting, but \boxed{B}", "correct"), ("The answer is B. No, the answer is C.", "wrong"),
        ("The answer is b", "correct"), ("Option A is wrong. The answer is not C", "wrong"),
        ("\\boxed{B" + "\n" * 100_000 + "x}", "correct"), ("", "no_answer"),
        ("A picture shows colours, and Bob sees them", "no_answer"),
    ],
)  # fmt: skip
def test_choices_are_read_in_the_forms_that_models_write(grader, text, status):
    [found] = grade_choices(grader, [(text, "B", {"A": "red", "B": "blue", "C": "green"}, "stop")])
    assert found.status == status


@pytest.mark.parametrize(
    ("text", "gold", "options", "status"),
    [
        (r"\boxed{\frac{1}{2}}", "A", {"A": "0.5", "B": "2"}, "correct"),
        (r"\boxed{0.50}", "A", {"A": r"$\frac{1}{2}$", "B": "2"}, "correct"),
        (r"\boxed{2}", "A", {"A": "0.5", "B": "2"}, "wrong"),
        (r"\boxed{C, D}", "C\nD", {"A": "1", "B": "2", "C": "3", "D": "4"}, "correct"),
        (r"\boxed{C}", "C\nD", {"A": "1", "B": "2", "C": "3", "D": "4"}, "wrong"),
        (r"\boxed{E}", "E", {"A": "1", "B": "2"}, "ungradable"),
        (r"\boxed{E}", "E", {}, "correct"),
    ],
)
def test_choices_by_value_and_several_at_once(grader, text, gold, options, status):
    assert grade_choices(grader, [(text, gold, options, "stop")])[0].status == status


def test_mathverses_options_stand_in_its_question():
    assert options_of("How?\nChoices:\nA:$10$\nB:20 cm\n") == {"A": "$10$", "B": "20 cm"}
    assert options_of("A: no choices") == {}


def test_no_row_is_lost_and_cut_answers_are_told(tmp_path, tmp_path_factory):
    questions = drawn("mathverse", tmp_path_factory)
    texts = ["", "\ud800\0 the answer is none", "null", *[f"\\boxed{{{q.gold}}}" for q in questions[3:]]]
    scored = grade("mathverse", questions, texts, tmp_path / "work", finish="length")
    assert [each.status for each in scored.grades[:3]] == ["truncated", "wrong", "truncated"]
    assert scored.metrics["Overall"]["value"] == 0.7
    assert scored.metrics["Overall"]["n"] == 10


def test_a_wemath_group_that_cannot_be_graded_is_left_out_whole(tmp_path):
    rows = TABLES["wemath"]()
    rows[0]["answer"] = "H"  # no such option
    questions = ask("wemath", write_table(tmp_path / "t.tsv", rows), tmp_path / "work")
    scored = grade("wemath", questions, [f"\\boxed{{{q.gold}}}" for q in questions], tmp_path / "work")
    assert scored.grades[0].status == "ungradable"
    assert scored.metrics["CompleteMastery (Strict)"]["value"] == 0.0038  # two of three groups; the table has 2 digits
    assert scored.metrics["CompleteMastery (Strict)"]["n"] == 2
    assert any("7 of WeMath's 1,740" in note for note in scored.notes)


def test_wemath_without_one_compound_question_right(tmp_path, tmp_path_factory):
    rows, questions = TABLES["wemath"](), drawn("wemath", tmp_path_factory)
    texts = [q.gold if row["key"] != "2steps_multi" else "D" for q, row in zip(questions, rows)]
    texts[-1] = "D"
    scored = grade("wemath", questions, texts, tmp_path / "work")
    values = {name: metric["value"] for name, metric in scored.metrics.items()}
    assert values["Score (Strict)"] == pytest.approx(1 - 1.5 / 525)
    assert values["InadequateGeneralization (Loose)"] == pytest.approx(3 / 525)
    assert values["CompleteMastery (Strict)"] == 0
    assert values["One-step(S1)"] == 1
    assert not any(name.startswith("RoteMemorization") for name in values)
    assert any("has no value" in note for note in scored.notes)


# -------------------------------------------------------------------------------------------------------- together


def test_a_suite_of_all_three(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    benchmarks = [{"task": kind, "data": str(write_table(tmp_path / f"{kind}.tsv", TABLES[kind]()))} for kind in TABLES]
    suite = Suite.model_validate({"name": "s", "benchmarks": benchmarks})
    lines = [
        {"benchmark": kind, "id": row["index"], "sample": 0, "text": f"It is \\boxed{{{row['answer']}}}"}
        for kind in TABLES
        for row in TABLES[kind]()
    ]
    replay = tmp_path / "answers.jsonl"
    replay.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = evaluate(suite, model, tmp_path / "out", replay=replay)
    entry = results["benchmarks"]["mathverse"]
    assert entry["metrics"]["Vision Only"] == {
        "value": 1.0,
        "se": 0.0,
        "ci95": [pytest.approx(0.342, abs=1e-3), 1.0],
        "n": 2,
    }
    assert entry["headline"] == ["Vision Only", "Vision Intensive", "Vision Dominant", "Overall"]
    assert results["benchmarks"]["wemath"]["status"] == {"correct": 10}
    json.dumps(results, allow_nan=False)
    assert "do not compare" not in (tmp_path / "out/results.md").read_text()


def test_a_configuration_for_vlmevalkits_own_runner(tmp_path, capsys):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: s\nsampling: {max_tokens: 77}\nbenchmarks:\n  - {task: mathvision, split: mini}\n"
        "  - {task: wemath, split: cot, data: my_cot.tsv}\n  - {task: gsm8k}\n"
    )
    written = tmp_path / "c.json"
    assert main(["eval", str(suite), "--model", "builtin:tiny-vl", "--write-config", str(written)]) == 0
    config = json.loads(written.read_text())
    [settings] = config["model"].values()
    assert settings["class"] == "Qwen2VLChat"
    assert settings["max_new_tokens"] == 77
    assert settings["use_custom_prompt"] is False
    assert settings["min_pixels"] == 3136
    assert Path(settings["model_path"], "config.json").is_file()
    assert config["data"] == {
        "MathVision_MINI": {"class": "MathVision", "dataset": "MathVision_MINI"},
        "WeMath_local2_COT": {"class": "WeMath", "dataset": "WeMath_local2_COT"},
    }
    printed = capsys.readouterr().out
    assert f"python -m vlmeval.run --config {written}" in printed
    assert printed.startswith(f"# {written} is written.")
    assert 'pip install ms-vlmeval "pandas<3"' in printed
    commands = [line for line in printed.splitlines() if line.startswith(("mkdir", "cp"))]
    assert commands == [
        'mkdir -p "${LMUData:-$HOME/LMUData}"',
        'cp my_cot.tsv "${LMUData:-$HOME/LMUData}"/WeMath_local2_COT.tsv',
    ]
    suite.write_text("name: s\nbenchmarks:\n  - {task: gsm8k}\n")
    assert main(["eval", str(suite), "--model", "builtin:tiny-vl", "--write-config", str(written)]) == 2
    assert "mathvision, mathverse, wemath" in capsys.readouterr().err
    assert main(["eval", str(suite), "--model", "builtin:tiny-vl"]) == 2
    assert "--out" in capsys.readouterr().err
