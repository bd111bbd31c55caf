"""A conversation → token ids and the mask of what is learned, made together through the model's own chat template.

Nothing is searched for afterwards: the template is rendered with placeholders in the place of the texts, so it is known
which characters the template wrote and which the data wrote. Control tokens come from the template alone.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from dft_mm.errors import InputError

_VERSION = 1  # a new number when the same conversation gets other ids or another mask
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no template writes them
_PROBE = [
    {"role": role, "content": [{"type": "text", "text": text}]}
    for role, text in (("user", "a 1"), ("assistant", "b 2"), ("user", "c 3"), ("assistant", "d 4"))
]


class RenderError(Exception):
    """A conversation that cannot be honoured as it stands; `reason` is a short slug, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Rendered:
    """One conversation as the model sees it."""

    ids: np.ndarray
    """(T,) int32 token ids, each picture expanded to its merged patches."""
    supervised: np.ndarray
    """(T,) bool: this token is learned."""
    image_spans: tuple[tuple[int, int], ...]
    """Start and end of each picture, the control tokens directly beside it included: nothing may be cut in there."""


@dataclass(frozen=True)
class _Text:
    """A message text with what decides about it."""

    text: str
    answer: bool
    learned: bool


@dataclass(frozen=True)
class _Run:
    """Ordinary text that is encoded in one call, or one control token of the template."""

    text: str
    learned: bool = False
    control: int | None = None


