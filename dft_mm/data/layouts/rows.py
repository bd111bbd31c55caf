"""A row that was read → a conversation that was checked."""

import re
from dataclasses import replace
from typing import Any

from dft_mm.data.layouts.choose import Layout
from dft_mm.data.layouts.formats import Conversation, Message
from dft_mm.data.layouts.tools import DEFAULT_SYSTEM
from dft_mm.data.records import BadRow

_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "user", "assistant")


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
