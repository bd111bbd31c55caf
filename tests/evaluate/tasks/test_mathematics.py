"""Mathematics benchmarks: rows of every published layout, gold answers, and the second column of verdicts."""

import itertools
import json
from pathlib import Path

import pytest
from asked import load_questions

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics import worker as math_worker
from dft_mm.evaluate.mathematics.text import clean, number, squash
from dft_mm.evaluate.results import sample_metrics
from dft_mm.evaluate.task import Answer, Scoring
from dft_mm.evaluate.tasks.mathematics import MATH_SYSTEM
from dft_mm.evaluate.tasks.registry import TASKS

FOLDERS = {
    "math500": "math_oai", "minerva": "minerva_math", "olympiadbench": "olympiadbench", "aime24": "aime24",
    "amc23": "amc23", "gsm8k": "gsm8k",
}  # fmt: skip

# Gold answers with which no other form of an answer can be compared: an equation with a name of its own, words, a typo
# of the data (`t \\in` lost its `\\in`). What does not repeat them is `ungradable` and counted. And a pair that is the
# same.
EXCEPTIONS = {
    "math500": {"5"},
    "minerva": {
        r"\frac{dM}{dt}=\frac{10^{5} L_{\odot}}{0.007 c^{2} M_{\odot}^{6}} M^{6}",
        r"\frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}",
    },
    "olympiadbench": {
        "$f(x)=a x+b$, where $b$ is an arbitrary integer, and $a$ is an arbitrary positive integer with $\\mho(a)=0$",
        "$t(0,4]$",
    },
}


def _one(tmp_path, task, row, **more):
    path = tmp_path / f"{task}.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return load_questions(task, path, **more)[0]


def _score(task, question, *texts):
    answers = [Answer(question, number, text, "stop") for number, text in enumerate(texts)]
    bench = BenchmarkConfig(task=task, data="unused")
    return TASKS[task].score(answers, Scoring(bench, Path("unused")))


@pytest.mark.parametrize(
    ("task", "row", "gold", "words"),
    [
        ("math500", {"problem": "p?", "answer": r"\frac{1}{2}"}, r"\frac{1}{2}", "p?"),
        ("aime24", {"problem": "p?", "answer": "204", "question": "p?"}, "204", "p?"),
        ("amc23", {"problem": "p?", "answer": 27.0, "question": "p?"}, "27", "p?"),
        ("amc23", {"question": "q?", "answer": 2.5}, "2.5", "q?"),
        ("minerva", {"problem": "p?", "solution": r"a \boxed{1} b \boxed{2.5}", "idx": 0}, "2.5", "p?"),
        ("minerva", {"question": "q?", "answer": "2.5"}, "2.5", "q?"),
        ("gsm8k", {"question": "q?", "answer": "x\n#### 1,234"}, "1,234", "q?"),
        ("olympiadbench", {"question": "q?", "context": None, "final_answer": ["$69$,$84$"]}, "$69$,$84$", "q?"),
        ("olympiadbench", {"question": "q?", "context": "Given c.", "final_answer": ["1"]}, "1", "Given c.\nq?"),
    ],
)
def test_rows_of_every_published_layout(tmp_path, task, row, gold, words):
    question = _one(tmp_path, task, row)
    assert question.gold == gold
    assert question.text == f"{MATH_SYSTEM}\n{words}"


