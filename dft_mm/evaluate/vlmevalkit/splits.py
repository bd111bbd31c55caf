"""The splits of each task, and what VLMEvalKit calls them."""

from dataclasses import dataclass

from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.vlmevalkit.metrics import MATHVERSE_VERSIONS


@dataclass(frozen=True)
class Split:
    dataset: str
    """VLMEvalKit's name, which decides the prompt; `cot` at its end asks for a chain of thought."""
    version: str | None = None
    """Of MathVerse's five versions of each question, the one that is asked."""
    published: str | None = None
    """Name of its official table, where it is another's."""

    @property
    def table(self) -> str:
        return self.published or self.dataset


def _mathverse() -> dict[str, Split]:
    splits = {"testmini": Split("MathVerse_MINI"), "cot": Split("MathVerse_MINI_cot", published="MathVerse_MINI")}
    for version in MATHVERSE_VERSIONS:
        name = f"MathVerse_MINI_{version.replace(' ', '_')}"
        splits[version.replace(" ", "_").lower()] = Split(name, version)
        splits[version.replace(" ", "_").lower() + "_cot"] = Split(f"{name}_cot", version, published=name)
    return splits


SPLITS: dict[str, dict[str, Split]] = {
    "mathvision": {"test": Split("MathVision"), "mini": Split("MathVision_MINI")},
    "mathverse": _mathverse(),
    "wemath": {"testmini": Split("WeMath"), "cot": Split("WeMath_COT")},
}
"""By task; the first one is the default."""

CLASSES = {"mathvision": "MathVision", "mathverse": "MathVerse", "wemath": "WeMath"}
"""VLMEvalKit's classes."""


def split_of(bench: BenchmarkConfig) -> Split:
    """The split that a benchmark's entry asks for."""
    splits = SPLITS[bench.task]
    return splits[bench.split or next(iter(splits))]
