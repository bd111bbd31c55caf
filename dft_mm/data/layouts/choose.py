"""Which layout the rows of a file have, and what reads it. A new layout is one new entry in READERS and in RULES."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dft_mm.config import ColumnsConfig, Format, SourceConfig
from dft_mm.data.layouts.chat import ANSWERS, CHATS, alpaca, chat, preference, prompt_completion
from dft_mm.data.layouts.formats import Conversation, Fields, NotChosen, by_columns, decoded, problem_solution, wethink
from dft_mm.data.layouts.llamafactory import INFO, Entry, find_entry
from dft_mm.data.layouts.questions import CHOICES, PICTURES, QUESTIONS, place_of, question_answer
from dft_mm.data.records import BadRow
from dft_mm.errors import InputError

Reader: TypeAlias = Callable[[Fields, Any], Conversation]
READERS: dict[Format, Reader] = {
    "wethink": wethink, "sharegpt": chat, "alpaca": alpaca, "messages": chat, "prompt_completion": prompt_completion,
    "qwenvl": chat, "problem_solution": problem_solution, "question_answer": question_answer,
    "preference": preference, "columns": by_columns,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How the rows of one file are read."""

    format: Format
    columns: ColumnsConfig | None = None
    """Of format `columns`."""
    entry: Entry | None = None
    """What LLaMA-Factory's dataset_info.json says of the file."""
    images: str = "."
    """Folder that the picture paths are below."""
    why: str = ""
    """What was taken, and because of what."""

    def read(self, record: Fields) -> Conversation:
        """The conversation of a row, unchecked; raises BadRow or NotChosen."""
        return READERS[self.format](record, self.columns or self.entry)


@dataclass(frozen=True)
class Rule:
    """When rows are taken to have a layout."""

    format: Format
    wants: str
    """In words, for a message."""
    columns: tuple[str, ...]
    """Those that it looks at."""
    fits: Callable[[Fields], bool]


def _has(*columns: str) -> Callable[[Fields], bool]:
    return lambda record: all(column in record for column in columns)


def _any(record: Fields, columns: Sequence[str]) -> bool:
    return any(column in record for column in columns)


def _turns_with(key: str, record: Fields) -> bool:
    """Whether a column holds a list of turns that have a key."""
    lists = (decoded(record.get(column)) for column in CHATS)
    firsts = (turns[0] for turns in lists if isinstance(turns, list) and turns)
    return any(isinstance(turn, Mapping) and key in turn for turn in firsts)


def _is_preference(record: Fields) -> bool:
    pair = "chosen_messages" in record or ("chosen" in record and "rejected" in record)
    said = _any(record, ANSWERS) or _turns_with("role", record) or _turns_with("from", record)
    return pair or ("label" in record and said)


_ANSWERS = ("answer", "solution", "final_answer", "ds_answer")


def _is_question_answer(record: Fields) -> bool:
    pictured = _any(record, PICTURES) or place_of(record) is not None
    chosen = _any(record, CHOICES) or ("A" in record and "B" in record)
    return (pictured or chosen) and _any(record, QUESTIONS) and _any(record, _ANSWERS)


RULES = (  # the most particular first
    Rule("preference", "chosen and rejected, or chosen_messages, or label beside messages or completion",
         ("chosen_messages", "chosen", "rejected", "label", "prompt", *ANSWERS, *CHATS), _is_preference),
    Rule("wethink", "problem and refined_cot", ("problem", "refined_cot"), _has("problem", "refined_cot")),
    Rule("qwenvl", "conversations (from, value), and image or video", (*CHATS, "image", "video"),
         lambda record: _any(record, ("image", "video")) and _turns_with("from", record)),
    Rule("sharegpt", "conversations (from, value)", CHATS, lambda record: _turns_with("from", record)),
    Rule("alpaca", "instruction and output", ("instruction", "input", "output"), _has("instruction", "output")),
    Rule("prompt_completion", "prompt and completion, or query and response", ("prompt", "query", *ANSWERS),
         lambda record: _any(record, ("prompt", "query")) and _any(record, ANSWERS)),
    Rule("question_answer", "question or problem, its answer or solution, and choices, options or a picture",
         (*QUESTIONS, *CHOICES, *PICTURES, *_ANSWERS), _is_question_answer),
    Rule("problem_solution", "problem or question, and its solution or answer",
         ("problem", "question", "solution", "answer", "final_answer"),
         lambda record: _any(record, ("problem", "question")) and _any(record, _ANSWERS[:3])),
    Rule("messages", "messages (role, content)", CHATS, lambda record: _turns_with("role", record)),
)  # fmt: skip


