"""The benchmarks: how a row becomes a question, and how its answers are graded. A task is one entry of `TASKS`."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_mm.config import read_text
from dft_mm.errors import InputError
from dft_mm.evaluate.grade_math import Grade, Grader

MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
"""Chain-of-thought prompt of Qwen2.5-Math's evaluation, which the DFT paper follows."""

Graded = tuple[str, str, str]
"""A response, its gold answer and its finish reason."""


@dataclass(frozen=True)
class Question:
    id: str
    messages: list[dict[str, Any]]
    """{"role", "content": parts {"type": "text", "text"} or {"type": "image"}}, as in training rows."""
    gold: str
    images: tuple[str, ...] = ()
    """Paths of the pictures, in the order of the image parts, relative to `image_root`."""
    image_root: str = "."

    @property
    def text(self) -> str:
        """The question for a reader: every text part, pictures as `<image>`."""
        parts = [part for message in self.messages for part in message["content"]]
        return "\n".join(part.get("text", "<image>") for part in parts)


@dataclass(frozen=True)
class Task:
    ask: Callable[[dict[str, Any]], tuple[list[dict[str, Any]], str, tuple[str, ...]]]
    """Row -> messages, gold answer, picture paths. Raises KeyError or ValueError for a row it cannot use."""
    grade: Callable[[Sequence[Graded]], Iterator[Grade]]


def load_questions(task: str, data: str, limit: int | None = None) -> list[Question]:
    """The questions of a JSONL file (or of a folder's test.jsonl); raises InputError naming file and line."""
    path = Path(data)
    if path.is_dir():
        path = path / "test.jsonl"
    questions: list[Question] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path, f"data of task {task}").split("\n"), 1):
        if not line.strip():
            continue
        if limit is not None and len(questions) == limit:
            break
        try:
            row = json.loads(line)
            messages, gold, images = TASKS[task].ask(row)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not valid JSON: {error}") from error
        except KeyError as error:
            raise InputError(f"{path}:{number}: a row of task {task} needs the field {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}:{number}: not a row of task {task}: {error}") from error
        found = next((row[key] for key in ("unique_id", "id", "idx") if row.get(key) is not None), number)
        if str(found) in lines:
            raise InputError(f"{path}:{number}: id {found!r} is that of line {lines[str(found)]} too; ids must differ")
        lines[str(found)] = number
        questions.append(Question(str(found), messages, gold, images, str(path.parent)))
    if not questions:
        raise InputError(f"{path}: holds no question")
    return questions


def fingerprint(questions: Sequence[Question]) -> str:
    """Hash of everything in the file of questions that decides prompts and grades."""
    rows = [[question.id, question.messages, question.gold, question.images] for question in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _text(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _mathematics(problem: str, gold: str) -> tuple[list[dict[str, Any]], str, tuple[str, ...]]:
    if not gold.strip():
        raise ValueError("its gold answer is empty")
    return [_text("system", MATH_SYSTEM), _text("user", problem)], gold, ()


def _gsm8k(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str, tuple[str, ...]]:
    _, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("no `####` before the final answer in its `answer`")
    return _mathematics(row["question"], gold.strip())


def _math500(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str, tuple[str, ...]]:
    return _mathematics(row["problem"], row["answer"])


def _digits(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str, tuple[str, ...]]:
    image, problem = row["image_path"], row["problem"]
    content = [{"type": "image"}, {"type": "text", "text": problem}]
    if not isinstance(image, str) or not isinstance(problem, str):
        raise ValueError("its `image_path` and `problem` must be text")
    return [{"role": "user", "content": content}], str(row["answer"]), (image,)


def _grade_mathematics(items: Sequence[Graded]) -> Iterator[Grade]:
    with Grader() as grader:
        yield from grader.grade_all(items)


_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def grade_exact(response: str, gold: str, finish_reason: str = "stop") -> Grade:
    """Text of the last `<answer>…</answer>` against the gold text, white space aside."""
    answers = _ANSWER.findall(response)
    if not answers or not answers[-1].strip():
        return Grade("truncated" if finish_reason == "length" else "no_answer", None)
    extracted = answers[-1].strip()
    same = "".join(extracted.split()) == "".join(gold.split())
    return Grade("correct" if same else "wrong", extracted)


def _grade_exactly(items: Sequence[Graded]) -> Iterator[Grade]:
    return (grade_exact(*item) for item in items)


TASKS: dict[str, Task] = {
    "digits": Task(_digits, _grade_exactly),
    "gsm8k": Task(_gsm8k, _grade_mathematics),
    "math500": Task(_math500, _grade_mathematics),
}
