"""Questions with verified answers → rows to learn from, preference pairs, and how difficult each question is."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dft_mm.evaluate.task import NOT_SCORED, RIGHT, Answer, Grade, Question

BANDS: dict[str, Callable[[float], bool]] = {
    "easy": lambda rate: rate >= 0.75,
    "medium": lambda rate: 0.25 < rate < 0.75,
    "hard": lambda rate: 0 < rate <= 0.25,
    "never_solved": lambda rate: rate == 0,
}
"""Difficulty by pass rate, for training sets that are chosen by it."""


@dataclass(frozen=True)
class Solved:
    """A question with its answers and what they came to, in the order of the samples."""

    question: Question
    answers: Sequence[Answer]
    grades: Sequence[Grade]

    @property
    def correct(self) -> int:
        return sum(grade.status in RIGHT for grade in self.grades)

    @property
    def pass_rate(self) -> float | None:
        """Share of correct answers; None where one could not be scored, as in an evaluation."""
        if any(grade.status in NOT_SCORED for grade in self.grades):
            return None
        return self.correct / len(self.grades)

    def distinct(self, status: str) -> list[Answer]:
        """Answers of this status, the first of those that are the same but for white space around them."""
        found: dict[str, Answer] = {}
        for answer, grade in zip(self.answers, self.grades, strict=True):
            if grade.status == status:
                found.setdefault(answer.text.strip(), answer)
        return list(found.values())


def correct_rows(solved: Sequence[Solved], cap: int | None, pictured: bool) -> Iterator[dict[str, Any]]:
    """Lines of correct.jsonl: what format `problem_solution` reads, or, with pictures, `question_answer`."""
    for each in solved:
        for answer in each.distinct("correct")[:cap]:
            yield {
                "id": each.question.id, "problem": each.question.about["problem"], "solution": answer.text,
                **({"images": list(each.question.images)} if pictured else {}),
                "sample": answer.sample, "pass_rate": each.pass_rate,
            }  # fmt: skip


def preference_pairs(solved: Sequence[Solved], cap: int | None) -> Iterator[dict[str, Any]]:
    """Lines of pairs.jsonl: a question's first correct answer with its first wrong one, its second with its second, ….

    Only `wrong` answers are rejected: one that was cut, states nothing or could not be graded may be right.
    """
    for each in solved:
        for right, wrong in list(zip(each.distinct("correct"), each.distinct("wrong")))[:cap]:
            yield {
                "id": each.question.id, "prompt": each.question.about["problem"], "chosen": right.text,
                "rejected": wrong.text, **({"images": list(each.question.images)} if each.question.images else {}),
            }  # fmt: skip


def statistics(solved: Sequence[Solved], kept: int) -> dict[str, Any]:
    """What stands in stats.json of answers. Those correct are kept, duplicates, or over the cap."""
    samples = len(solved[0].answers)
    status = Counter(grade.status for each in solved for grade in each.grades)
    rates = {each.question.id: each.pass_rate for each in solved}
    correct, distinct = status["correct"], sum(len(each.distinct("correct")) for each in solved)
    scored = [each for each in solved if each.pass_rate is not None]
    return {
        "questions": len(solved),
        "samples": samples * len(solved),
        "correct": correct,
        "kept": kept,
        "duplicates": correct - distinct,
        "over_cap": distinct - kept,
        "status": dict(sorted(status.items())),
        "pass_rate": rates,
        # Questions by how many of their answers are correct, from none to all.
        "histogram": [sum(each.correct == count for each in scored) for count in range(samples + 1)],
        "bands": bands(rates),
    }


def bands(rates: Mapping[str, float | None]) -> dict[str, list[str]]:
    """Ids of the questions of each band."""
    known = {id_: rate for id_, rate in rates.items() if rate is not None}
    found = {band: [id_ for id_, rate in known.items() if fits(rate)] for band, fits in BANDS.items()}
    return found | {"not_scored": [id_ for id_ in rates if id_ not in known]}
