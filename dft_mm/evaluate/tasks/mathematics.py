"""Text mathematics: MATH-500 and its kind, asked for a chain of thought and graded by the final answer.

Twice: by our grader, and by the rules of Qwen2.5-Math's script (`official`), which the DFT paper's numbers come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.text import extract
from dft_mm.evaluate.mathematics.worker import official_missing
from dft_mm.evaluate.task import Answer, Grade, Question, Scored, Scoring, Task
from dft_mm.evaluate.tasks.rows import Published, load_rows, put

MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
"""Chain-of-thought prompt of Qwen2.5-Math's evaluation, which the DFT paper follows."""

_STYLE = Prompt(system=MATH_SYSTEM)


@dataclass(frozen=True)
class _Problem:
    text: str
    gold: str
    tolerance: float = 0.0
    """How far a number may be from the gold one."""


def _task(read: Callable[[dict[str, Any]], _Problem], published: Published, keep_units: bool = False) -> Task:
    """`keep_units`: Qwen's rules strike no unit out of this benchmark's answers."""

    def load(bench: BenchmarkConfig, _: Path) -> list[Question]:
        def ask(row: dict[str, Any], folder: Path) -> Question:
            problem = read(row)
            if not problem.gold.strip():
                raise ValueError("its gold answer is empty")
            if "####" in problem.gold:
                raise ValueError("its gold answer is a whole solution that ends with `####`, as those of gsm8k are")
            about = {"tolerance": problem.tolerance} if problem.tolerance else {}
            return Question("", gold=problem.gold, about=about, **put(problem.text, bench, _STYLE))

        return load_rows(bench, ask, published)

    def score(answers: Sequence[Answer], scoring: Scoring) -> Scored:
        return _score(answers, scoring, keep_units)

    return Task(load, score, versions=("math-verify", "latex2sympy2-extended", "sympy"))


def _score(answers: Sequence[Answer], scoring: Scoring, keep_units: bool) -> Scored:
    missing = official_missing()
    grades: list[Grade] = []
    with Grader() as grader:
        tolerances = [each.question.about.get("tolerance", 0.0) for each in answers]
        items = [(each.text, each.question.gold, each.finish_reason) for each in answers]
        for grade in grader.grade_all(items, tolerances):
            grades.append(grade)
            scoring.advance(1)
        if missing is None:
            verdicts = grader.official_all([(text, gold) for text, gold, _ in items], keep_units)
            grades = [replace(grade, official=verdict) for grade, verdict in zip(grades, verdicts, strict=True)]
    return Scored(grades, notes=() if missing is None else (f"no column `official`: {missing}.",))


def _gsm8k(row: dict[str, Any]) -> _Problem:
    _, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("no `####` before the final answer in its `answer`")
    return _Problem(row["question"], gold.strip())


def _plain(row: dict[str, Any]) -> _Problem:
    """`problem` or `question`, and `answer`: text, or a number such as 27.0."""
    answer = row["answer"]
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return _Problem(row["problem"] if "problem" in row else row["question"], str(answer))


def _minerva(row: dict[str, Any]) -> _Problem:
    if "solution" not in row:  # as the hub's copies have it
        return _plain(row)
    gold = extract(row["solution"])
    if gold is None:
        raise ValueError("no final answer in its `solution`")
    return _Problem(row["problem"], gold)


def _olympiad(row: dict[str, Any]) -> _Problem:
    finals = row["final_answer"]
    if not isinstance(finals, list) or not finals:
        raise ValueError(f"its `final_answer` must be a list of text, and is {finals!r}")
    problem = "\n".join(part for part in (row.get("context"), row["question"]) if part)
    return _Problem(problem, ", ".join(map(str, finals)), float(row.get("error") or 0))


MATHEMATICS = {
    "math500": _task(_plain, Published("HuggingFaceH4/MATH-500")),
    "minerva": _task(_minerva, Published("math-ai/minervamath"), keep_units=True),
    "olympiadbench": _task(_olympiad, Published("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP")),
    "aime24": _task(_plain, Published("math-ai/aime24")),
    "amc23": _task(_plain, Published("math-ai/amc23")),
    "gsm8k": _task(_gsm8k, Published("openai/gsm8k", subset="main")),
}
