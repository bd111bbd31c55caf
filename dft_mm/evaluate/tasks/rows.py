"""Rows of a benchmark: from a JSONL file, a folder, or where the benchmark is published; each with an id of its own."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt, named_files
from dft_mm.evaluate.task import Question
from dft_mm.sections import load_section, read_text

IDS = ("unique_id", "id", "idx")


@dataclass(frozen=True)
class Published:
    """A data set of the Hugging Face hub."""

    repository: str
    split: str = "test"
    subset: str | None = None


def load_rows(
    bench: BenchmarkConfig,
    ask: Callable[[dict[str, Any], Path], Question],
    published: Published | None = None,
    ids: Sequence[str] = IDS,
) -> list[Question]:
    """`ask` makes a question of a row and the folder it came from; its id is set here. Raises InputError."""
    questions: list[Question] = []
    lines: dict[str, int] = {}
    source, rows = _rows(bench, published)
    folder = source.parent if isinstance(source, Path) else Path()
    for number, row in rows:
        if bench.limit is not None and len(questions) == bench.limit:
            break
        try:
            question = ask(row, folder)
        except InputError:  # of the prompt: no row is at fault
            raise
        except KeyError as error:
            raise InputError(f"{source}:{number}: a row of task {bench.task} needs the field {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{source}:{number}: not a row of task {bench.task}: {error}") from error
        found = str(next((row[key] for key in ids if row.get(key) is not None), number))
        if found in lines:
            raise InputError(f"{source}:{number}: id {found!r} is that of line {lines[found]} too; ids must differ")
        lines[found] = number
        questions.append(Question(**{**vars(question), "id": found}))
    if not questions:
        raise InputError(f"{source}: holds no question")
    return questions


def _rows(bench: BenchmarkConfig, published: Published | None) -> tuple[Path | str, Iterable[tuple[int, Any]]]:
    if bench.data is not None:
        path = Path(bench.data)
        if path.is_dir():
            if not (path / "test.jsonl").is_file():
                there = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
                raise InputError(f"benchmark {bench.key}: {path} holds no test.jsonl (there: {there}); name the file")
            path = path / "test.jsonl"
        return path, _lines(path, f"data of task {bench.task}")
    if published is None:
        raise InputError(
            f"benchmark {bench.key}: say where its questions are, `data: FILE.jsonl`; they are not published"
        )
    return published.repository, enumerate(_from_hub(bench, published), 1)


def _lines(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not valid JSON: {error.msg}, at character {error.pos + 1}") from error


def _from_hub(bench: BenchmarkConfig, published: Published) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset  # slow to import, and only needed here

    try:
        return load_dataset(published.repository, published.subset, split=published.split)
    except Exception as error:  # whatever a hub, a network or a cache may raise
        raise InputError(
            f"benchmark {bench.key}: {published.repository} cannot be had from the hub ({error}); "
            "give its file: `data: FILE.jsonl`"
        ) from error


def put(question: str, bench: BenchmarkConfig, own: Prompt, images: int = 0) -> dict[str, Any]:
    """What the prompt makes of a question's text: `messages`, `completion` and `stop` of a Question.

    Pictures stand before the text. Raises InputError for a prompt that cannot be read.
    """
    prompt = resolve_prompt(bench, own)
    text = prompt.user.replace("{question}", question)
    parts: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    system = [] if prompt.system is None else [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}]
    return {
        "messages": [*system, {"role": "user", "content": parts}],
        "completion": prompt.completion,
        "stop": prompt.stop,
    }


def resolve_prompt(bench: BenchmarkConfig, own: Prompt) -> Prompt:
    if not isinstance(bench.prompt, str):
        return bench.prompt or own
    named = named_files("prompts")
    file = Path(bench.prompt) if Path(bench.prompt).is_file() else named.get(bench.prompt)
    if file is None:
        raise InputError(
            f"benchmark {bench.key}: prompt {bench.prompt!r} is no file and no name of a prompt; "
            f"there are {', '.join(named)}"
        )
    return load_section(Prompt, file)