def test_a_prompt_of_one_s_own_replaces_the_task_s(tmp_path):
    row = {"problem": "1 + 1?", "answer": "2"}
    question = _one(tmp_path, "math500", row, prompt={"user": "Q: {question}\nA:", "completion": True, "stop": ["Q:"]})
    assert (question.text, question.completion, question.stop) == ("Q: 1 + 1?\nA:", True, ("Q:",))
    named = _one(tmp_path, "math500", row, prompt="qwen_math_base")
    assert named.completion
    assert "1 + 1?" in named.text
    with pytest.raises(InputError, match=r"'nosuch'.*qwen_math_cot"):
        _one(tmp_path, "math500", row, prompt="nosuch")
    file = tmp_path / "p.yaml"
    file.write_text("user: nothing asked\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"p\.yaml.*\{question\}"):
        _one(tmp_path, "math500", row, prompt=str(file))


def test_a_stated_tolerance_is_allowed_and_no_more(tmp_path):
    question = _one(tmp_path, "olympiadbench", {"question": "q", "final_answer": ["4.2"], "error": "1e-1"})
    scored = _score("olympiadbench", question, r"\boxed{4.25}", r"\boxed{4.3}", r"\boxed{4.31}", r"\boxed{4.2}")
    assert [grade.status for grade in scored.grades] == ["correct", "correct", "wrong", "correct"]
    assert "within 0.1" in scored.grades[0].detail


def test_the_official_verdict_stands_beside_ours(tmp_path):
    question = _one(tmp_path, "math500", {"problem": "p", "answer": "3"})
    scored = _score("math500", question, r"\boxed{3}", r"\boxed{300}", "it is 3", "I counted 3 of them", r"\boxed{4}")
    assert [grade.status for grade in scored.grades] == ["correct", "wrong", "no_answer", "no_answer", "wrong"]
    assert [grade.official for grade in scored.grades] == [True, True, True, True, False]
    metrics = sample_metrics(["q"] * 5, scored.grades, 5)
    assert metrics["avg@5"]["value"] == pytest.approx(0.2)
    assert metrics["official avg@5"]["value"] == pytest.approx(0.8)


def test_without_its_libraries_the_official_column_is_left_out_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(math_worker._OFFICIAL_NEEDS, "word2number", "99")
    scored = _score("math500", _one(tmp_path, "math500", {"problem": "p", "answer": "3"}), r"\boxed{3}")
    assert scored.grades[0].official is None
    assert "word2number 99" in scored.notes[0]
    assert "official avg@1" not in sample_metrics(["q"], scored.grades, 1)


@pytest.mark.parametrize(("task", "folder"), FOLDERS.items())
def test_every_gold_answer_is_correct_and_the_next_one_is_not(shared, task, folder):
    golds = [question.gold for question in load_questions(task, shared / "data/text_math" / folder)]
    with Grader() as grader:
        same = list(grader.grade_all([(rf"Thus \boxed{{{gold}}}.", gold, "stop") for gold in golds]))
        pairs = [(gold, other) for gold, other in itertools.pairwise(golds) if gold.strip("$ ") != other.strip("$ ")]
        pairs = pairs[::3]  # every third: computer algebra takes its time
        other = list(grader.grade_all([(rf"Thus \boxed{{{answer}}}.", gold, "stop") for gold, answer in pairs]))
    assert [gold for gold, verdict in zip(golds, same) if verdict.status != "correct"] == []
    odd = [pair for pair, verdict in zip(pairs, other) if verdict.status != "wrong"]
    assert {gold for gold, _ in odd} <= EXCEPTIONS.get(task, set())


def _clothes(gold: str) -> list[tuple[str, bool]]:
    """The same answer as models write it, and, of numbers, others that are near it."""
    inside = gold.strip("$ ")
    same = [
        rf"So \[\boxed{{{inside}}}\]",
        f"<think>hm</think><answer>{gold}</answer>",
        rf"\boxed{{{gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}",
    ]
    if "$" not in inside:
        same.append(f"The final answer is ${inside}$.")
    other = []
    if (value := number(squash(clean(gold)))) is not None:
        same.append(rf"\boxed{{\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}}}")
        if value.denominator == 1 and value >= 1000:
            same += [rf"\boxed{{{value.numerator:,}}}", rf"\boxed{{{value.numerator:,}}}".replace(",", "{,}")]
        other = [rf"\boxed{{{each}}}" for each in (value + 1, 2 * value + 1, -value - 1) if each != value]
    return [(text, True) for text in same] + [(text, False) for text in other]


def test_answers_in_other_clothes(shared):
    """Forms that the grader was not tuned on: none of the wrong ones passes, and of the right ones 1 in 1,000 fails."""
    golds = [
        question.gold
        for task, folder in FOLDERS.items()
        for question in load_questions(task, shared / "data/text_math" / folder)
    ]
    items = [(text, gold, right) for gold in golds for text, right in _clothes(gold)]
    with Grader() as grader:
        grades = list(grader.grade_all([(text, gold, "stop") for text, gold, _ in items]))
    accepted = [item for item, grade in zip(items, grades) if grade.status == "correct" and not item[2]]
    rejected = [item for item, grade in zip(items, grades) if grade.status != "correct" and item[2]]
    assert sum(right for *_, right in items) > 9000
    assert sum(not right for *_, right in items) > 4500
    assert accepted == []
    assert len(rejected) <= 9, rejected
