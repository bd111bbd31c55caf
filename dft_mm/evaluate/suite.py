"""A suite: which benchmarks are asked, and how answers are sampled. The same closed sections as the recipe's."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dft_mm.config import Section, load_section
from dft_mm.errors import InputError
from dft_mm.evaluate.tasks import TASKS

SUITES_DIR = Path("eval/suites")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class SamplingConfig(Section):
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together reach this probability."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in tokens."""
    samples: int = Field(default=1, ge=1)
    """Answers to each question."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Every answer's own seed is made of it, the benchmark, the question's id and the number of the sample."""

    @model_validator(mode="after")
    def _samples_differ(self) -> "SamplingConfig":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples} but temperature is 0: all answers would be the same")
        return self


class BenchmarkConfig(Section):
    task: str
    """What is asked and how it is graded."""
    data: str
    """File of questions, or a folder with a test.jsonl."""
    name: str | None = Field(default=None, pattern=_NAME)
    """Name in the results; default: the task."""
    limit: int | None = Field(default=None, ge=1)
    """Ask the first so many questions."""
    judge: Literal["rule"] = "rule"
    """Answers are graded by the task's own rule."""

    @model_validator(mode="after")
    def _task_exists(self) -> "BenchmarkConfig":
        if self.task not in TASKS:
            near = difflib.get_close_matches(self.task, TASKS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown task {self.task!r}; {hint}There are {', '.join(TASKS)}")
        return self

    @property
    def key(self) -> str:
        """Its name everywhere in the results."""
        return self.name or self.task


class Suite(Section):
    name: str = Field(pattern=_NAME)
    """Name of the suite."""
    sampling: SamplingConfig = SamplingConfig()
    benchmarks: list[BenchmarkConfig] = Field(min_length=1)
    """What is asked."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Suite":
        keys = [benchmark.key for benchmark in self.benchmarks]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"benchmarks: {twice[0]!r} stands there twice; give each a `name` of its own")
        return self


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite file, or `eval/suites/NAME.yaml` by its NAME; then `sampling.key=value`. Raises InputError."""
    file = Path(path)
    if not file.is_file():
        named = SUITES_DIR / f"{path}.yaml"
        if not named.is_file():
            known = ", ".join(sorted(suite.stem for suite in SUITES_DIR.glob("*.yaml"))) or "none"
            raise InputError(
                f"suite not found: {path} is no file, and {named} does not exist in {Path.cwd()} (there: {known})"
            )
        file = named
    return load_section(Suite, file, overrides)
