"""Text mathematics: GSM8K, MATH-500 and their kind, asked for a chain of thought and graded by their final answer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.task import Answer, Grade, Question, Scored, Scoring, Task
from dft_mm.evaluate.tasks.rows import Published, load_rows, put

MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
"""Chain-of-thought prompt of Qwen2.5-Math's evaluation, which the DFT paper follows."""

ProblemAndGold = Callable[[dict[str, Any]], tuple[str, str]]


def _score(answers: Sequence[Answer], scoring: Scoring) -> Scored:
    grades: list[Grade] = []
    with Grader() as grader:
        for grade in grader.grade_all([(each.text, each.question.gold, each.finish_reason) for each in answers]):
            grades.append(grade)
            scoring.advance(1)
    return Scored(grades)


def _task(read: ProblemAndGold, published: Published) -> Task:
    def load(bench: BenchmarkConfig, _: Path) -> list[Question]:
        def ask(row: dict[str, Any], folder: Path) -> Question:
            problem, gold = read(row)
            if not gold.strip():
                raise ValueError("its gold answer is empty")
            return Question("", gold=gold, **put(problem, bench, Prompt(system=MATH_SYSTEM)))

        return load_rows(bench, ask, published)

    return Task(load, _score, versions=("math-verify", "latex2sympy2-extended", "sympy"))


def _gsm8k(row: dict[str, Any]) -> tuple[str, str]:
    _, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("no `####` before the final answer in its `answer`")
    return row["question"], gold.strip()


def _math500(row: dict[str, Any]) -> tuple[str, str]:
    return row["problem"], row["answer"]


MATHEMATICS = {
    "gsm8k": _task(_gsm8k, Published("openai/gsm8k", subset="main")),
    "math500": _task(_math500, Published("HuggingFaceH4/MATH-500")),
}
