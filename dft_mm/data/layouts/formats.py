"""What a layout makes of a record, a Conversation or the reason why not, and the flat layouts: one small function each.

The layouts made of messages are in chat.py, those of questions with pictures and choices in questions.py; the table of
all is in choose.py.
"""

import ast
import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from dft_mm.config import ColumnsConfig
from dft_mm.data.records import BadRow

Message: TypeAlias = dict[str, Any]
Fields: TypeAlias = Mapping[str, Any]
IMAGE_MARK = "<image>"
IMAGE: Message = {"type": "image"}
IDS = ("id", "idx", "unique_id")
_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_UNREAD = {"video": "videos", "videos": "videos", "audio": "sounds", "audios": "sounds"}


class NotChosen(Exception):
    """A row that says of itself that it is not to be learned: a decision, no fault."""


@dataclass(frozen=True)
class Picture:
    """A picture of a row."""

    source: str | bytes
    """A path, or a picture file that the row itself carried."""
    min_pixels: int | None = None
    """The row's own limits, in the place of the recipe's."""
    max_pixels: int | None = None


@dataclass(frozen=True)
class Conversation:
    """What a layout yields, before it is checked."""

    messages: list[Message]
    images: Sequence[Picture] = ()
    id: str | None = None
    tools: str = ""
    """What the system turn is to say of the tools that the row offers."""


def wethink(record: Fields, how: Any = None) -> Conversation:
    """WeThink (github.com/yangjie-cv/WeThink): problem, answer, refined_cot, image_path.

    `<image>` in its texts is text: the data set writes it where no picture is meant.
    """
    images = pictures_of(record.get("image_path"), "image_path")
    content = [*[IMAGE] * len(images), text_part(text_of(record, "problem"))]
    return Conversation([user(content), assistant(_wethink_answer(record))], images, own_id(record))


def _wethink_answer(record: Fields) -> str:
    thought = text_of(record, "refined_cot", "no_answer")
    if not thought.strip():
        raise BadRow("no_answer", "refined_cot is empty")
    if "<answer>" in thought:
        return thought
    answer = text_of(record, "answer", "no_answer")
    if not answer.strip():
        raise BadRow("no_answer", "answer is empty, and refined_cot holds no <answer>")
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


# A problem column and the columns that may hold what is learned, the fullest first.
_PROBLEMS = ("problem", "question")
_SOLUTIONS = ("solution", "answer", "final_answer")


def problem_solution(record: Fields, how: Any = None) -> Conversation:
    """NuminaMath, MATH and AIME (problem, solution), GSM8K (question, answer), OlympiadBench (question after its
    context, solution a list of which the first is learned, final_answer); the other columns are left alone.
    """
    problem = next((key for key in _PROBLEMS if key in record), None)
    solution = next((key for key in _SOLUTIONS if not empty(record.get(key))), None)
    solution = solution or next((key for key in _SOLUTIONS if key in record), None)
    if problem is None or solution is None:
        raise BadRow(
            "missing_column", "neither problem or question, nor solution, answer or final_answer with it, are there"
        )
    context = text_of(record, "context") if isinstance(record.get("context"), str) else ""
    asked = "\n\n".join(text for text in (context, text_of(record, problem)) if text.strip())
    value = record[solution]
    if isinstance(value, list):  # several ways to solve it, or several values of one answer
        value = ", ".join(map(str, value)) if solution == "final_answer" else next(iter(value), "")
    answer = text_of({solution: value}, solution)
    return Conversation([user([text_part(asked)]), assistant(answer)], (), own_id(record))


def by_columns(record: Fields, how: ColumnsConfig | None) -> Conversation:
    """Any other flat layout, by the recipe's own mapping."""
    assert isinstance(how, ColumnsConfig)
    images = pictures_of(record.get(how.images), how.images) if how.images else []
    messages = [user(with_pictures(text_of(record, how.prompt), len(images))), assistant(text_of(record, how.response))]
    if how.system and (system := text_of(record, how.system)).strip():
        messages.insert(0, {"role": "system", "content": [text_part(system)]})
    own = (how.id,) if how.id else IDS
    return Conversation(messages, images, own_id(record, own))


def user(content: list[Message]) -> Message:
    return {"role": "user", "content": content}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": [text_part(text)]}


def text_part(text: str) -> Message:
    return {"type": "text", "text": text}


