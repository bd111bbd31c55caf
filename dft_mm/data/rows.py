"""Files of rows → validated rows that know where they came from; a bad one is a BadRow, and the next goes on."""

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dft_mm.config import SourceConfig
from dft_mm.data.formats import BadRow, Conversation, Message
from dft_mm.data.layouts import Layout
from dft_mm.data.tools import DEFAULT_SYSTEM
from dft_mm.errors import InputError

_OTHER_FILES = {".gz", ".zst", ".csv", ".tsv", ".parquet", ".arrow", ".zip", ".xlsx"}
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Record:
    """One row of a file as it was written."""

    line: int | None
    """Physical line where it begins, from 1."""
    row: int
    """Its number among the rows, from 0."""
    value: Any
    """The decoded JSON value, or the BadRow that says why there is none."""


def read_records(source: SourceConfig) -> Iterator[Record]:
    """The rows of a JSONL or JSON file, at most `source.limit` of them.

    Raises InputError for what is no such file; a line that is no JSON is a BadRow in its Record.
    """
    path = Path(source.path)
    if path.is_dir():
        raise InputError(f"data: {path} is a folder; give a JSONL or JSON file")
    if not path.is_file():
        raise InputError(f"data: file not found: {path} (looked in {Path.cwd()})")
    if path.suffix.lower() in _OTHER_FILES:
        raise InputError(f"data: {path}: {path.suffix} files are not read; convert it to JSONL")
    try:
        records = _list_items(path) if _is_list(path) else _line_records(path)
        empty = True
        for record in itertools.islice(records, source.limit):
            empty = False
            yield record
    except OSError as error:
        raise InputError(f"data: {path} cannot be read: {error}") from error
    if empty:
        raise InputError(f"data: {path} is empty")


def _line_records(path: Path) -> Iterator[Record]:
    for row, (line, data) in enumerate(_lines(path)):
        yield _decode(line, row, data)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank."""
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if number == 1 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"data: {path} is UTF-16; convert it to UTF-8")
            data = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
            if data.strip():
                yield number, data


def _decode(line: int, row: int, data: bytes) -> Record:
    try:
        return Record(line, row, json.loads(data.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Record(line, row, BadRow("not_utf8", f"byte {error.start}: {error.reason}"))
    except (ValueError, RecursionError) as error:
        return Record(line, row, BadRow("broken_json", str(error)))


def _is_list(path: Path) -> bool:
    """Whether the file is one JSON list; the content decides, not the name.

    A file is lines when its first line alone is JSON and another follows; a lone object over several lines is neither.
    """
    first = list(itertools.islice(_lines(path), 2))
    if not first:
        return False
    data = first[0][1]
    broken = isinstance(_decode(*first[0][:1], 0, data).value, BadRow)
    start = data.lstrip()[:1]
    if start == b"{" and broken and path.suffix.lower() == ".json" and _is_json(_text(path)):
        raise InputError(f"data: {path} is one JSON object; rows are a list of objects, or one object a line")
    return start == b"[" and (broken or len(first) == 1)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path} is not UTF-8: byte {error.start}: {error.reason}") from error


def _list_items(path: Path) -> Iterator[Record]:
    """The items of a JSON list, with the lines where they begin."""
    text = _text(path)
    decoder = json.JSONDecoder()
    at = _skip_space(text, text.index("[") + 1)
    line, counted, row = 1, 0, 0
    try:
        while text[at : at + 1] != "]" or row:
            value, end = decoder.raw_decode(text, at)
            line, counted = line + text.count("\n", counted, at), at
            yield Record(line, row, value)
            row += 1
            end = _skip_space(text, end)
            if text[end : end + 1] == "]":
                at = end
                break
            if text[end : end + 1] != ",":
                raise json.JSONDecodeError("expecting ',' or ']'", text, end)
            at = _skip_space(text, end + 1)
        rest = _skip_space(text, at + 1)
        if rest < len(text):
            raise json.JSONDecodeError("text after the list", text, rest)
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {path} is a JSON list that breaks off or is damaged: {error}") from error


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def parse(value: Any, layout: Layout, system: str | None = None) -> Conversation:
    """Convert and check one row; `system` takes the place of its own system prompt, an empty one takes it away.

    Raises BadRow, or NotChosen for a row that is not to be learned.
    """
    if isinstance(value, BadRow):
        raise value
    if not isinstance(value, dict):
        raise BadRow("not_object", f"a row is a JSON object; this is a {type(value).__name__}")
    conversation = layout.read(value)
    conversation = replace(conversation, messages=_with_system(conversation, system), tools="")
    check(conversation)
    return conversation


def _with_system(conversation: Conversation, system: str | None) -> list[Message]:
    """The messages with the system turn that the recipe and the row's tools make of it."""
    messages, tools = conversation.messages, conversation.tools
    own = messages[:1] if messages and messages[0]["role"] == "system" else []
    rest = messages[len(own) :]
    if system is not None:
        own = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    if tools:
        said = own[0]["content"] if own else [{"type": "text", "text": DEFAULT_SYSTEM}]
        own = [{"role": "system", "content": [*said, {"type": "text", "text": tools}]}]
    return [*own, *rest]


def check(conversation: Conversation) -> None:
    """What holds for every layout; raises BadRow."""
    messages = conversation.messages
    for number, message in enumerate(messages):
        role, texts = message["role"], [part["text"] for part in message["content"] if part["type"] == "text"]
        if role not in _ROLES:
            raise BadRow("unknown_role", f"message {number} has role {role!r}; known are {', '.join(_ROLES)}")
        if role == "system" and number:
            raise BadRow("late_system", f"message {number} is a system message; only the first may be one")
        if any(_has_lone_surrogate(text) for text in texts):
            raise BadRow("lone_surrogate", f"message {number} has half of a surrogate pair: damaged text")
        blank = not any(text.strip() for text in texts)
        pictured = any(part["type"] == "image" for part in message["content"])
        if role == "user" and blank and not pictured:
            raise BadRow("no_question", f"message {number} of the user is empty")
        if role == "assistant" and blank:
            raise BadRow("no_answer", f"message {number} of the assistant has no text")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("no_answer", "the conversation does not end with an answer")
    if not any(message["role"] == "user" for message in messages):
        raise BadRow("no_question", "the conversation has no message of the user")
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != len(conversation.images):
        raise BadRow("image_count", f"{places} places for pictures, {len(conversation.images)} pictures")
    for picture in conversation.images:
        if isinstance(picture.source, str) and (not picture.source or _has_lone_surrogate(picture.source)):
            raise BadRow("image_path", f"{picture.source!r} is no path of a picture")


def _has_lone_surrogate(text: str) -> bool:
    return _SURROGATE.search(text) is not None
