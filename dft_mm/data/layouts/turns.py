"""Turns of a conversation → messages: parts, `<image>` marks, tools and thoughts, and which answers are learned."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dft_mm.data.layouts.formats import (
    IMAGE,
    IMAGE_MARK,
    Conversation,
    Fields,
    Message,
    Picture,
    limited,
    own_id,
    picture_of,
    pictures_of,
    refuse_unread,
    split_marks,
    text_of,
    text_part,
)
from dft_mm.data.layouts.llamafactory import Entry
from dft_mm.data.layouts.tools import RESULT, calls, offered, thought
from dft_mm.data.records import BadRow

CALL, RESPONSE = "a call of a tool", "the response of a tool"
LEARNED = ("train", "loss", "loss_mask", "loss_weight", "weight")
_CALLS = ("tool_calls", "function_call")
_TEXTS = ("text", "reasoning", "tool_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# `value` is LLaMA-Factory's v1; what a part leaves empty is None where rows come from a table.
_PICTURE_KEYS = {"image": ("bytes", "image", "path", "url", "value"), "image_url": ("image_url", "url", "value")}
_UNREAD_PARTS = {
    "video": "video", "video_url": "video", "audio": "audio", "audio_url": "audio", "input_audio": "audio",
}  # fmt: skip
_DATA_FOLDER = "data/"


@dataclass(frozen=True)
class Turn:
    """One turn as a layout found it."""

    role: Any
    """system, user, assistant, CALL, RESPONSE, or a word that is none of them."""
    content: Any
    raw: Mapping[str, Any] = field(default_factory=dict)
    """All that was written with it."""
    prompt: bool = False
    """It is part of what was asked: an answer in it is not learned."""


@dataclass(frozen=True)
class _Tags:
    """The keys of a turn, and the words for who speaks."""

    role: str
    content: str
    roles: Mapping[str, str]


_ROLE_TAGS = _Tags("role", "content", {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": RESPONSE,
    "function": RESPONSE, "tool_response": RESPONSE, "observation": RESPONSE, "tool_call": CALL, "function_call": CALL,
})  # fmt: skip
_FROM_TAGS = _Tags("from", "value", {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": CALL, "tool_call": CALL, "observation": RESPONSE, "tool": RESPONSE, "tool_response": RESPONSE,
    "function_response": RESPONSE,
})  # fmt: skip


@functools.lru_cache
def _tags_of(entry: Entry) -> _Tags:
    named = {
        entry.user_tag: "user", entry.assistant_tag: "assistant", entry.system_tag: "system",
        entry.observation_tag: RESPONSE, entry.function_tag: CALL,
    }  # fmt: skip
    usual = _ROLE_TAGS if entry.role_tag == "role" else _FROM_TAGS
    return _Tags(entry.role_tag, entry.content_tag, {**usual.roles, **named})


def turns_of(value: Any, entry: Entry | None) -> list[Turn] | None:
    """The turns of a list of messages or of a single one; None for what is neither, such as a text."""
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        return None
    tags = _tags_of(entry) if entry else None
    if tags is None or not any(tags.role in turn for turn in given):
        tags = _FROM_TAGS if any("from" in turn for turn in given) else _ROLE_TAGS
    return [_turn(turn, tags) for turn in given]


def _turn(raw: Mapping[str, Any], tags: _Tags) -> Turn:
    word = raw.get(tags.role)
    return Turn(tags.roles.get(word, word) if isinstance(word, str) else word, raw.get(tags.content), raw)


def unlearned(message: Message) -> Message:
    return {**message, "train": False} if message["role"] == "assistant" else message


@dataclass
class _Places:
    """Where pictures stand, in order: a picture that a part names, or None for the next one in the row's column."""

    marked: bool
    found: list[tuple[Picture | None, Mapping[str, Any]]] = field(default_factory=list)

    def fill(self, listed: list[Picture]) -> list[Picture]:
        awaited = sum(picture is None for picture, _ in self.found)
        if awaited != len(listed):
            raise BadRow("image_count", f"{awaited} places for the {len(listed)} pictures in the row's column")
        following = iter(listed)
        return [
            picture or limited(next(following), part, f"picture {number}")
            for number, (picture, part) in enumerate(self.found)
        ]


def converse(record: Fields, turns: list[Turn], entry: Entry | None, flat: bool = False) -> Conversation:
    """The conversation of a row with these turns; its pictures, tools and system prompt stand in columns.

    `flat`: pictures that have no place in the text stand before the first question.
    """
    refuse_unread(record, *([(entry.videos, entry.audios)] if entry else []))
    listed = _listed(record, entry)
    contents = [(turn, _parts(number, turn)) for number, turn in enumerate(turns)]
    named = any(_kind(part) in _PICTURE_KEYS for _, parts in contents for part in parts)
    places = _Places(marked=bool(listed) and not named)
    if flat and places.marked and not any(_has_mark(part) for _, parts in contents for part in parts):
        first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
        if first is not None:
            contents[first] = (turns[first], [*[IMAGE] * len(listed), *contents[first][1]])
    messages: list[Message] = []
    before: Any = None
    for number, (turn, parts) in enumerate(contents):
        message = _message(number, turn, parts, places)
        joins = (turn.role == CALL and before in (CALL, "assistant")) or turn.role == before == RESPONSE
        if not joins:
            messages.append(message)
        elif messages[-1].get("train") != message.get("train"):
            raise BadRow("weight", f"message {number} goes on with an answer that has another weight")
        else:
            messages[-1] = {**message, "content": [*messages[-1]["content"], text_part("\n"), *message["content"]]}
        before = turn.role
    system = entry.system if entry else "system"
    if system and record.get(system) is not None and not (turns and turns[0].role == "system"):
        text = text_of(record, system)
        messages[:0] = [{"role": "system", "content": [text_part(text)]}] if text.strip() else []
    tools = entry.tools if entry else "tools"
    return Conversation(
        messages, places.fill(listed), own_id(record), offered(record.get(tools)) if tools else ""
    )


