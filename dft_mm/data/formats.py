"""Layouts of a row: one small function each, record → Conversation. A new layout is one new entry in FORMATS."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dft_mm.config import ColumnsConfig, Format

Message: TypeAlias = dict[str, Any]
IMAGE_MARK = "<image>"
_IDS = ("id", "idx", "unique_id")
_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_IMAGE: Message = {"type": "image"}


class BadRow(Exception):
    """A row that cannot be learned from; `reason` is a short slug, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Conversation:
    """What a layout yields, before it is checked."""

    messages: list[Message]
    images: Sequence[str | bytes] = ()
    """Paths, or picture files that the row itself carried."""
    id: str | None = None


def wethink(record: Mapping[str, Any], columns: ColumnsConfig | None = None) -> Conversation:
    """WeThink (github.com/yangjie-cv/WeThink): problem, answer, refined_cot, image_path.

    `<image>` in its texts is text: the data set writes it where no picture is meant.
    """
    images = _pictures(record.get("image_path"), "image_path")
    content = [*[_IMAGE] * len(images), _part(_text(record, "problem"))]
    return Conversation([_user(content), _assistant(_wethink_answer(record))], images, _own_id(record))


def _wethink_answer(record: Mapping[str, Any]) -> str:
    thought = _text(record, "refined_cot", "no_answer")
    if not thought.strip():
        raise BadRow("no_answer", "refined_cot is empty")
    if "<answer>" in thought:
        return thought
    answer = _text(record, "answer", "no_answer")
    if not answer.strip():
        raise BadRow("no_answer", "answer is empty, and refined_cot holds no <answer>")
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def problem_solution(record: Mapping[str, Any], columns: ColumnsConfig | None = None) -> Conversation:
    """NuminaMath and MATH (problem, solution), or GSM8K (question, answer); other columns are left alone."""
    for problem, solution in (("problem", "solution"), ("question", "answer")):
        if problem in record and solution in record:
            break
    else:
        raise BadRow("missing_column", "neither problem and solution nor question and answer are there")
    messages = [_user([_part(_text(record, problem))]), _assistant(_text(record, solution))]
    return Conversation(messages, (), _own_id(record))


def by_columns(record: Mapping[str, Any], columns: ColumnsConfig | None) -> Conversation:
    """Any other flat layout, by the recipe's own mapping."""
    assert columns is not None
    images = _pictures(record.get(columns.images), columns.images) if columns.images else []
    prompt = _text(record, columns.prompt)
    marked = bool(images) and IMAGE_MARK in prompt
    content = _split_marks(prompt) if marked else [*[_IMAGE] * len(images), _part(prompt)]
    messages = [_user(content), _assistant(_text(record, columns.response))]
    if columns.system and (system := _text(record, columns.system)).strip():
        messages.insert(0, {"role": "system", "content": [_part(system)]})
    own = (columns.id,) if columns.id else _IDS
    return Conversation(messages, images, _own_id(record, own))


def messages(record: Mapping[str, Any], columns: ColumnsConfig | None = None) -> Conversation:
    """OpenAI's and TRL's chat layout: content is a text or a list of parts; pictures stand in their parts, or in
    `images`, in order. `<image>` in a user's text is a picture's place only where the row has `images` and no parts
    that are pictures.
    """
    chat = record.get("messages")
    if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
        raise BadRow("messages", "`messages` is not a list of messages")
    if record.get("tools"):
        raise BadRow("tools", "the row offers tools, which are not supported")
    listed = _pictures(record["images"] if record.get("images") else record.get("image"), "images")
    parts = [part for message in chat if isinstance(message.get("content"), list) for part in message["content"]]
    marked = bool(listed) and not any(isinstance(part, dict) and part.get("type") in _PICTURE_KEYS for part in parts)
    places: list[str | bytes | None] = []
    converted = [_message(number, message, marked, places) for number, message in enumerate(chat)]
    if places.count(None) != len(listed):
        raise BadRow("image_count", f"{places.count(None)} places for the {len(listed)} pictures in `images`")
    following = iter(listed)
    images = [next(following) if picture is None else picture for picture in places]
    return Conversation(converted, images, _own_id(record))


