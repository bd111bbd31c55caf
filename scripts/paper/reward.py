"""The reward of online RL: 1 where the final answer of a response is the gold one, else 0, by the grader that
evaluations use. verl loads this file by its path; it needs dft_mm and math-verify there, and nothing else."""

from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> float:
    """verl's signature of a reward function. Never raises for any response, and ends within 10 s."""
    from dft_mm.evaluate.grade_math import grade
    from dft_mm.evaluate.task import RIGHT

    return float(grade(solution_str, ground_truth).status in RIGHT)
