"""Some questions with their pictures and every model's answer, right or wrong marked."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_mm.data.images import load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.task import Question
from dft_mm.evaluate.tasks.registry import TASKS
from dft_mm.report.read import Results, locate, read_lines

_LONGEST_SIDE = 480
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Answer:
    label: str
    text: str
    status: str
    extracted: str | None


@dataclass(frozen=True)
class Sample:
    id: str
    problem: str
    gold: str
    pictures: tuple[str, ...]
    """data: URIs."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SampleSet:
    benchmark: str
    total: int
    every: int
    """Questions 1, 1 + every, 1 + 2 every, … are shown: chosen by place, not by how they came out."""
    samples: tuple[Sample, ...]


def sample_sets(results: Sequence[Results], wanted: int) -> list[SampleSet]:
    """About `wanted` questions of each benchmark, evenly spread. Benchmarks whose questions are gone are left out."""
    sets = []
    for benchmark in dict.fromkeys(name for result in results for name in result.benchmarks):
        asked = [result for result in results if benchmark in result.benchmarks]
        questions = next((found for result in asked if (found := _questions(result, benchmark))), None)
        if questions:
            every = max(1, -(-len(questions) // wanted))
            chosen = questions[::every]
            answers = [_answers(result, benchmark) for result in asked]
            samples = tuple(
                Sample(
                    question.id,
                    "\n".join(part["text"] for part in question.messages[-1]["content"] if part["type"] == "text"),
                    question.gold,
                    tuple(_picture(image, Path(question.image_root)) for image in question.images),
                    tuple(given[question.id] for given in answers if question.id in given),
                )
                for question in chosen
            )
            sets.append(SampleSet(benchmark, len(questions), every, samples))
    return sets


def _questions(result: Results, benchmark: str) -> list[Question] | None:
    """The questions, from the file that the results' manifest names."""
    entries = result.manifest.get("suite", {}).get("benchmarks", [])
    entry = next((each for each in entries if (each["name"] or each["task"]) == benchmark), None)
    if entry is None:
        return None
    path = locate(entry["data"], result.folder) if entry["data"] else None
    if entry["data"] and path is None:
        return None
    bench = BenchmarkConfig.model_validate(entry | {"data": None if path is None else str(path)})
    try:
        return TASKS[bench.task].load(bench, result.folder / "work" / benchmark)
    except InputError:  # the file is another one by now; the scores stand without it
        return None


def _answers(result: Results, benchmark: str) -> dict[str, Answer]:
    """First answer to each question, by id."""
    verdicts: dict[tuple[str, str], dict[str, Any]] = {
        (line["benchmark"], line["id"]): line
        for line in read_lines(result.folder / "scores.jsonl")
        if line["sample"] == 0
    }
    return {
        line["id"]: Answer(result.label, line["text"][:_LONGEST_TEXT], verdict["status"], verdict["extracted"])
        for line in read_lines(result.folder / "generations.jsonl")
        if line["sample"] == 0 and line["benchmark"] == benchmark
        if (verdict := verdicts.get((benchmark, line["id"])))
    }


def _picture(path: str, root: Path) -> str:
    image = load_image(path, root)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