def _listed(record: Fields, entry: Entry | None) -> list[Picture]:
    columns = (entry.images,) if entry else ("images", "image")
    return next((found for name in columns if name and (found := pictures_of(record.get(name), name))), [])


def _has_mark(part: Any) -> bool:
    text = _text(part) if _kind(part) == "text" else None
    return isinstance(text, str) and IMAGE_MARK in text


def _parts(number: int, turn: Turn) -> list[Mapping[str, Any]]:
    """The content as parts; a call's is what it calls."""
    content = turn.content
    if turn.role == CALL and not (isinstance(content, list) and any(_kind(part) in _TEXTS for part in content)):
        return [{"type": "tool_call", "value": content}]
    if not isinstance(content, str | list | None):
        raise BadRow("part_type", f"message {number} has content of type {type(content).__name__}")
    return [text_part(content)] if isinstance(content, str) else content or []


def _kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) or kind is None else repr(kind)


def _message(number: int, turn: Turn, parts: list[Any], places: _Places) -> Message:
    where = f"message {number}"
    found: list[Message] = []
    spoken = False  # a call begins on a line of its own after a text or a call, but directly after a thought
    for part in [*_apart(turn.raw, _THOUGHTS, "reasoning"), *parts, *_apart(turn.raw, _CALLS, "tool_call")]:
        kind, text = _kind(part), _text(part)
        if kind in _UNREAD_PARTS:
            why = "videos and sounds are not read; give frames as pictures"
            raise BadRow(_UNREAD_PARTS[kind], f"{where} has a part of type {kind!r}: {why}")
        if kind in _PICTURE_KEYS:
            found.append(IMAGE)
            places.found.append((_named(part, kind, where), part))
        elif kind == "tool_call" and text is not None:
            for call in calls(text, where):
                found.append(text_part(f"\n{call}" if spoken else call))
                spoken = True
        elif kind == "reasoning" and isinstance(text, str):
            found.append(text_part(thought(text)))
            spoken = False
        elif kind == "text" and isinstance(text, str):
            marked = places.marked and turn.role in ("user", RESPONSE)
            pieces = split_marks(text) if marked else [text_part(text)]
            places.found += [(None, {}) for piece in pieces if piece is IMAGE]
            found += pieces
            spoken = spoken or text != ""
        else:
            shown = kind if isinstance(part, Mapping) else type(part).__name__
            raise BadRow("part_type", f"{where} has a part of type {shown!r}; known are text, image, image_url")
    if turn.role == RESPONSE:
        return {"role": "user", "content": [text_part(RESULT[0]), *found, text_part(RESULT[1])]}
    if turn.role not in ("assistant", CALL):
        return {"role": turn.role, "content": found}
    return {"role": "assistant", "content": found, **_learned(where, turn)}


def _apart(raw: Mapping[str, Any], keys: tuple[str, ...], kind: str) -> list[Mapping[str, Any]]:
    """What stands beside the content, as the part that it is."""
    value = next((raw[key] for key in keys if raw.get(key)), None)
    return [] if value is None else [{"type": kind, "value": value}]


def _text(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return None
    return next((part[key] for key in ("text", "value", "reasoning", "tool_call") if part.get(key) is not None), None)


def _named(part: Mapping[str, Any], kind: str, where: str) -> Picture | None:
    """The picture that a part names, or None for one that is next in the row's column."""
    key = next((key for key in _PICTURE_KEYS[kind] if part.get(key)), None)
    if key is None:
        return None
    value = part[key]
    if key == "value" and isinstance(value, str):
        # LLaMA-Factory's v1 writes paths from the folder above its data folder, beside which these rows lie.
        value = value.removeprefix(_DATA_FOLDER)
    return limited(picture_of(value, where), part, where)


def _learned(where: str, turn: Turn) -> dict[str, bool]:
    """Whether an answer is learned from: what it says of itself by any of the known names, else what it is part of."""
    given = {key: turn.raw[key] for key in LEARNED if turn.raw.get(key) is not None}
    shown = " and ".join(f"{key} {weight!r}" for key, weight in given.items())
    if any(weight not in (0, 1) for weight in given.values()):
        raise BadRow("weight", f"{where} has {shown}; known are 0 and 1, false and true")
    if len({bool(weight) for weight in given.values()}) > 1:
        raise BadRow("weight", f"{where} has {shown}, which contradict each other")
    learned = all(given.values()) if given else not turn.prompt
    return {} if learned else {"train": False}