def choose_layout(source: SourceConfig, file: Path, first: Sequence[Fields]) -> Layout:
    """The layout of a file whose first few readable rows are given.

    What the recipe says is taken; else what a dataset_info.json beside the file says of it; else what the columns are
    like. Raises InputError when auto fits nothing.
    """
    first = [record for record in first if isinstance(record, Mapping)]
    entry = find_entry(file, source) if source.format == "auto" else None
    if source.format != "auto":
        layout = Layout(source.format, source.columns, why=f"{source.format}: so says the recipe{_unused(file)}")
    elif entry is not None:
        layout = Layout(_format_of(entry), entry=entry, why=f"{_format_of(entry)}: entry {entry.name!r} of {INFO}")
    else:
        layout = _by_columns(file, first)
    if source.images is not None:
        folder, why = Path(source.images), ""
    else:
        folder, why = _find_images(layout, file, first)
    return Layout(layout.format, layout.columns, layout.entry, str(folder), layout.why + why)


def _unused(file: Path) -> str:
    return f", not the {INFO} beside it" if (file.parent / INFO).is_file() else ""


def _format_of(entry: Entry) -> Format:
    if entry.ranking or entry.kto_tag:
        return "preference"
    return {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "messages"}[entry.formatting]


def _by_columns(file: Path, first: Sequence[Fields]) -> Layout:
    """By the first rule that fits at least half of the rows; some may be damaged or have columns left out."""
    fitting = [rule for rule in RULES if first and 2 * sum(map(rule.fits, first)) >= len(first)]
    if not fitting:
        columns = ", ".join(map(repr, first[0])) if first else "none"
        known = "\n".join(f"  {rule.format}: {rule.wants}" for rule in RULES)
        raise InputError(
            f"data: {file}: no known layout fits its first rows (columns of the first: {columns}). Known are\n{known}\n"
            "Name the `format` in the recipe, or which column is which:\n"
            "  format: columns, columns: {prompt: …, response: …, images: …}"
        )
    rule, *others = fitting
    also = [other.format for other in others if (rule.format, other.format) not in _WITHIN]
    columns = dict.fromkeys(column for record in first for column in rule.columns if column in record)
    left = dict.fromkeys(column for record in first for column in record if column not in columns)
    why = f"{rule.format}: by its columns {', '.join(columns)}" + (f"; not read: {', '.join(left)}" if left else "")
    if rule.format == "question_answer" and (place := place_of(first[0])):
        why += f", with the pictures at {place.picture}"
    if rule.format == "question_answer" and any(isinstance(record.get("answer"), int) for record in first):
        why += " (a number is the choice at that place, counted from 0)"
    if also:
        why += f" ({' and '.join(also)} would fit, too: name the `format` to take it)"
    return Layout(rule.format, why=why)


# A layout that fits whenever the other does, and says less: not worth a word.
_WITHIN = {
    ("qwenvl", "sharegpt"), ("question_answer", "problem_solution"), ("preference", "messages"),
    ("preference", "sharegpt"), ("preference", "prompt_completion"), ("wethink", "problem_solution"),
    ("wethink", "question_answer"), ("preference", "alpaca"),
}  # fmt: skip


def _find_images(layout: Layout, file: Path, first: Sequence[Fields]) -> tuple[Path, str]:
    """The first folder of the file's own, its `images` and the one above in which a first row's picture is."""
    folders = (file.parent, file.parent / "images", file.parent.parent)
    for path in _first_paths(layout, first):
        for folder in folders:
            if _is_in(folder, path):
                return folder, "" if folder == file.parent else f"; pictures are below {folder}"
    return file.parent, ""


def _first_paths(layout: Layout, first: Sequence[Fields]) -> Iterator[str]:
    """Path of the first picture of each row that has one."""
    for record in first:
        try:
            images = layout.read(record).images
        except (BadRow, NotChosen):
            continue
        if images and isinstance(images[0].source, str):
            yield images[0].source


def _is_in(folder: Path, path: str) -> bool:
    try:
        whole = (folder / path).resolve()
        return whole.is_relative_to(folder.resolve()) and whole.is_file()
    except (OSError, ValueError):
        return False