_PICTURE_KEYS = {"image": ("image", "path", "url"), "image_url": ("image_url",)}


def _message(number: int, message: Mapping[str, Any], marked: bool, places: list[str | bytes | None]) -> Message:
    """One message; `places` gets each picture that a part names, and None for each that is next in `images`."""
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRow("tools", f"message {number} calls a tool, which is not supported")
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, str | list | None):
        raise BadRow("part_type", f"message {number} has content of type {type(content).__name__}")
    found: list[Message] = []
    for part in [_part(content)] if isinstance(content, str) else content or []:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            pieces = _split_marks(part["text"]) if marked and role == "user" else [_part(part["text"])]
            places += [None for piece in pieces if piece["type"] == "image"]
            found += pieces
        elif isinstance(part, dict) and kind in _PICTURE_KEYS:
            given = next((part[key] for key in _PICTURE_KEYS[kind] if part.get(key)), None)
            places.append(None if given is None else _picture(given, f"message {number}"))
            found.append(_IMAGE)
        else:
            raise BadRow("part_type", f"message {number} has a part of type {kind!r}; known are text, image, image_url")
    return {"role": role, "content": found, **_learned(number, message)}


def _learned(number: int, message: Mapping[str, Any]) -> dict[str, bool]:
    """OpenAI's `weight` and `train`: whether an answer is learned from."""
    weight = message.get("train", message.get("weight"))
    if weight is None or weight == 1:
        return {}
    if weight == 0:
        return {"train": False}
    raise BadRow("weight", f"message {number} has weight {weight!r}; known are 0 and 1")


def _user(content: list[Message]) -> Message:
    return {"role": "user", "content": content}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": [_part(text)]}


def _part(text: str) -> Message:
    return {"type": "text", "text": text}


def _split_marks(text: str) -> list[Message]:
    """Text and picture parts of a text with `<image>` marks; the marks are gone."""
    first, *rest = text.split(IMAGE_MARK)
    parts = [_part(first), *(part for piece in rest for part in (_IMAGE, _part(piece)))]
    return [part for part in parts if part.get("text") != ""]


def _text(record: Mapping[str, Any], key: str, missing: str = "missing_column") -> str:
    """A text or number of a record; raises BadRow, with reason `missing` when the record has no such key."""
    if key not in record:
        raise BadRow(missing, f"there is no {key!r}; there are {', '.join(map(repr, record))}")
    value = record[key]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return ""
    raise BadRow("not_text", f"{key!r} is a {type(value).__name__}, not a text")


def _pictures(value: Any, where: str) -> list[str | bytes]:
    """A column with no picture, one, or a list of them."""
    if value is None or value == "" or value == []:
        return []
    return [_picture(item, where) for item in (value if isinstance(value, list) else [value])]


def _picture(value: Any, where: str) -> str | bytes:
    """A path, a data URI, or an object that holds one of them under `url` or `path`."""
    if isinstance(value, dict):
        value = value.get("url") or value.get("path")
    if not isinstance(value, str) or not value:
        raise BadRow("image_path", f"{where}: {value!r} is neither a path nor a data URI")
    if value[:5].lower() != "data:":
        return value
    header = _DATA_URI.match(value)
    if header is None:
        raise BadRow("data_uri", f"{where}: a data URI that is not base64: {value[:60]!r}")
    try:
        return base64.b64decode(value[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("data_uri", f"{where}: damaged base64: {error}") from error


def _own_id(record: Mapping[str, Any], keys: Sequence[str] = _IDS) -> str | None:
    for key in keys:
        value = record.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip() and value.isprintable():  # no lone surrogates
            return value
    return None


Reader: TypeAlias = Callable[[Mapping[str, Any], ColumnsConfig | None], Conversation]
FORMATS: dict[Format, Reader] = {
    "wethink": wethink,
    "messages": messages,
    "problem_solution": problem_solution,
    "columns": by_columns,
}
