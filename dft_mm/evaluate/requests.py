"""What is asked and what is answered: the values that every backend takes and gives."""

import hashlib
import json
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Generation:
    prompt: str
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int | None
    """Tokens of the answer, the one that ends it included; None where nobody counted."""


@dataclass(frozen=True)
class BackendOptions:
    model: str
    sampling: SamplingConfig
    replay: Path | None = None
    dtype: str = "auto"
    batch_size: int = 16


class Backend(Protocol):
    settings: dict[str, Any]
    """What decides its answers beside model, prompts and sampling; part of the manifest."""

    def plan(self, requests: Sequence[Request]) -> list[list[Request]]:
        """All requests in fixed batches; raises InputError for one that cannot be answered."""

    def generate(self, batch: Sequence[Request]) -> list[Generation]:
        """The answers to one batch, in its order."""


def seed_of(seed: int, benchmark: str, question: str, sample: int) -> int:
    """A seed of its own for every answer: it depends on nothing but what is named here."""
    text = json.dumps([seed, benchmark, question, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # fits int64
