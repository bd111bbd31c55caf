"""Questions with their pictures and every model's answer, to read and to filter."""

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_mm.data.images import ImageError, load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.task import RIGHT, Question
from dft_mm.report.read import Results, locate, read_lines

MOST = 240
"""Questions on a page."""
BYTES = 2_500_000
"""That all of them may take, so that a page stays below 5 MB."""
LONGEST_TEXT = 2000
"""Characters of a question or an answer."""
_LONGEST_SIDE = 320
_LONGEST_REASON = 300
# What a manifest of another version, its task, or a storage that cannot be written to may lead to: the scores stand
# without the questions, and the page says why they are not there.
_FOREIGN = (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError)


@dataclass(frozen=True)
class Answer:
    model: int
    """Its place in `Examples.models`."""
    text: str
    """Of the first sample."""
    length: int
    """Characters of all of it."""
    status: str
    extracted: str | None
    right: int
    """Samples that are right, of `samples`."""
    samples: int


@dataclass(frozen=True)
class Example:
    benchmark: str
    data_sha256: str | None
    """Of all questions that this one was asked with."""
    id: str
    problem: str
    length: int
    gold: str
    pictures: tuple[str | None, ...]
    """data: URIs; None for one that cannot be shown any more."""
    answers: tuple[Answer, ...]

    @property
    def size(self) -> int:
        """About how many bytes it is on the page."""
        texts = [self.problem, *(answer.text for answer in self.answers)]
        told = ((each or "").encode(errors="replace") for each in (*self.pictures, *texts))
        return 400 * (1 + len(self.answers)) + sum(map(len, told))


@dataclass(frozen=True)
class Shown:
    """How examples were chosen among the questions that some models were asked as one benchmark."""

    benchmark: str
    models: tuple[str, ...]
    total: int
    spread: int
    """Examples by their place in the file, evenly spread."""
    differing: int
    """Questions on which the models' answers differ in being right."""
    more: int
    """Examples of these beside the spread ones."""
    missing: str
    """Why the questions themselves cannot be shown, but only what the models were asked; empty where they can."""


