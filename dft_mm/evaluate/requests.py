"""What is asked and what is answered: the values that every backend takes and gives."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Question


@dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    benchmark: str
    question: Question
    sample: int
    seed: int

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{self.benchmark}, question {self.question.id!r}"


@dataclass(frozen=True)
class Generation:
    prompt: str
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int | None
    """Tokens of the answer, the one that ends it included; None where nobody counted."""
    prompt_tokens: int | None = None
    """Tokens of the prompt, where a server told."""


@dataclass(frozen=True)
class BackendOptions:
    """What a user may say about where answers come from; None: the backend's own default."""

    model: str
    sampling: SamplingConfig
    replay: Path | None = None
    dtype: str | None = None
    batch_size: int | None = None
    tensor_parallel: int | None = None
    url: str | None = None
    served_model: str | None = None
    key_env: str | None = None
    concurrency: int | None = None
    request_timeout: float | None = None
    retries: int | None = None


class Backend(Protocol):
    settings: dict[str, Any]
    """What decides its answers beside model, prompts and sampling; part of the manifest."""

    def plan(self, wanted: Sequence[Request]) -> list[list[Request]]:
        """All of them in fixed batches, which are answered whole or not at all; raises InputError for one that
        cannot be answered."""

    def generate(
        self, batches: Sequence[Sequence[Request]], halted: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Generation]]]:
        """The number of a batch and its answers, in any order, each as soon as it is there; after `halted` says so,
        no more are begun."""


def seed_of(seed: int, benchmark: str, question: str, sample: int) -> int:
    """A seed of its own for every answer: it depends on nothing but what is named here."""
    text = json.dumps([seed, benchmark, question, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # fits int64
