"""generations.jsonl: grows while answers come, and is gone on with so that nothing tells it from an uninterrupted one.

Rank 0 adds to the file itself, rank N to generations.rank-N.jsonl beside it; each batch's lines as soon as they are
there, in any order. In the end the file is written once more, in the order that was planned, and the parts are removed.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dft_mm import dist
from dft_mm.atomic import replacing
from dft_mm.dist import log
from dft_mm.errors import InputError, Stopped
from dft_mm.evaluate.ranks import Ranks
from dft_mm.evaluate.requests import Backend, Generation, Request
from dft_mm.progress import progress

NAME = "generations.jsonl"
_PARTS = "generations.rank-*.jsonl"
_Key = tuple[str, str, int, int]


def generate(source: Backend, batches: Sequence[Sequence[Request]], out: Path, ranks: Ranks) -> list[dict[str, Any]]:
    """All lines of the file in the order of the batches (on other ranks than 0, none); only batches that are not there
    yet are generated."""
    asked = sum(map(len, batches))
    left, kept = dist.on_main(lambda: _left(batches, out))
    if kept:
        log.info("%s: %d of %d answers were there already", out / NAME, kept, asked)
    mine = [batches[number] for number in left[ranks.rank :: ranks.size]]
    path = out / NAME if ranks.rank == 0 else out / _PARTS.replace("*", str(ranks.rank))
    own = ranks.together(lambda: _answer(source, mine, path, ranks, kept, asked))
    there = kept + sum(dist.gather_objects(own))
    if there < asked:
        raise Stopped(f"stopped with {there} of {asked} answers in {out}; the same command goes on from there")
    lines: list[dict[str, Any]] = []
    dist.on_main(lambda: lines.extend(_gather(batches, out)))
    if ranks.rank == 0 and len(lines) != asked:
        raise RuntimeError(f"{out / NAME}: {len(lines)} of {asked} answers are there")
    return lines


def _left(batches: Sequence[Sequence[Request]], out: Path) -> tuple[list[int], int]:
    """Numbers of the batches that are to be generated, and how many answers are there."""
    lines = _gather(batches, out)
    there = {_key_of(line) for line in lines}
    return [number for number, batch in enumerate(batches) if _key(batch[0]) not in there], len(lines)


def _answer(
    source: Backend, batches: Sequence[Sequence[Request]], path: Path, ranks: Ranks, kept: int, asked: int
) -> int:
    """How many answers this rank gave: fewer than its share when it was stopped. Progress is that of all ranks."""
    wanted, answered, told = sum(map(len, batches)), 0, ranks.count(0)
    shown = progress("generating", asked, kept, shown=ranks.rank == 0)
    with writing(path):
        file = path.open("ab", buffering=0)
    with file, ranks.halting() as halted, shown as advance:
        for number, answers in source.generate(batches, halted):
            lines = [_line(request, answer) for request, answer in zip(batches[number], answers, strict=True)]
            with writing(path):
                _add(file, b"".join(map(encode, lines)))
            answered += len(lines)
            before, told = told, ranks.count(len(lines))
            advance(told - before)
    if answered < wanted:
        ranks.halt()
    return answered


def _add(file: BinaryIO, data: bytes) -> None:
    """All of it, or nothing."""
    size = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # half a line at the end is cut off at the next start
            file.truncate(size)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong on the disk is the user's to mend: raised as InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); make room or mend it: what was answered before is "
            "kept, and the same command goes on"
        ) from error


def _line(request: Request, answer: Generation) -> dict[str, Any]:
    line = {
        "benchmark": request.benchmark, "id": request.question.id, "sample": request.sample, "prompt": answer.prompt,
        "text": answer.text, "finish_reason": answer.finish_reason, "tokens": answer.tokens, "seed": request.seed,
    }  # fmt: skip
    return line if answer.prompt_tokens is None else {**line, "prompt_tokens": answer.prompt_tokens}


def encode(line: Mapping[str, Any]) -> bytes:
    """One line of JSON. Lone surrogates, which UTF-8 cannot hold, stay escaped."""
    text = json.dumps(line, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line).encode() + b"\n"


def _gather(batches: Sequence[Sequence[Request]], out: Path) -> list[dict[str, Any]]:
    """The lines of all whole batches, in order; afterwards the file holds exactly these, and there are no parts.

    Half a line at the end of a file is dropped, and so is half a batch: an answer may depend in its last digits on what
    it was generated with. Raises InputError for a line that is no answer to what is asked.
    """
    parts = sorted(path for path in out.glob(_PARTS) if path.is_file())
    files = {path: path.read_bytes() for path in (out / NAME, *parts) if path.is_file()}
    asked = {_key(request) for batch in batches for request in batch}
    raw: dict[_Key, bytes] = {}
    lines: dict[_Key, dict[str, Any]] = {}
    for path, content in files.items():
        own = set()
        for number, text in enumerate(content.split(b"\n")[:-1], 1):  # behind the last line break is half a line
            line = _check(text, asked, f"{path}:{number}")
            key = _key_of(line)
            # Killed between writing the file and removing the parts, both hold the same.
            if key in own or raw.get(key, text) != text:
                raise InputError(f"{path}:{number}: a second {_name(key)}; {_CHANGED}")
            own.add(key)
            raw[key], lines[key] = text, line
    keys = [_key(request) for batch in batches if all(_key(each) in raw for each in batch) for request in batch]
    whole = b"".join(raw[key] + b"\n" for key in keys)
    if [*files.values()] != [whole]:
        with writing(out / NAME):
            with replacing(out / NAME) as file:
                file.write(whole)
            for part in parts:
                part.unlink()
    return [lines[key] for key in keys]


_CHANGED = "the file was changed; give another --out, or remove it"


def _check(text: bytes, asked: set[_Key], where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        key = _key_of(line)
        whole = isinstance(line["text"], str) and line["finish_reason"] in ("stop", "length")
        known = key in asked
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: damaged ({error!r}); give another --out, or remove the file") from error
    if not whole or not known:
        raise InputError(f"{where}: {'a damaged' if known else 'nobody asked for this'} {_name(key)}; {_CHANGED}")
    return line


def _key(request: Request) -> _Key:
    return request.benchmark, request.question.id, request.sample, request.seed


def _key_of(line: Mapping[str, Any]) -> _Key:
    return line["benchmark"], line["id"], line["sample"], line["seed"]


def _name(key: _Key) -> str:
    return f"answer to {key[0]}, question {key[1]!r}, sample {key[2]} with seed {key[3]}"
