"""`eval`: a suite and a model folder → generations, scores and results in one folder, going on where it stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm.evaluate import results as tables
from dft_mm.evaluate.answering import Work, answering, score_lines, write_lines
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.generations import writing
from dft_mm.evaluate.requests import BackendOptions
from dft_mm.evaluate.suite import Suite, load_suite
from dft_mm.evaluate.task import Answer, Question, Scored, Scoring
from dft_mm.evaluate.tasks.registry import TASKS
from dft_mm.progress import progress

_FILES = ("manifest.json", "generations.jsonl", "scores.jsonl", "results.json", "results.md")


def evaluate(
    suite: Suite | str | Path,
    model: str | Path,
    out: str | Path,
    backend: str | None = None,
    replay: str | Path | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    unsafe_exec: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Generate, grade and write OUT/{manifest.json, generations.jsonl, scores.jsonl, results.json, results.md}.

    `backend`: a name of BACKENDS; default replay when a `replay` file is given, openai when a `url` is, else hf.
    `options`: the other fields of BackendOptions. Raises InputError when OUT belongs to another suite, model, sampling
    or data, or another process works there; Stopped when a signal came while generating. Returns what stands in
    results.json; on other ranks than 0, nothing.
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    out = Path(out)
    wanted = BackendOptions(
        str(model), suite.sampling, Path(replay) if replay is not None else None, dtype, batch_size, **options
    )
    packages = frozenset(package for bench in suite.benchmarks for package in TASKS[bench.task].versions)
    work = Work("evaluation", _FILES, {"suite": suite.model_dump(mode="json")}, packages)

    def load() -> dict[str, list[Question]]:
        return {bench.key: _load(bench, out, unsafe_exec) for bench in suite.benchmarks}

    with answering(work, out, load, wanted, backend) as found:
        if found is None:
            return {}
        answers = found.answers
        scored = {bench.key: _score(bench, answers[bench.key], out, unsafe_exec) for bench in suite.benchmarks}
        with writing(out):
            write_lines(
                out / "scores.jsonl",
                [line for key in scored for line in score_lines(key, answers[key], scored[key].grades)],
            )
            summary = tables.summarise(suite, str(model), answers, scored) | _usage(found.lines)
            tables.write(summary, out)
        return summary


def _load(bench: BenchmarkConfig, out: Path, unsafe_exec: bool) -> list[Question]:
    task = TASKS[bench.task]
    questions = task.load(bench, _work(out, bench))
    task.ready(questions, unsafe_exec)
    return questions


def _work(out: Path, bench: BenchmarkConfig) -> Path:
    return out / "work" / bench.key


def _usage(generated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a server counted, which is what it is paid for."""
    counted = [line for line in generated if line.get("prompt_tokens") is not None and line["tokens"] is not None]
    if not counted:
        return {}
    return {
        "usage": {
            "prompt_tokens": sum(line["prompt_tokens"] for line in counted),
            "completion_tokens": sum(line["tokens"] for line in counted),
            "answers": len(counted),
        }
    }


def _score(bench: BenchmarkConfig, answers: Sequence[Answer], out: Path, unsafe_exec: bool) -> Scored:
    with progress(f"grading {bench.key}", len(answers)) as advance:
        scored = TASKS[bench.task].score(answers, Scoring(bench, _work(out, bench), unsafe_exec, advance))
    if len(scored.grades) != len(answers):
        raise RuntimeError(f"{bench.key}: {len(scored.grades)} grades of {len(answers)} answers")
    return scored
