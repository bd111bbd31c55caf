"""Grading that takes no time: it has tests of its own, and here answers matter."""

from dataclasses import replace

import pytest

from dft_mm.evaluate.task import Grade, Scored
from dft_mm.evaluate.tasks.registry import TASKS


@pytest.fixture(autouse=True, scope="module")
def quick_grading():
    def score(answers, scoring):
        right = [answer.question.gold in answer.text for answer in answers]
        return Scored([Grade("correct" if each else "wrong", None) for each in right])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "gsm8k", replace(TASKS["gsm8k"], score=score))
        yield