def with_pictures(text: str, count: int) -> list[Message]:
    """Parts of a text with `count` pictures: in the places of its `<image>` marks, else before it."""
    if count and IMAGE_MARK in text:
        return split_marks(text)
    return [*[IMAGE] * count, *([text_part(text)] if text or not count else [])]


def split_marks(text: str) -> list[Message]:
    """Text and picture parts of a text with `<image>` marks; the marks are gone."""
    first, *rest = text.split(IMAGE_MARK)
    parts = [text_part(first), *(part for piece in rest for part in (IMAGE, text_part(piece)))]
    return [part for part in parts if part.get("text") != ""]


def empty(value: Any) -> bool:
    """Whether a cell holds nothing; columns that a row does not use are empty in tables, or not a number."""
    return value is None or value == "" or value == [] or (isinstance(value, float) and math.isnan(value))


def text_of(record: Fields, key: str, missing: str = "missing_column") -> str:
    """A text or number of a record; raises BadRow, with reason `missing` when the record has no such key."""
    if key not in record:
        raise BadRow(missing, f"there is no {key!r}; there are {', '.join(map(repr, record))}")
    value = record[key]
    if isinstance(value, str):
        return value
    if empty(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow("not_text", f"{key!r} is a {type(value).__name__}, not a text")


def decoded(value: Any) -> Any:
    """A list or object that stands in its cell as text, in JSON or as Python writes it; anything else as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def refuse_unread(record: Fields, columns: Iterable[str | None] = _UNREAD) -> None:
    """Raise BadRow for a row with a video or a sound."""
    for column in columns:
        if column is not None and not empty(record.get(column)):
            what = _UNREAD.get(column, "videos and sounds")
            reason = "audio" if what == "sounds" else "video"
            raise BadRow(reason, f"{column!r} is not empty: {what} are not read; give frames as pictures")


def pictures_of(value: Any, where: str) -> list[Picture]:
    """A column with no picture, one, or a list of them."""
    if isinstance(value, str) and value[:1] == "[":
        value = decoded(value)
    if empty(value):
        return []
    return [picture_of(item, where) for item in (value if isinstance(value, list) else [value])]


def picture_of(value: Any, where: str) -> Picture:
    """A path, a data URI, a picture file's bytes, or an object that holds one of them under `bytes` (which win, as in
    the datasets library), `image`, `url`, `image_url` or `path`, with pixel limits of its own if it has any.
    """
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _HOLDERS if not empty(value.get(key))), None)
        if isinstance(inner, Mapping) or inner is None:
            inner = next((inner[key] for key in _HOLDERS if not empty(inner.get(key))), None) if inner else None
        return limited(Picture(_source(inner, where)), value, where)
    return Picture(_source(value, where))


_HOLDERS = ("bytes", "image", "url", "image_url", "path")


def limited(picture: Picture, given: Fields, where: str) -> Picture:
    """The picture with the pixel limits that its object names, as qwen-vl-utils reads them."""
    if any(given.get(key) is not None for key in ("resized_height", "resized_width")):
        raise BadRow(
            "resized", f"{where}: resized_height and resized_width are not honoured; give min_pixels and max_pixels"
        )
    limits = {key: given[key] for key in ("min_pixels", "max_pixels") if given.get(key) is not None}
    for key, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer() or value < 1:
            raise BadRow("pixel_limits", f"{where}: {key} is {value!r}, not a whole number above 0")
        limits[key] = int(value)
    return replace(picture, **limits) if limits else picture


def _source(value: Any, where: str) -> str | bytes:
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise BadRow("image_path", f"{where}: {str(value)[:60]!r} is neither a path nor a data URI")
    if value[:5].lower() != "data:":
        return value.removeprefix("file://")
    header = _DATA_URI.match(value)
    if header is None:
        raise BadRow("data_uri", f"{where}: a data URI that is not base64: {value[:60]!r}")
    return from_base64(value[header.end() :], where, "data_uri")


def from_base64(text: str, where: str, reason: str = "base64") -> bytes:
    """The bytes of a base64 text, or BadRow."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(reason, f"{where}: damaged base64: {error}") from error


def own_id(record: Fields, keys: Sequence[str] = IDS) -> str | None:
    for key in keys:
        value = record.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip() and value.isprintable():  # no lone surrogates
            return value
    return None