@dataclass(frozen=True)
class Examples:
    models: tuple[str, ...]
    several: bool
    """Some questions have several answers of each model."""
    shown: tuple[Shown, ...]
    examples: tuple[Example, ...]

    def key(self, example: Example, answer: Answer) -> str:
        """The same for an answer wherever on the page it stands, and another for each."""
        told = [example.benchmark, example.data_sha256, example.id, self.models[answer.model]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def differing(self) -> list[tuple[int, int, int]]:
        """(model, other, examples that the first one has right more often), where there are some."""
        shares = [{a.model: a.right / a.samples for a in example.answers} for example in self.examples]
        pairs = itertools.permutations(range(len(self.models)), 2)
        found = ((a, b, sum(each.get(a, 0) > each.get(b, 1) for each in shares)) for a, b in pairs)
        return [each for each in found if each[2]]


@dataclass(frozen=True)
class _Given:
    """What one result folder says, by benchmark and question."""

    model: int
    result: Results
    answers: dict[str, dict[str, Answer]]
    prompts: dict[str, list[Question]]
    """What was asked, as far as the answers tell: no pictures."""


def read_examples(results: Sequence[Results], most: int = MOST, most_bytes: int = BYTES) -> Examples:
    """Some questions of each benchmark: half of them evenly spread, half of them such on which the models differ."""
    models = tuple(dict.fromkeys(result.label for result in results))
    given = [_read(result, models.index(result.label)) for result in results]
    # Two files may call their questions alike; answers stand side by side only where all questions are the same.
    sets = list(dict.fromkeys((name, _hash(result, name)) for result in results for name in result.benchmarks))
    shown, examples = [], []
    for left, (benchmark, digest) in zip(range(len(sets), 0, -1), sets):
        # What one benchmark does not use is left to the next.
        room = most_bytes - sum(each.size for each in examples)
        asked = [each for each in given if benchmark in each.answers and _hash(each.result, benchmark) == digest]
        told, chosen = _of_set(benchmark, digest, asked, (most - len(examples)) // left, room // left)
        if told:
            shown.append(told)
            examples += chosen
    several = any(answer.samples > 1 for example in examples for answer in example.answers)
    return Examples(models, several, tuple(shown), tuple(examples))


def _hash(result: Results, benchmark: str) -> str | None:
    return result.manifest.get("data_sha256", {}).get(benchmark)


def _of_set(
    benchmark: str, digest: str | None, asked: Sequence[_Given], most: int, most_bytes: int
) -> tuple[Shown | None, list[Example]]:
    answers = {each.model: each.answers[benchmark] for each in asked}
    known, missing = _known(benchmark, digest, asked)
    questions = [
        question
        for question in known or (asked[0].prompts[benchmark] if asked else [])
        if any(question.id in given for given in answers.values())
    ]
    differing = {place for place, each in enumerate(questions) if _differ(answers, each.id)}
    chosen: dict[int, Example] = {}
    spread = size = 0
    for place, is_spread in _turns(len(questions), differing):
        example = _example(benchmark, digest, questions[place], answers)
        if len(chosen) >= most or size + example.size > most_bytes:
            break
        chosen[place] = example
        spread += is_spread
        size += example.size
    if not chosen:
        return None, []
    models = tuple(dict.fromkeys(each.result.label for each in asked))
    told = Shown(benchmark, models, len(questions), spread, len(differing), len(chosen) - spread, missing)
    return told, [chosen[place] for place in sorted(chosen)]


def _turns(total: int, differing: set[int]) -> Iterator[tuple[int, bool]]:
    """Places, each once, in turn from all of them (True) and from those that differ, both evenly spread at any end."""
    queues = [(iter(_spread(range(total))), True), (iter(_spread(sorted(differing))), False)]
    seen: set[int] = set()
    while queues:
        for queue in list(queues):
            place = next((place for place in queue[0] if place not in seen), None)
            if place is None:
                queues.remove(queue)
            else:
                seen.add(place)
                yield place, queue[1]


def _spread(items: Sequence[int]) -> list[int]:
    """The items so that each beginning of the list is spread evenly over them."""
    bits = max(1, (len(items) - 1).bit_length())
    order = sorted(range(len(items)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [items[place] for place in order]


def _differ(answers: Mapping[int, Mapping[str, Answer]], question: str) -> bool:
    given = [each[question] for each in answers.values() if question in each]
    return len({answer.right / answer.samples for answer in given}) > 1


def _example(
    benchmark: str, digest: str | None, question: Question, answers: Mapping[int, Mapping[str, Answer]]
) -> Example:
    parts = [part for message in question.messages for part in message["content"] if message["role"] != "system"]
    problem = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return Example(
        benchmark, digest, question.id, problem[:LONGEST_TEXT], len(problem), question.gold,
        tuple(_picture(image, Path(question.image_root)) for image in question.images),
        tuple(given[question.id] for given in answers.values() if question.id in given),
    )  # fmt: skip


def _known(benchmark: str, digest: str | None, asked: Sequence[_Given]) -> tuple[list[Question], str]:
    """The questions that the models were asked; or none, and why not."""
    why = "" if digest else "the manifest does not say which they were"
    for each in asked if digest else ():
        try:
            questions = _questions(each.result, benchmark)
        except InputError as error:
            why = str(error)
        except _FOREIGN as error:
            why = f"{type(error).__name__}: {error}"
        else:
            from dft_mm.evaluate.answering import fingerprint  # brings torch along, as TASKS does

            if fingerprint(questions) == digest:
                return questions, ""
            return [], "they are not those that were asked: their file has changed, or this version puts them otherwise"
    return [], " ".join(why.split())[:_LONGEST_REASON]


def _questions(result: Results, benchmark: str) -> list[Question]:
    """The questions, from the file that the results' manifest names. Raises InputError where there is none here, and
    _FOREIGN."""
    entries = result.manifest.get("suite", {}).get("benchmarks", [])
    entry = next((each for each in entries if (each["name"] or each["task"]) == benchmark), None)
    if entry is None:
        raise InputError(f"{result.folder} does not say where they are from")
    path = locate(entry["data"], result.folder) if entry["data"] else None
    if entry["data"] and path is None:
        raise InputError(f"{entry['data']} is gone")
    from dft_mm.evaluate.tasks.registry import TASKS  # brings torch along, which takes seconds

    bench = BenchmarkConfig.model_validate(entry | {"data": None if path is None else str(path)})
    task = TASKS[bench.task]
    bench = task.local(bench)
    if bench is None:
        raise InputError("they are not on this machine")
    return task.load(bench, result.folder / "work" / benchmark)


def _read(result: Results, model: int) -> _Given:
    verdicts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in read_lines(result.folder / "scores.jsonl"):
        verdicts.setdefault((line["benchmark"], line["id"]), []).append(line)
    given = _Given(model, result, {}, {})
    for line in read_lines(result.folder / "generations.jsonl"):
        benchmark, question = line["benchmark"], line["id"]
        lines = verdicts.get((benchmark, question), [])
        first = next((each for each in lines if each["sample"] == 0), None)
        if line["sample"] != 0 or first is None:
            continue
        right = sum(each["status"] in RIGHT for each in lines)
        given.answers.setdefault(benchmark, {})[question] = Answer(
            model, line["text"][:LONGEST_TEXT], len(line["text"]), first["status"], first["extracted"], right,
            len(lines),
        )  # fmt: skip
        turn = {"role": "user", "content": [{"type": "text", "text": line["prompt"]}]}
        given.prompts.setdefault(benchmark, []).append(Question(question, [turn], first["gold"]))
    return given


def _picture(path: str, root: Path) -> str | None:
    try:
        image = load_image(path, root)
    except ImageError:
        return None
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
