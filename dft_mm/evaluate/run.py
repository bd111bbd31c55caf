"""`eval`: a suite and a model folder → generations, scores and results in one folder, going on where it stopped."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dft_mm
from dft_mm import dist
from dft_mm.atomic import replacing, write_atomically
from dft_mm.config import read_text
from dft_mm.errors import InputError
from dft_mm.evaluate import results as tables
from dft_mm.evaluate.backends.registry import make
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.generations import encode, generate, writing
from dft_mm.evaluate.ranks import joined
from dft_mm.evaluate.requests import Backend, BackendOptions, Request, seed_of
from dft_mm.evaluate.suite import Suite, load_suite
from dft_mm.evaluate.task import Answer, Question, Scored, Scoring
from dft_mm.evaluate.tasks.registry import TASKS
from dft_mm.lock import locked
from dft_mm.progress import progress

# What decides answers; a README beside the weights does not.
_HASHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")
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
    with joined() as ranks, contextlib.ExitStack() as held:
        dist.on_main(lambda: _enter(out, held))
        questions = dist.on_main(lambda: {bench.key: _load(bench, out, unsafe_exec) for bench in suite.benchmarks})
        source = ranks.together(lambda: make(backend, wanted, ranks.size))
        batches = ranks.together(lambda: source.plan(_requests(suite, questions)))
        dist.on_main(lambda: _claim(out, _manifest(suite, str(model), source, questions)))
        generated = generate(source, batches, out, ranks)
        if ranks.rank != 0:
            return {}
        answers = _answers(suite, questions, generated)
        scored = {bench.key: _score(bench, answers[bench.key], out, unsafe_exec) for bench in suite.benchmarks}
        with writing(out):
            _write_lines(
                out / "scores.jsonl", [line for key in scored for line in _lines(key, answers[key], scored[key])]
            )
            summary = tables.summarise(suite, str(model), answers, scored) | _usage(generated)
            tables.write(summary, out)
        return summary


def _load(bench: BenchmarkConfig, out: Path, unsafe_exec: bool) -> list[Question]:
    task = TASKS[bench.task]
    questions = task.load(bench, _work(out, bench))
    task.ready(questions, unsafe_exec)
    return questions


def _work(out: Path, bench: BenchmarkConfig) -> Path:
    return out / "work" / bench.key


def _requests(suite: Suite, questions: Mapping[str, Sequence[Question]]) -> list[Request]:
    return [
        Request(name, question, sample, seed_of(suite.sampling.seed, name, question.id, sample))
        for name, asked in questions.items()
        for question in asked
        for sample in range(suite.sampling.samples)
    ]


def _manifest(suite: Suite, model: str, source: Backend, questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    packages = {package for bench in suite.benchmarks for package in TASKS[bench.task].versions}
    packages |= {"torch", "transformers"} if source.settings["name"] == "hf" else set()
    return {
        "suite": suite.model_dump(mode="json"),
        "model": {"path": model, "sha256": _model_hash(model, source.settings["name"])},
        "backend": source.settings,
        "data_sha256": {name: _fingerprint(asked) for name, asked in questions.items()},
        "versions": {
            "dft_mm": dft_mm.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in sorted(packages)},
        },
    }


def _fingerprint(questions: Sequence[Question]) -> str:
    """Hash of everything that decides prompts and grades. Where pictures lie does not; the pictures count elsewhere."""
    rows = [
        [each.id, each.messages, each.gold, each.images, each.completion, each.stop, dict(each.about)]
        for each in questions
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _model_hash(model: str, backend: str) -> str | None:
    """Hash of the names and bytes of all files that decide what the model says; None for a model that answered
    elsewhere and is not on this machine."""
    from dft_mm.model.load import resolve

    if backend in ("openai", "replay") and not (Path(model) / "config.json").is_file():
        return None
    folder = resolve(model)
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _enter(out: Path, held: contextlib.ExitStack) -> None:
    """Hold the folder, if it is new or an evaluation's; what a killed process was writing is removed."""
    held.enter_context(locked(out, "evaluation", "give another --out"))
    # A process that was killed early leaves nothing but hidden files and the tasks' own.
    others = [path.name for path in out.iterdir() if path.name != "work" and not path.name.startswith(".")]
    if others and "manifest.json" not in others:
        raise InputError(f"{out} is not empty and holds no evaluation; give another --out")
    for name in _FILES:
        for half in out.glob(f".{name}.*"):
            half.unlink()


def _claim(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest into a new folder; raise InputError where another one is."""
    path = out / "manifest.json"
    if path.is_file():
        try:
            found = json.loads(read_text(path, "manifest"))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: damaged ({error}); give another --out, or remove the folder") from error
        differ = sorted(_differences(found, manifest))
        if differ:
            raise InputError(
                f"{out} holds another evaluation: {'; '.join(differ[:5])}. Give another --out, or remove the folder"
            )
        return
    with writing(path):
        write_atomically(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found.keys() | wanted.keys():
            # The same weights and questions in another place are the same: their hashes are compared.
            elsewhere = (where, key) == ("model.", "path") or (key == "data" and where.startswith("suite."))
            # So is a judge at another address.
            elsewhere |= where.endswith(".judge.") and key in ("url", "key_env")
            if not elsewhere:
                yield from _differences(found.get(key), wanted.get(key), f"{where}{key}.")
    elif found != wanted:
        yield f"{where.rstrip('.')} was {found!r}, is {wanted!r}"


def _answers(
    suite: Suite, questions: Mapping[str, Sequence[Question]], generated: Sequence[Mapping[str, Any]]
) -> dict[str, list[Answer]]:
    """By benchmark, in the order of the questions, then of the samples."""
    lines = {(line["benchmark"], line["id"], line["sample"]): line for line in generated}
    return {
        name: [
            Answer(question, sample, (line := lines[name, question.id, sample])["text"], line["finish_reason"])
            for question in asked
            for sample in range(suite.sampling.samples)
        ]
        for name, asked in questions.items()
    }


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


def _lines(name: str, answers: Sequence[Answer], scored: Scored) -> Iterator[dict[str, Any]]:
    """Lines of scores.jsonl."""
    for answer, grade in zip(answers, scored.grades, strict=True):
        official = {} if grade.official is None else {"official": grade.official}
        yield {
            "benchmark": name, "id": answer.question.id, "sample": answer.sample, "status": grade.status,
            "extracted": grade.extracted, "gold": answer.question.gold, "detail": grade.detail, **official,
        }  # fmt: skip


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as file:
        file.writelines(map(encode, lines))
