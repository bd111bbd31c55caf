"""A suite: which benchmarks are asked, and how answers are sampled. The same closed sections as the recipe's."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import NAME, BenchmarkConfig, named_files
from dft_mm.evaluate.tasks.registry import TASKS
from dft_mm.sections import Section, load_section


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


class Suite(Section):
    name: str = Field(pattern=NAME)
    """Name of the suite."""
    sampling: SamplingConfig = SamplingConfig()
    benchmarks: list[BenchmarkConfig] = Field(min_length=1)
    """What is asked."""
    averages: dict[str, list[str]] = Field(default={})
    """Unweighted means of several benchmarks' first metrics, by name, as the paper's tables have them."""

    @model_validator(mode="after")
    def _tasks_understand_their_entries(self) -> "Suite":
        for bench in self.benchmarks:
            _check(bench)
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Suite":
        keys = [benchmark.key for benchmark in self.benchmarks]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"benchmarks: {twice[0]!r} stands there twice; give each a `name` of its own")
        for name, members in self.averages.items():
            unknown = [member for member in members if member not in keys]
            if unknown or not members:
                raise ValueError(f"averages.{name}: {unknown or members} are no benchmarks here; there are {keys}")
        return self


def _check(bench: BenchmarkConfig) -> None:
    """Raise ValueError for a key that the task has no use for: it would change nothing, in silence."""
    if bench.task not in TASKS:
        near = difflib.get_close_matches(bench.task, TASKS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown task {bench.task!r}; {hint}There are {', '.join(TASKS)}")
    task = TASKS[bench.task]
    given = bench.model_dump(exclude_defaults=True).keys()  # a suite that was written whole says all defaults
    useless = given & {"prompt", "pictures", "instructions"} - task.takes
    if useless:
        raise ValueError(f"benchmark {bench.key}: task {bench.task} has no {', '.join(sorted(useless))}")
    if bench.judge_kind not in task.judges:
        judges = {"rule": "rule", "exact": "exact", "endpoint": "{url, model, key_env}"}
        known = ", ".join(judges[judge] for judge in task.judges)
        raise ValueError(
            f"benchmark {bench.key}: task {bench.task} cannot be judged by {bench.judge!r}; there are {known}"
        )
    if bench.split is not None and bench.split not in task.splits:
        known = ", ".join(task.splits) or "none"
        raise ValueError(f"benchmark {bench.key}: task {bench.task} has no split {bench.split!r}; there are {known}")


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite file, or `eval/suites/NAME.yaml` by its NAME; then `sampling.key=value`. Raises InputError."""
    file = Path(path)
    if not file.is_file():
        named = named_files("suites")
        if str(path) not in named:
            near = difflib.get_close_matches(Path(path).stem, named, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"suite not found: {path} is no file and no name of a suite; {hint}There are {', '.join(named)}"
            )
        file = named[str(path)]
    return load_section(Suite, file, overrides)
