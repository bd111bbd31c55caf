"""A conversation → token ids and the mask of what is learned, made together through the model's own chat template.

Nothing is searched for afterwards: the template is rendered with placeholders in the place of the texts, so it is known
which characters the template wrote and which the data wrote. Control tokens come from the template alone.
"""

import copy
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jinja2
import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from dft_mm.errors import InputError

log = logging.getLogger("dft_mm")

_VERSION = 2  # a new number when the same conversation gets other ids or another mask
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no template writes them
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_MOST_FORMS = 1000  # shapes of conversations that are remembered
# Ids must not change from day to day. Templates that have a date of their own to fall back on take that.
_TODAY = jinja2.Undefined("it writes the current date, which would change the tokens every day; write a date into it")
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


_Shape = tuple[tuple[str, tuple[bool, ...]], ...]
"""Role of each message, and for each of its parts whether that is a text; the others are pictures."""


@dataclass(frozen=True)
class _Run:
    """Ordinary text that is encoded in one call, or one control token of the template."""

    parts: tuple[str | int, ...] = ()
    """Text of the template, and numbers of the messages' texts."""
    control: int | None = None
    answer: int | None = None
    """The number of the answer that this is learned with."""
    strip: tuple[str, str] = ("", "")
    """Characters that the control tokens beside it swallow from its start and its end."""
    ids: tuple[int, ...] | None = None
    """Known where the messages have no part in it."""


