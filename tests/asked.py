"""A task's questions from a file, without a suite around them."""

from pathlib import Path

from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.tasks.registry import TASKS


def load_questions(task, data, limit=None, work=Path("unused"), **more):
    bench = BenchmarkConfig.model_validate({"task": task, "data": str(data), "limit": limit, **more})
    return TASKS[task].load(bench, work)
