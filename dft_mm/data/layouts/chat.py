"""Layouts made of messages: conversations of many turns, a prompt and its answer, an answer that was preferred.

All of them become a list of turns, and turns.py makes messages of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from dft_mm.data.layouts.formats import Conversation, Fields, NotChosen, decoded, empty, text_of
from dft_mm.data.layouts.llamafactory import Entry
from dft_mm.data.layouts.turns import Turn, converse, turns_of, unlearned
from dft_mm.data.records import BadRow

CHATS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query")
ANSWERS = ("completion", "response")


def chat(record: Fields, entry: Entry | None = None) -> Conversation:
    """A list of messages: OpenAI's and TRL's (role and content), ShareGPT's and Qwen-VL's (from and value), in the
    column messages, conversations or conversation.

    Pictures stand in parts, or in images or image, in order. `<image>` in a user's text is a picture's place only
    where the row has such a column and no parts that are pictures.
    """
    return converse(record, _chat_turns(record, entry), entry)


def alpaca(record: Fields, entry: Entry | None = None) -> Conversation:
    """Instruction, input, output, system, and a history of [question, answer]; joined as LLaMA-Factory does."""
    names = (entry.prompt, entry.query) if entry else ("instruction", "input")
    asked = _asked(record, names, entry.history if entry else "history", entry)
    response = entry.response if entry else "output"
    return converse(record, [*asked, *_answer(record, response or "output", entry)], entry, flat=True)


def prompt_completion(record: Fields, how: Any = None) -> Conversation:
    """TRL's prompt and completion, texts or lists of messages; also prompt or query with response, and a history.

    Answers within a prompt that is a list are not learned; those of a history are, as in alpaca.
    """
    key = next((name for name in ANSWERS if name in record), ANSWERS[0])
    prompt, answer = _prompt(record, None), _answer(record, key, None)
    if "history" in record:
        return converse(record, [*prompt, *answer], None, flat=True)
    return _completed(record, prompt, answer, None)


def preference(record: Fields, entry: Entry | None = None) -> Conversation:
    """Two answers of which the chosen one is learned, and nothing before it; or, with a label, one answer that is
    learned when the label is true, and NotChosen when it is false.

    Either of them as texts or as messages, with the prompt in prompt (or question, instruction and input), in a list
    of messages, or within the chosen list; what that has in common with the rejected one is then the prompt.
    """
    key = entry.chosen if entry else next((key for key in ("chosen_messages", "chosen") if key in record), None)
    if key is None:
        return _labelled(record, entry)
    chosen = _answer(record, key, entry)
    if chosen and chosen[0].role in ("system", "user"):  # the whole conversation
        rejected = turns_of(record.get(key.replace("chosen", "rejected")), entry) or []
        same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:-1], rejected))
        count = sum(1 for _ in same)
        return _completed(record, chosen[:count], chosen[count:], entry)
    return _completed(record, _prompt(record, entry), chosen, entry)


def _labelled(record: Fields, entry: Entry | None) -> Conversation:
    """KTO's rows: a conversation, or a prompt and its answer, and whether it is a good one."""
    key = (entry.kto_tag if entry else None) or "label"
    label = record.get(key)
    if isinstance(label, str):
        label = {"true": True, "false": False}.get(label.casefold(), label)
    if label not in (True, False):
        raise BadRow("label", f"{key!r} is {label!r}; known are true and false")
    if not label:
        raise NotChosen
    if entry and entry.formatting == "alpaca":
        made = alpaca(record, entry)
    elif entry is None and any(name in record for name in ANSWERS):
        made = prompt_completion(record)
    else:
        made = chat(record, entry)
    last = max((n for n, message in enumerate(made.messages) if message["role"] == "assistant"), default=-1)
    return replace(made, messages=[unlearned(m) if n < last else m for n, m in enumerate(made.messages)])


def _completed(record: Fields, prompt: list[Turn], answer: list[Turn], entry: Entry | None) -> Conversation:
    return converse(record, [*(replace(turn, prompt=True) for turn in prompt), *answer], entry, flat=True)


def _prompt(record: Fields, entry: Entry | None) -> list[Turn]:
    """What was said before an answer that stands in a column of its own."""
    if entry:
        if entry.formatting == "alpaca":
            return _asked(record, (entry.prompt, entry.query), entry.history, entry)
        return _chat_turns(record, entry)
    if key := next((name for name in PROMPTS if name in record), None):
        return turns_of(record[key], None) or _asked(record, (key,), "history", None)
    if "instruction" in record:
        return _asked(record, ("instruction", "input"), "history", None)
    if any(name in record for name in CHATS):
        return _chat_turns(record, None)
    raise BadRow("missing_column", f"there is no {PROMPTS[0]!r}; there are {', '.join(map(repr, record))}")


def _chat_turns(record: Fields, entry: Entry | None) -> list[Turn]:
    column = entry.messages if entry else next((name for name in CHATS if name in record), CHATS[0])
    turns = turns_of(decoded(record.get(column)), entry)
    if turns is None:
        raise BadRow("messages", f"{column!r} is not a list of messages")
    return turns


def _asked(
    record: Fields, names: Sequence[str | None], history: str | None, entry: Entry | None
) -> list[Turn]:  # fmt: skip
    """The turns of a history, and the question in columns of its own, of which the first must be there."""
    past = decoded(record.get(history)) if history else None
    turns = []
    for pair in [] if empty(past) else past if isinstance(past, list) else [past]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow("history", f"{history!r} is not a list of [question, answer]: {str(pair)[:60]!r}")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    first, *others = [name for name in names if name]
    texts = [text_of(record, first), *(text_of(record, name) for name in others if name in record)]
    return [*turns, Turn("user", "\n".join(text for text in texts if text))]


def _answer(record: Fields, key: str, entry: Entry | None) -> list[Turn]:
    turns = turns_of(record.get(key), entry)
    return [Turn("assistant", text_of(record, key, "no_answer"))] if turns is None else turns
