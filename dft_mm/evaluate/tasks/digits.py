"""The demo's task: read a picture of a sum. Graded by the text of the last `<answer>…</answer>`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.task import Answer, Grade, Question, Scored, Scoring, Task
from dft_mm.evaluate.tasks.rows import load_rows

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def _ask(row: dict[str, Any], folder: Path) -> Question:
    image, problem = row["image_path"], row["problem"]
    if not isinstance(image, str) or not isinstance(problem, str):
        raise ValueError("its `image_path` and `problem` must be text")
    content = [{"type": "image"}, {"type": "text", "text": problem}]
    return Question("", [{"role": "user", "content": content}], str(row["answer"]), (image,), str(folder))


def _load(bench: BenchmarkConfig, _: Path) -> list[Question]:
    return load_rows(bench, _ask)


def grade_exact(response: str, gold: str, finish_reason: str = "stop") -> Grade:
    """Text of the last `<answer>…</answer>` against the gold text, white space aside."""
    answers = _ANSWER.findall(response)
    if not answers or not answers[-1].strip():
        return Grade("truncated" if finish_reason == "length" else "no_answer", None)
    extracted = answers[-1].strip()
    same = "".join(extracted.split()) == "".join(gold.split())
    return Grade("correct" if same else "wrong", extracted)


def _score(answers: Sequence[Answer], scoring: Scoring) -> Scored:
    grades = [grade_exact(answer.text, answer.question.gold, answer.finish_reason) for answer in answers]
    scoring.advance(len(grades))
    return Scored(grades)


DIGITS = Task(_load, _score, takes=frozenset())