@dataclass(frozen=True)
class _Form:
    """What the template makes of all conversations of one shape."""

    order: tuple[int, ...]
    """The messages' texts as they are written."""
    literals: tuple[str, ...]
    """What the template writes before, between and after them."""
    runs: tuple[_Run, ...]


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
    end_id: int
    """The token that ends an answer."""

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
        self._template = chat_template
        self._names = dict(tokenizer.special_tokens_map)
        self._image_token = image_token
        self._merge_size = merge_size
        self._supervise = supervise
        self._forms: dict[_Shape, _Form] = {}
        special = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._control = {token.content: id_ for id_, token in special.items()}
        if image_token is not None and image_token not in self._control:
            raise InputError(f"image token {image_token!r} is no special token of the tokenizer: text could forge it")
        self._control_pattern = _pattern(special.values())
        self._swallows = {
            id_: (_SPACE if token.lstrip else "", _SPACE if token.rstrip else "") for id_, token in special.items()
        }
        # The unknown-word token is what ordinary text legitimately becomes where a vocabulary is small.
        self._forbidden = frozenset(self._control.values()) - {tokenizer.unk_token_id}
        # A copy: flags and limits that others set on the shared tokenizer must not reach the ids, nor ours reach them.
        self._encoder = copy.deepcopy(tokenizer.backend_tokenizer)
        self._encoder.no_truncation()
        self._encoder.no_padding()
        settings = [_VERSION, chat_template, self._names, image_token, merge_size, supervise]
        identity = json.dumps(settings, default=str) + self._encoder.to_str()
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._check_model(tokenizer)

    def render(self, messages: Sequence[Mapping[str, Any]], grids: Sequence[tuple[int, int, int]] = ()) -> Rendered:
        """Token ids and mask of a conversation.

        Args:
            messages: `{"role", "content"}`, content a list of `{"type": "text", "text"}` and `{"type": "image"}`;
                an assistant message with `"train": False` is not learned.
            grids: frames, rows and columns of patches of each picture, in order.

        Raises:
            RenderError: the template or the tokenizer cannot honour the conversation, or pictures do not match it.
        """
        shape, texts, learned = self._texts(messages)
        pictures = sum(parts.count(False) for _, parts in shape)
        if pictures != len(grids):
            raise RenderError("image_count", f"the messages have {pictures} picture places for {len(grids)} pictures")
        form = self._form(shape)
        written = _as_written(self._apply_template(shape, texts), form, texts)
        return self._encode(form.runs, written, learned, grids)

    def _texts(self, messages: Sequence[Mapping[str, Any]]) -> tuple[_Shape, list[str], list[bool]]:
        """The shape; the texts in order, those that touch joined; and whether each is learned."""
        shape, texts, learned = [], [], []
        last_answer = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        for number, message in enumerate(messages):
            role, parts = message["role"], _joined(message["content"])
            if not str(role).isidentifier():
                raise RenderError("role", f"{role!r} is no role")
            answer = role == "assistant"
            if None in parts:
                if answer:
                    raise RenderError("answer_image", f"message {number} is an answer with a picture in it")
                if self._image_token is None:
                    raise RenderError("image", f"message {number} has a picture, and the model takes none")
            own = [part for part in parts if part is not None]
            chosen = answer and message.get("train", True) and (self._supervise == "answers" or number == last_answer)
            texts += own
            learned += [bool(chosen)] * len(own)
            shape.append((role, tuple(part is not None for part in parts)))
        return tuple(shape), texts, learned

    def _apply_template(self, shape: _Shape, texts: Sequence[str], ask: bool = False) -> str:
        """The template's rendering of messages with these texts; `ask` for the answer that comes next."""
        chat, rest = [], iter(texts)
        for role, parts in shape:
            # Templates of text models join strings and know no parts.
            if all(parts):
                content: Any = "".join(next(rest) for _ in parts)
            else:
                content = [{"type": "text", "text": next(rest)} if part else {"type": "image"} for part in parts]
            chat.append({"role": role, "content": content})
        try:
            return _compile_jinja_template(self._template).render(
                messages=chat, tools=None, documents=None, add_generation_prompt=ask, strftime_now=_TODAY, **self._names
            )
        except Exception as error:  # a template is a program of somebody else: whatever it raises, it refuses
            raise RenderError("template", f"the chat template refuses the conversation: {error}") from error

    def _form(self, shape: _Shape) -> _Form:
        form = self._forms.get(shape)
        if form is None:
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            form = self._forms[shape] = self._make_form(shape)
        return form

    def _make_form(self, shape: _Shape) -> _Form:
        """The template's own part in conversations of a shape, as control tokens and runs of ordinary text.

        Template text and the content beside it are one run, as they are for the tokenizer when it gets the whole
        rendering. An answer begins a run of its own: when the model answers, the ids before are already fixed.
        """
        answers = _answers(shape)
        marks = [f"\ue000{number}\ue001" for number in range(sum(sum(parts) for _, parts in shape))]
        whole = self._apply_template(shape, marks)
        pieces = _MARK.split(whole)
        order, literals = [int(number) for number in pieces[1::2]], pieces[::2]
        if sorted(order) != list(range(len(marks))):
            raise RenderError("template", "the chat template leaves out or repeats a message")
        runs: list[_Run] = []
        at, ending = 0, None  # place in `whole`; the answer before it
        for literal, number in zip(literals, [*order, None]):
            start, at = at, at + len(literal)
            asked = self._asked(shape[: answers[number]], marks, whole, start, at) if number in answers else at
            first = len(runs)
            self._extend(runs, whole[start:asked], None)
            if ending is not None:
                if len(runs) == first or runs[first].control is None:
                    raise RenderError("template", "the chat template does not end an answer with a control token")
                runs[first] = replace(runs[first], answer=ending)
            ending = number if number in answers else None
            if number is None:
                break
            if ending is not None:
                runs.append(_Run(answer=number))
                self._extend(runs, whole[asked:at], number)
            _append(runs, number, ending)
            at += len(marks[number])
        return _Form(tuple(order), tuple(literals), tuple(self._finished(runs)))

    def _asked(self, before: _Shape, marks: Sequence[str], whole: str, start: int, end: int) -> int:
        """Where in `whole[start:end]`, which stands before an answer, the model is asked for it.

        That is where the template's generation prompt ends: what is written after it, the model has to write itself.
        """
        try:
            prompt, bare = (self._apply_template(before, marks, ask) for ask in (True, False))
        except RenderError:  # there is nothing to answer yet
            return end
        if not whole.startswith(prompt) or not start <= len(prompt) <= end:
            return end
        # A template without generation prompts can only be asked where the message before ends.
        written = whole[len(prompt) : end]
        return end if prompt == bare and written.strip() else len(prompt)

    def _extend(self, runs: list[_Run], text: str, answer: int | None) -> None:
        """Add what the template writes."""
        for number, piece in enumerate(self._control_pattern.split(text)):
            if number % 2:
                runs.append(_Run(control=self._control[piece.strip(_SPACE)], answer=answer))
            elif piece:
                _append(runs, piece, answer)

    def _finished(self, runs: Sequence[_Run]) -> Iterator[_Run]:
        """The runs with what is known of them whatever the messages say."""
        around = [("", ""), *(self._swallows.get(run.control, ("", "")) for run in runs), ("", "")]
        for run, (_, before), (after, _) in zip(runs, around, around[2:]):
            if run.control is not None:
                yield run
            elif run.parts:
                run = replace(run, strip=(before, after))
                fixed = all(isinstance(part, str) for part in run.parts)
                yield replace(run, ids=tuple(self._encode_text(run, ()))) if fixed else run

    def _encode(
        self,
        runs: Sequence[_Run],
        texts: Sequence[str],
        learned: Sequence[bool],
        grids: Sequence[tuple[int, int, int]],
    ) -> Rendered:
        image_id = None if self._image_token is None else self._control[self._image_token]
        places = sum(run.control == image_id for run in runs) if image_id is not None else 0
        if places != len(grids):
            raise RenderError("image_count", f"the chat template writes {places} places for {len(grids)} pictures")
        ids: list[int] = []
        learned_spans: list[tuple[int, int]] = []
        image_spans: list[tuple[int, int]] = []
        remaining = iter(grids)
        for number, run in enumerate(runs):
            start = len(ids)
            if run.control is None:
                ids += self._encode_text(run, texts) if run.ids is None else run.ids
            elif run.control != image_id:
                ids.append(run.control)
            else:
                ids += [run.control] * self._merged_tokens(next(remaining))
                before, after = (
                    0 <= beside < len(runs) and runs[beside].control not in (None, image_id)
                    for beside in (number - 1, number + 1)
                )
                image_spans.append((start - before, len(ids) + after))
            if run.answer is not None and learned[run.answer]:
                learned_spans.append((start, len(ids)))
        supervised = np.zeros(len(ids), dtype=bool)
        for start, end in learned_spans:
            supervised[start:end] = True
        return Rendered(np.array(ids, dtype=np.int32), supervised, tuple(image_spans))

    def _encode_text(self, run: _Run, texts: Sequence[str]) -> list[int]:
        text = "".join(part if isinstance(part, str) else texts[part] for part in run.parts)
        text = text.lstrip(run.strip[0]).rstrip(run.strip[1]) if any(run.strip) else text
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

    def _check_model(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Render a small conversation, so that what no row could honour is said once and at once."""
        try:
            rendered = self.render(_PROBE)
            shape, texts, _ = self._texts(_PROBE)
            text = self._apply_template(shape, texts)
            bare, prompt = (self._apply_template(shape[:1], texts, ask) for ask in (False, True))
        except RenderError as error:
            raise InputError(f"the model's chat template cannot be used for training: {error.detail}") from error
        self.end_id = int(rendered.ids[rendered.supervised][-1])
        whole = tokenizer(text, add_special_tokens=False).input_ids
        if rendered.ids.tolist() != whole:
            raise InputError(
                "the model's tokenizer encodes a conversation piece by piece otherwise than as a whole (it adds a "
                "space before each piece, or the chat template writes text that melts into the answer): not supported"
            )
        if prompt != bare and not text.startswith(prompt):
            log.warning(
                "the chat template's generation prompt (%r) is not how it begins an answer in a conversation: "
                "what is learned will be asked for otherwise",
                prompt.removeprefix(bare)[-60:],
            )


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches control tokens, the longest of two that begin alike, with the white space that some swallow."""
    space = {True: f"[{_SPACE}]*", False: ""}
    alternatives = [
        space[token.lstrip] + re.escape(token.content) + space[token.rstrip]
        for token in sorted(tokens, key=lambda token: -len(token.content))
    ]
    return re.compile(f"({'|'.join(alternatives) or '(?!)'})")


def _append(runs: list[_Run], part: str | int, answer: int | None) -> None:
    """Add text to the run that is open, or begin one."""
    if runs and runs[-1].control is None and runs[-1].answer == answer:
        runs[-1] = replace(runs[-1], parts=(*runs[-1].parts, part))
    else:
        runs.append(_Run((part,), answer=answer))


def _answers(shape: _Shape) -> dict[int, int]:
    """Number of each answer's text -> number of its message."""
    messages = [(number, role) for number, (role, parts) in enumerate(shape) for is_text in parts if is_text]
    return {text: number for text, (number, role) in enumerate(messages) if role == "assistant"}


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


def _as_written(rendering: str, form: _Form, texts: Sequence[str]) -> list[str]:
    """The texts as the template wrote them, each as it was or trimmed, so that with what stands between them they
    are the whole rendering, character for character; a template that edits more than that raises RenderError.
    """
    written = list(texts)
    start, *literals = form.literals
    at = len(start) if rendering.startswith(start) else -1
    for number, after in zip(form.order, literals):
        text = texts[number]
        fits = [fit for fit in (text, text.strip()) if at >= 0 and rendering.startswith(fit + after, at)]
        if not fits:
            at = -1
            break
        written[number] = fits[0]
        at += len(fits[0]) + len(after)
    if at != len(rendering):
        raise RenderError("template", "the chat template changes the text of a message beyond trimming it")
    return written
