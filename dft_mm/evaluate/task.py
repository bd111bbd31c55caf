"""What a benchmark is to the rest of evaluation: it gives questions, and turns answers into grades and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dft_mm.evaluate.benchmark import BenchmarkConfig

Status = Literal[
    "correct", "wrong", "no_answer", "truncated", "ungradable", "timeout",
    "passed", "failed", "compile_error", "no_code", "sandbox_error",
]  # fmt: skip

RIGHT: frozenset[Status] = frozenset({"correct", "passed"})
NOT_SCORED: frozenset[Status] = frozenset({"ungradable", "sandbox_error"})
"""The answer is not at fault: its question is left out of the metrics and counted."""


@dataclass(frozen=True)
class Question:
    id: str
    messages: list[dict[str, Any]]
    """{"role", "content": parts {"type": "text", "text"} or {"type": "image"}}, as in training rows."""
    gold: str
    images: tuple[str, ...] = ()
    """Paths of the pictures, in the order of the image parts, relative to `image_root`."""
    image_root: str = "."
    completion: bool = False
    """The one message's text is shown as it is, without a chat template."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are not part of it."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What grading needs of the row; JSON values."""

    @property
    def text(self) -> str:
        """The question for a reader: every text part, pictures as `<image>`."""
        parts = [part for message in self.messages for part in message["content"]]
        return "\n".join(part.get("text", "<image>") for part in parts)


@dataclass(frozen=True)
class Answer:
    question: Question
    sample: int
    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Grade:
    """What an answer came to. `truncated`: no answer, and the response was cut at the token limit. `ungradable`: the
    gold answer or the judge is at fault. `timeout`: comparing it took too much time or memory, or
    running it too much time."""

    status: Status
    extracted: str | None
    detail: str = ""
    """Why, where the status alone does not say it."""
    official: bool | None = None
    """Verdict of the benchmark's own published rules, where they are another column."""


@dataclass(frozen=True)
class Scored:
    grades: list[Grade]
    """One an answer, in the order of the answers."""
    metrics: Mapping[str, Mapping[str, Any]] | None = None
    """{METRIC: {"value", "se", "ci95", "n"}} where the benchmark has columns of its own; else avg@n and pass@k."""
    headline: tuple[str, ...] = ()
    """Metrics that a table of models shows; empty: the first one."""
    notes: tuple[str, ...] = ()
    """Sentences that belong beneath the numbers."""


@dataclass(frozen=True)
class Scoring:
    """What a task may use while it scores."""

    bench: BenchmarkConfig
    work: Path
    """A folder of this benchmark in OUT; a task that needs it makes it, and finds there what it left."""
    unsafe_exec: bool = False
    """Programs may run without a sandbox."""
    advance: Callable[[int], None] = lambda count: None
    """Tell that so many more answers are graded."""


@dataclass(frozen=True)
class Task:
    load: Callable[[BenchmarkConfig, Path], list[Question]]
    """Its questions, in order; the folder is that of `Scoring.work`. Raises InputError naming file and row."""
    score: Callable[[Sequence[Answer], Scoring], Scored]
    judges: tuple[str, ...] = ("rule",)
    """Of rule, exact, endpoint."""
    splits: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset({"prompt"})
    """Keys of a benchmark's entry beside task, data, name, limit, judge and split that it understands."""
    versions: Sequence[str] = ()
    """Distributions whose versions decide its scores."""
    local: Callable[[BenchmarkConfig], BenchmarkConfig | None] = lambda bench: bench if bench.data else None
    """The entry with which `load` has them again without another machine; None where they are not on this one."""
    ready: Callable[[Sequence[Question], bool], None] = lambda questions, unsafe_exec: None
    """Raises InputError when such questions cannot be scored on this machine; asked before anything is generated."""
