"""Questions to sample answers to: rows with a problem, a gold answer that can be graded, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_mm.data.layouts.formats import with_pictures
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.text import extract
from dft_mm.evaluate.task import RIGHT, Question
from dft_mm.evaluate.tasks.mathematics import MATH_SYSTEM
from dft_mm.evaluate.tasks.rows import load_rows, put

STYLE = Prompt(system=MATH_SYSTEM)
"""How questions are put unless the user says otherwise: as the mathematics tasks put them."""
_PICTURES = ("images", "image", "image_path")


def load_questions(bench: BenchmarkConfig, images: Path | None) -> tuple[list[Question], list[str]]:
    """Questions, and the ids of those that nothing could be verified for: their gold answer does not grade as correct
    when it is given as the answer, or their solution states none.

    A row has `problem` (or `question`), `answer` (what follows its last `####` where it holds one; without the column,
    the final answer of `solution`), and optionally `id` (default: the line) and pictures. Raises InputError.
    """

    def ask(row: dict[str, Any], folder: Path) -> Question:
        problem = row["problem"] if "problem" in row or "question" not in row else row["question"]
        if not isinstance(problem, str) or not problem.strip():
            raise ValueError(f"its `problem` must be text, and is {problem!r}")
        pictures = _pictures(row)
        put_as = put(problem, bench, STYLE)
        if pictures:
            last = put_as["messages"][-1]
            last["content"] = with_pictures(last["content"][0]["text"], len(pictures))
            places = sum(part["type"] == "image" for part in last["content"])
            if places != len(pictures):
                raise ValueError(f"its `problem` has {places} places `<image>` for {len(pictures)} pictures")
        return Question(
            "", gold=_gold(row), images=pictures, image_root=str(images or folder), about={"problem": problem}, **put_as
        )

    questions = load_rows(bench, ask, ids=("id",))
    with Grader(processes=1) as grader:
        golds = [(rf"\boxed{{{question.gold}}}", question.gold, "stop") for question in questions]
        fits = [grade.status in RIGHT for grade in grader.grade_all(golds)]
    asked = [question for question, fit in zip(questions, fits, strict=True) if fit]
    ungradable = [question.id for question, fit in zip(questions, fits, strict=True) if not fit]
    if not asked:
        raise InputError(
            f"{bench.data}: none of its {len(questions)} gold answers can be graded, not even as an answer"
        )
    if ungradable:
        log.warning(
            "%d of %d questions are not asked, since their gold answer cannot be graded (ids %s)",
            len(ungradable), len(questions), ", ".join(ungradable[:5]) + (", …" if len(ungradable) > 5 else ""),
        )  # fmt: skip
    return asked, ungradable


def _gold(row: Mapping[str, Any]) -> str:
    """Empty where a solution states no answer, as proofs do."""
    if "answer" not in row and isinstance(row.get("solution"), str):
        return extract(row["solution"]) or ""
    answer = row["answer"]
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"its `answer` must be text or a number, and is {answer!r}")
    gold = str(answer).rpartition("####")[2].strip()
    if not gold:
        raise ValueError("its gold answer is empty")
    return gold


def _pictures(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = next((row[key] for key in _PICTURES if row.get(key)), [])
    paths = given if isinstance(given, list) else [given]
    if not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"its pictures must be paths, and are {str(given)[:60]!r}")
    return tuple(paths)
