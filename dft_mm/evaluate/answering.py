"""Questions → answers in a folder of their own: what `eval` and `sample` have in common, from the lock on the folder to
a whole generations.jsonl, going on where it stopped."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dft_mm
from dft_mm import dist
from dft_mm.atomic import replacing, write_atomically
from dft_mm.errors import InputError
from dft_mm.evaluate.backends.registry import make
from dft_mm.evaluate.generations import encode, generate, writing
from dft_mm.evaluate.ranks import joined
from dft_mm.evaluate.requests import Backend, BackendOptions, Request, seed_of
from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Answer, Grade, Question
from dft_mm.lock import locked
from dft_mm.sections import read_text

Questions = Mapping[str, Sequence[Question]]
"""By benchmark."""

# What decides answers; a README beside the weights does not.
_HASHED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")


@dataclass(frozen=True)
class Work:
    """What is done in a folder."""

    name: str
    """In messages: "evaluation"."""
    files: tuple[str, ...]
    """What it writes there."""
    about: Mapping[str, Any]
    """First entries of the manifest: with other ones, the folder is another's."""
    packages: frozenset[str] = frozenset()
    """Distributions whose versions belong into the manifest."""


@dataclass(frozen=True)
class Answered:
    answers: dict[str, list[Answer]]
    """By benchmark, in the order of the questions, then of the samples."""
    lines: list[dict[str, Any]]
    """All of generations.jsonl."""


@contextlib.contextmanager
def answering(
    work: Work, out: Path, load: Callable[[], Questions], wanted: BackendOptions, backend: str | None
) -> Iterator[Answered | None]:
    """Yields all answers while the folder is held; None on other ranks than 0.

    `load` is called on rank 0. Raises InputError when `out` belongs to other work, another model or other questions, or
    another process works there; Stopped when a signal came while generating.
    """
    with joined() as ranks, contextlib.ExitStack() as held:
        dist.on_main(lambda: _enter(out, work, held))
        source = ranks.together(lambda: make(backend, wanted, ranks.size))
        questions = dist.on_main(load)
        batches = ranks.together(lambda: source.plan(_requests(questions, wanted.sampling)))
        dist.on_main(lambda: _claim(out, work, _manifest(work, wanted.model, source, questions)))
        generated = generate(source, batches, out, ranks)
        whole = Answered(_answers(questions, wanted.sampling, generated), generated) if ranks.rank == 0 else None
        yield whole


def _requests(questions: Questions, sampling: SamplingConfig) -> list[Request]:
    return [
        Request(name, question, sample, seed_of(sampling.seed, name, question.id, sample))
        for name, asked in questions.items()
        for question in asked
        for sample in range(sampling.samples)
    ]


def _manifest(work: Work, model: str, source: Backend, questions: Questions) -> dict[str, Any]:
    packages = work.packages | ({"torch", "transformers"} if source.settings["name"] == "hf" else set())
    return {
        **work.about,
        "model": {"path": model, "sha256": model_hash(model, source.settings["name"])},
        "backend": source.settings,
        "data_sha256": {name: fingerprint(asked) for name, asked in questions.items()},
        "versions": {
            "dft_mm": dft_mm.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in sorted(packages)},
        },
    }


def fingerprint(questions: Sequence[Question]) -> str:
    """Hash of everything that decides prompts and grades. Where pictures lie does not; the pictures count elsewhere."""
    rows = [
        [each.id, each.messages, each.gold, each.images, each.completion, each.stop, dict(each.about)]
        for each in questions
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def model_hash(model: str, backend: str) -> str | None:
    """Hash of the names and bytes of all files that decide what the model says; None for a model that answered
    elsewhere and is not on this machine. A model that is asked here is an adapter's base, too."""
    from dft_mm.model.folder import adapter_base, is_model_folder, resolve

    elsewhere = backend in ("openai", "replay")
    if elsewhere and not is_model_folder(Path(model)):
        return None
    folders = [resolve(model)]
    if not elsewhere and (base := adapter_base(folders[0])):
        folders.append(resolve(base))
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _enter(out: Path, work: Work, held: contextlib.ExitStack) -> None:
    """Hold the folder, if it is new or of the same work; what a killed process was writing is removed."""
    held.enter_context(locked(out, work.name, "give another --out"))
    # A process that was killed early leaves nothing but hidden files and the tasks' own.
    others = [path.name for path in out.iterdir() if path.name != "work" and not path.name.startswith(".")]
    if others and "manifest.json" not in others:
        raise InputError(f"{out} is not empty and holds no {work.name}; give another --out")
    for name in work.files:
        for half in out.glob(f".{name}.*"):
            half.unlink()


def _claim(out: Path, work: Work, manifest: dict[str, Any]) -> None:
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
                f"{out} holds another {work.name}: {'; '.join(differ[:5])}. Give another --out, or remove the folder"
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
    questions: Questions, sampling: SamplingConfig, generated: Sequence[Mapping[str, Any]]
) -> dict[str, list[Answer]]:
    """By benchmark, in the order of the questions, then of the samples."""
    lines = {(line["benchmark"], line["id"], line["sample"]): line for line in generated}
    return {
        name: [
            Answer(question, sample, (line := lines[name, question.id, sample])["text"], line["finish_reason"])
            for question in asked
            for sample in range(sampling.samples)
        ]
        for name, asked in questions.items()
    }


def score_lines(name: str, answers: Sequence[Answer], grades: Sequence[Grade]) -> Iterator[dict[str, Any]]:
    """Lines of scores.jsonl."""
    for answer, grade in zip(answers, grades, strict=True):
        official = {} if grade.official is None else {"official": grade.official}
        yield {
            "benchmark": name, "id": answer.question.id, "sample": answer.sample, "status": grade.status,
            "extracted": grade.extracted, "gold": answer.question.gold, "detail": grade.detail, **official,
        }  # fmt: skip


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as file:
        file.writelines(map(encode, lines))
