"""Instruction templates that diversify how a question is asked: a row's first question is put into one of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dft_mm.errors import InputError
from dft_mm.sections import read_text

PLACE = "{question}"


def read_prompts(path: str) -> tuple[str, ...]:
    """The templates of a file, one a line, `\\n` in a line being a line break.

    Raises InputError for a file without templates, or a line that has not exactly one `{question}`.
    """
    templates = []
    for number, line in enumerate(read_text(Path(path), "prompts file").splitlines(), start=1):
        if not line.strip():
            continue
        if line.count(PLACE) != 1:
            raise InputError(f"{path}:{number}: a template has {PLACE} exactly once; this is {line!r}")
        templates.append(line.replace("\\n", "\n"))
    if not templates:
        raise InputError(f"{path}: holds no template; write one a line, such as: Solve this. {PLACE}")
    return tuple(templates)


def draw(templates: Sequence[str], seed: int, file: str, row: int) -> str:
    """The template of a row: a function of seed, file and row alone."""
    digest = hashlib.sha256(f"{seed}\0{file}\0{row}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def ask(messages: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages with the first user turn's text inside `template`; pictures stay where they are.

    The template's beginning goes before the turn's first text and its end after the last one.
    """
    before, after = template.split(PLACE)
    number = next(n for n, message in enumerate(messages) if message["role"] == "user")
    content = [dict(part) for part in messages[number]["content"]]
    texts = [part for part in content if part["type"] == "text"]
    if not texts:
        texts = [{"type": "text", "text": ""}]
        content += texts
    texts[0]["text"] = before + texts[0]["text"]
    texts[-1]["text"] += after
    return [*messages[:number], {**messages[number], "content": content}, *messages[number + 1 :]]