class Renderer:
    """Renders conversations for one model.

    Args:
        tokenizer: a fast tokenizer.
        chat_template: Jinja source of the model's own template.
        image_token: the control token that the template writes for a picture; None for text models.
        merge_size: patches per side of a merged patch; with `image_token`.
        supervise: learn from every assistant turn, or from the last one only.

    Raises:
        InputError: the template is missing or broken, does not end an assistant turn with a control token, or the
            tokenizer does not let text and control tokens be told apart.
    """

    fingerprint: str
    """Changes when anything changes that decides ids or mask."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
        image_token: str | None = None,
        merge_size: int | None = None,
        supervise: Literal["answers", "last_answer"] = "answers",
    ) -> None:
        if not chat_template:
            raise InputError(
                "the model has no chat template, so how its conversations are written is unknown; "
                "put a chat_template.jinja into the model folder"
            )
        self._tokenizer = tokenizer
        self._template = chat_template
        self._image_token = image_token
        self._merge_size = merge_size
        self._supervise = supervise
        special = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._control = {token.content: id_ for id_, token in special.items()}
        if image_token is not None and image_token not in self._control:
            raise InputError(f"image token {image_token!r} is no special token of the tokenizer: text could forge it")
        self._control_pattern = _pattern(special.values())
        # The unknown-word token is what ordinary text legitimately becomes where a vocabulary is small.
        self._forbidden = frozenset(self._control.values()) - {tokenizer.unk_token_id}
        # A copy: flags and limits that others set on the shared tokenizer must not reach the ids, nor ours reach them.
        self._encoder = copy.deepcopy(tokenizer.backend_tokenizer)
        self._encoder.no_truncation()
        self._encoder.no_padding()
        settings = [_VERSION, chat_template, tokenizer.special_tokens_map, image_token, merge_size, supervise]
        identity = json.dumps(settings, default=str) + self._encoder.to_str()
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._check_model()

    def render(self, messages: Sequence[Mapping[str, Any]], grids: Sequence[tuple[int, int, int]] = ()) -> Rendered:
        """Token ids and mask of a conversation.

        Args:
            messages: `{"role", "content"}`, content a list of `{"type": "text", "text"}` and `{"type": "image"}`;
                an assistant message with `"train": False` is not learned.
            grids: frames, rows and columns of patches of each picture, in order.

        Raises:
            RenderError: the template or the tokenizer cannot honour the conversation, or pictures do not match it.
        """
        texts, pictures = self._texts(messages)
        if pictures != len(grids):
            raise RenderError("image_count", f"the messages have {pictures} picture places for {len(grids)} pictures")
        return self._encode(self._runs(messages, texts), grids)

    def _texts(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[_Text], int]:
        """The texts in order, those that touch joined; and the number of pictures."""
        texts, pictures = [], 0
        last_answer = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        for number, message in enumerate(messages):
            answer = message["role"] == "assistant"
            learned = answer and message.get("train", True) and (self._supervise == "answers" or number == last_answer)
            for text in _joined(message["content"]):
                if text is not None:
                    texts.append(_Text(text, answer, learned))
                    continue
                if answer:
                    raise RenderError("answer_image", f"message {number} is an answer with a picture in it")
                if self._image_token is None:
                    raise RenderError("image", f"message {number} has a picture, and the model takes none")
                pictures += 1
        return texts, pictures

    def _apply_template(self, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> str:
        """The template's rendering, with `texts` in the place of the messages' own."""
        chat, rest = [], iter(texts)
        for message in messages:
            if not str(message["role"]).isidentifier():
                raise RenderError("role", f"{message['role']!r} is no role")
            parts = [
                {"type": "image"} if text is None else {"type": "text", "text": next(rest)}
                for text in _joined(message["content"])
            ]
            # Templates of text models join strings and know no parts.
            plain = all(part["type"] == "text" for part in parts)
            content = "".join(part["text"] for part in parts) if plain else parts
            chat.append({"role": message["role"], "content": content})
        try:
            return self._tokenizer.apply_chat_template(chat, chat_template=self._template, tokenize=False)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RenderError("template", f"the chat template refuses the conversation: {error}") from error

    def _runs(self, messages: Sequence[Mapping[str, Any]], texts: Sequence[_Text]) -> list[_Run]:
        """The conversation as control tokens and runs of ordinary text.

        Template text and the content beside it are one run, as they are for the tokenizer when it gets the whole
        rendering. An answer is a run of its own: when the model answers, the ids before are already fixed.
        """
        marks = [f"\ue000{number}\ue001" for number in range(len(texts))]
        written, *rest = _MARK.split(self._apply_template(messages, marks))
        order, written_after = [int(number) for number in rest[::2]], rest[1::2]
        if sorted(order) != list(range(len(texts))):
            raise RenderError("template", "the chat template leaves out or repeats a message")
        contents = [texts[number] for number in order]
        real = self._apply_template(messages, [text.text for text in texts])
        forms = _forms_as_written(real, written, [content.text for content in contents], written_after)
        runs = self._split_template(written)
        for content, form, after in zip(contents, forms, written_after):
            following = self._split_template(after)
            if content.answer:
                if not following or following[0].control is None:
                    raise RenderError("template", "the chat template does not end an answer with a control token")
                runs.append(_Run(form, content.learned))
                following[0] = _Run(following[0].text, content.learned, following[0].control)
            else:
                following.insert(0, _Run(form))
            for run in following:
                previous = runs[-1] if runs else None
                joins = previous is not None and previous.control is None and run.control is None
                if joins:
                    runs[-1] = _Run(previous.text + run.text)
                else:
                    runs.append(run)
        return runs

    def _split_template(self, text: str) -> list[_Run]:
        pieces = self._control_pattern.split(text)
        return [
            _Run(piece, control=self._control[piece.strip()] if number % 2 else None)
            for number, piece in enumerate(pieces)
            if piece
        ]

    def _encode(self, runs: Sequence[_Run], grids: Sequence[tuple[int, int, int]]) -> Rendered:
        image_id = None if self._image_token is None else self._control[self._image_token]
        places = sum(run.control == image_id for run in runs) if image_id is not None else 0
        if places != len(grids):
            raise RenderError("image_count", f"the chat template writes {places} places for {len(grids)} pictures")
        ids: list[int] = []
        learned: list[bool] = []
        spans: list[tuple[int, int]] = []
        remaining = iter(grids)
        for number, run in enumerate(runs):
            if run.control is None:
                new = self._encode_text(run.text)
            elif run.control != image_id:
                new = [run.control]
            else:
                new = [run.control] * self._merged_tokens(next(remaining))
                before, after = (
                    0 <= beside < len(runs) and runs[beside].control not in (None, image_id)
                    for beside in (number - 1, number + 1)
                )
                spans.append((len(ids) - before, len(ids) + len(new) + after))
            ids += new
            learned += [run.learned] * len(new)
        return Rendered(np.array(ids, dtype=np.int32), np.array(learned, dtype=bool), tuple(spans))

    def _encode_text(self, text: str) -> list[int]:
        # Set each time: a pickled copy of the encoder forgets it, and would read control tokens out of any text.
        self._encoder.encode_special_tokens = True
        ids = self._encoder.encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):
            forged = next(id_ for id_ in ids if id_ in self._forbidden)
            raise RenderError(
                "control_token", f"the tokenizer makes the control token {self._encoder.id_to_token(forged)!r} of text"
            )
        return ids

    def _merged_tokens(self, grid: tuple[int, int, int]) -> int:
        frames, rows, columns = grid
        return int(frames * rows * columns) // self._merge_size**2

    def _check_model(self) -> None:
        """Render a small conversation, so that what no row could honour is said once and at once."""
        try:
            rendered = self.render(_PROBE)
            text = self._apply_template(_PROBE, [message["content"][0]["text"] for message in _PROBE])
        except RenderError as error:
            raise InputError(f"the model's chat template cannot be used for training: {error.detail}") from error
        whole = self._tokenizer(text, add_special_tokens=False).input_ids
        if rendered.ids.tolist() != whole:
            raise InputError(
                "the model's tokenizer encodes a conversation piece by piece otherwise than as a whole (it adds a "
                "space before each piece, or the chat template writes text that melts into the answer): not supported"
            )


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches control tokens, the longest of two that begin alike, with the white space that some swallow."""
    space = {True: r"\s*", False: ""}
    alternatives = [
        space[token.lstrip] + re.escape(token.content) + space[token.rstrip]
        for token in sorted(tokens, key=lambda token: -len(token.content))
    ]
    return re.compile(f"({'|'.join(alternatives) or '(?!)'})")


def _joined(content: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Texts of a message, neighbours joined, and None for each picture."""
    parts: list[str | None] = []
    for part in content:
        text = part["text"] if part["type"] == "text" else None
        if text is not None and parts and parts[-1] is not None:
            parts[-1] += text
        else:
            parts.append(text)
    return parts


def _forms_as_written(rendering: str, start: str, texts: Sequence[str], after: Sequence[str]) -> list[str]:
    """The texts as the template wrote them, each as it was or trimmed, so that with what stands between them they
    are the whole rendering, character for character; a template that edits more than that raises RenderError.
    """
    forms, at = [], len(start) if rendering.startswith(start) else -1
    for text, following in zip(texts, after):
        fits = [form for form in (text, text.strip()) if at >= 0 and rendering.startswith(form + following, at)]
        if not fits:
            at = -1
            break
        forms.append(fits[0])
        at += len(fits[0]) + len(following)
    if at != len(rendering):
        raise RenderError("template", "the chat template changes the text of a message beyond trimming it")
    return forms
