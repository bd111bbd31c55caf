"""generations.jsonl: written batch by batch, and gone on with so that nothing tells it from an uninterrupted one."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.requests import Backend, Generation, Request
from dft_mm.progress import progress


def generate(source: Backend, batches: Sequence[Sequence[Request]], path: Path) -> list[dict[str, Any]]:
    """All lines of the file, in the order of the batches; only batches that are not there yet are generated."""
    lines, done = _read(batches, path)
    if done:
        log.info("%s: %d of %d answers were there already", path, len(lines), sum(map(len, batches)))
    with path.open("ab") as file, progress("generating", sum(map(len, batches)), len(lines)) as advance:
        for batch in batches[done:]:
            answers = [_line(request, answer) for request, answer in zip(batch, source.generate(batch), strict=True)]
            file.write(b"".join(map(encode, answers)))
            file.flush()
            os.fsync(file.fileno())
            lines += answers
            advance(len(answers))
    return lines


def _line(request: Request, answer: Generation) -> dict[str, Any]:
    return {
        "benchmark": request.benchmark, "id": request.question.id, "sample": request.sample, "prompt": answer.prompt,
        "text": answer.text, "finish_reason": answer.finish_reason, "tokens": answer.tokens, "seed": request.seed,
    }  # fmt: skip


def encode(line: Mapping[str, Any]) -> bytes:
    """One line of JSON. Lone surrogates, which UTF-8 cannot hold, stay escaped."""
    text = json.dumps(line, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line).encode() + b"\n"


def _read(batches: Sequence[Sequence[Request]], path: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines of all whole batches and their number. What follows, half a batch or half a line, is cut off the file.

    Batches stay together, because an answer may depend in its last digits on what it was generated with.
    """
    if not path.is_file():
        return [], 0
    raw = path.read_bytes().split(b"\n")[:-1]  # after the last line break there is nothing, or half a line
    lines: list[dict[str, Any]] = []
    done = size = 0
    for batch in batches:
        part = raw[len(lines) : len(lines) + len(batch)]
        if len(part) < len(batch):
            break
        for line, request in zip(part, batch):
            lines.append(_check(line, request, f"{path}:{len(lines) + 1}"))
        size += sum(len(line) + 1 for line in part)
        done += 1
    else:
        if len(raw) > len(lines):
            raise InputError(f"{path}: holds {len(raw)} lines, {len(lines)} were asked; give another --out")
    os.truncate(path, size)
    return lines, done


def _check(raw: bytes, request: Request, where: str) -> dict[str, Any]:
    try:
        line = json.loads(raw)
        found = [line[key] for key in ("benchmark", "id", "sample", "seed")]
        whole = isinstance(line["text"], str) and line["finish_reason"] in ("stop", "length")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: damaged ({error!r}); give another --out, or remove the file") from error
    if not whole or found != [request.benchmark, request.question.id, request.sample, request.seed]:
        raise InputError(
            f"{where}: is not the answer to {request.benchmark}, question {request.question.id!r}, sample "
            f"{request.sample}; the file was changed; give another --out, or remove it"
        )
    return line
