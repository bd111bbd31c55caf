"""Questions about pictures, with choices or without: the layouts of benchmarks and of their training sets."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dft_mm.data.layouts.formats import (
    IDS,
    IMAGE,
    Conversation,
    Fields,
    Picture,
    assistant,
    decoded,
    empty,
    from_base64,
    own_id,
    picture_of,
    pictures_of,
    refuse_unread,
    text_of,
    text_part,
    user,
    with_pictures,
)
from dft_mm.data.records import BadRow

QUESTIONS = ("question", "problem", "problem_text")
CHOICES = ("choices", "options", "option")
PICTURES = ("image_file", "images", "image", "image_path")
ANSWERS = ("answer", "final_answer", "gt")
_CONTEXTS = ("hint", "context")
_SOLUTIONS = ("solution", "detailed_solution", "explanation")
_WHOLE = ("ds_answer",)  # thought and answer together, learned as they are (VLAA-Thinking)
_LETTERS = string.ascii_uppercase
_NAMES = (*IDS, "sample_index", "pid", "index")
_OPTIONS = re.compile(r";\s*(?=[A-Z]\.)")
_ANSWER = re.compile(r"\(?[A-Z]\)?(?:[\s,;]+\(?[A-Z]\)?)*\.?")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


@dataclass(frozen=True)
class Place:
    """Where a data set keeps its pictures when its rows do not say so."""

    columns: frozenset[str]
    """Those that tell the data set."""
    picture: str
    """Path of a row's picture from its file, of the row's own values."""
    drawn: str | None = None
    """The `ques_type` of rows whose choices are picture files, too."""


PLACES = (
    Place(frozenset(("table_for_pd", "ques_type")), "tables/{id}.png"),  # TabMWP
    Place(frozenset(("lecture", "skill", "split", "image")), "images/{split}/{id}/{image}"),  # ScienceQA
    Place(frozenset(("ques_type", "label", "grade")), "image.png", drawn="choose_img"),  # IconQA
    Place(frozenset(("problem_text", "problem_type_graph")), "img_diagram.png"),  # Geometry3K
)


def question_answer(record: Fields, how: Any = None) -> Conversation:
    """A question with optional pictures, context, choices and worked solution.

    Asked is: the pictures, unless `<image>` marks in the question say where they stand (other marks, such as
    MathVision's `<image1>`, are text, as they are in its evaluation), a context, the question, its unit, and the
    choices as lines `(A) …`. An answer that is a letter, the number of a choice from 0, or a choice's text becomes
    `(B) its text`; a letter alone where the choices are pictures, or letters drawn in one. Learned is the solution, a
    blank line and `Answer: …`; without a solution the answer alone.
    """
    refuse_unread(record)
    place = place_of(record)
    images = _pictures(record, place)
    choices, lettered = _choices(record)
    drawn = bool(choices) and place is not None and place.drawn is not None and record.get("ques_type") == place.drawn
    asked = with_pictures(_question(record, [] if drawn else choices), len(images))
    if drawn:
        images += [Picture(choice) for choice in choices]
        asked += [part for letter in _LETTERS[: len(choices)] for part in (text_part(f"\n({letter}) "), IMAGE)]
    answer = assistant(_learned(record, choices, lettered, drawn))
    return Conversation([user(asked), answer], images, own_id(record, _NAMES))


def place_of(record: Fields) -> Place | None:
    """The data set that a row's columns tell of, where its pictures are found by that alone."""
    return next((place for place in PLACES if place.columns <= record.keys()), None)


def _pictures(record: Fields, place: Place | None) -> list[Picture]:
    key = next((key for key in PICTURES if not empty(record.get(key))), None)
    value = record[key] if key else None
    is_name = isinstance(value, str) and place is not None and f"{{{key}}}" in place.picture
    if value is not None and not is_name:
        if "index" not in record:
            return pictures_of(value, key)
        values = decoded(value)  # VLMEvalKit's tables hold a picture's file as base64, or a list of them
        items = values if isinstance(values, list) else [values]
        return [Picture(from_base64(item, key)) if _is_base64(item) else picture_of(item, key) for item in items]
    if place is None or (value is None and "{image}" in place.picture):  # ScienceQA has rows without one
        return []
    try:
        return [Picture(place.picture.format_map(record))]
    except KeyError as error:
        raise BadRow("image_path", f"there is no {error} to find the picture by: {place.picture}") from None


def _is_base64(value: Any) -> bool:
    return isinstance(value, str) and _BASE64.fullmatch(value) is not None


def _question(record: Fields, choices: list[str]) -> str:
    question = text_of(record, next((key for key in QUESTIONS if key in record), QUESTIONS[0]))
    unit = record.get("unit")
    if isinstance(unit, str) and unit.strip():
        question = f"{question} (Unit: {unit})"
    context = next((record[key] for key in _CONTEXTS if isinstance(record.get(key), str) and record[key].strip()), "")
    lines = "" if _letters_only(choices) else "\n".join(map(_named, range(len(choices)), choices))
    asked = "\n\n".join(text for text in (context, question) if text)
    return "\n".join(text for text in (asked, lines) if text)


def _choices(record: Fields) -> tuple[list[str], bool]:
    """Texts of the choices (a list, its text, `A. …; B. …`, columns A, B, …), and whether they came with letters."""
    columns = [record[letter] for letter in _LETTERS if letter in record]
    lettered = "A" in record and "B" in record and not empty(record["A"])
    if lettered:
        while empty(columns[-1]):
            columns.pop()
        given: Any = columns
    else:
        key = next((key for key in CHOICES if not empty(record.get(key))), None)
        given = decoded(record[key]) if key else []
    if isinstance(given, str):
        given = [text.strip() for text in _OPTIONS.split(given)]
        if not _lettered(given):
            raise BadRow("choice", f"the choices are neither a list nor `A. …; B. …`: {str(record[key])[:60]!r}")
    if isinstance(given, Mapping) and "".join(map(str, given)) == _LETTERS[: len(given)]:
        given, lettered = list(given.values()), True
    texts = isinstance(given, list) and all(isinstance(text, str | int | float) and text != "" for text in given)
    if not texts or len(given) > len(_LETTERS):
        raise BadRow("choice", f"the choices are no list of texts: {str(given)[:60]!r}")
    given = [str(text).strip() for text in given]
    return ([text[2:].strip() for text in given], True) if _lettered(given) else (given, lettered)


def _lettered(choices: list[str]) -> bool:
    """Whether each choice begins with its own letter."""
    return bool(choices) and all(
        text[:1] == letter and text[1:2] in (".", ":", ")") for text, letter in zip(choices, _LETTERS)
    )


def _letters_only(choices: list[str]) -> bool:
    return all(text == letter for text, letter in zip(choices, _LETTERS))


def _named(number: int, text: str) -> str:
    return f"({_LETTERS[number]}) {text}"


def _learned(record: Fields, choices: list[str], lettered: bool, drawn: bool) -> str:
    for key in _WHOLE:
        if not empty(record.get(key)):
            return text_of(record, key)
    solutions = [record[key] for key in _SOLUTIONS if not empty(record.get(key))]
    solutions = [value[0] if isinstance(value, list) else value for value in solutions]
    solution = next((text for text in solutions if isinstance(text, str) and text.strip()), "")
    key = next((key for key in ANSWERS if not empty(record.get(key))), None)
    if key is None and not any(key in record for key in ANSWERS):
        if not solution:
            text_of(record, ANSWERS[0])
        return solution
    if key is None:
        raise BadRow("no_answer", "the answer is empty")
    value = record[key]
    if choices:
        numbers = _chosen(value, choices, lettered)
        bare = drawn or _letters_only(choices)
        answer = "; ".join(_LETTERS[n] if bare else _named(n, choices[n]) for n in numbers)
    else:
        answer = ", ".join(map(str, value)) if isinstance(value, list) else text_of(record, key)
    return f"{solution}\n\nAnswer: {answer}" if solution else answer


def _chosen(value: Any, choices: list[str], lettered: bool) -> list[int]:
    """Numbers of the choices that are the answer; BadRow when it is none of them, or may mean two of them."""
    if isinstance(value, int) and not isinstance(value, bool):
        numbers = [value]
    else:
        given = " ".join(map(str, value)) if isinstance(value, list) else text_of({"answer": value}, "answer")
        given = given.strip()
        texts = [number for number, text in enumerate(choices) if text.casefold() == given.casefold()][:1]
        letters = [_LETTERS.index(letter) for letter in re.findall("[A-Z]", given)] if _ANSWER.fullmatch(given) else []
        if lettered and letters:
            texts = []
        if texts and letters and texts != letters:
            raise BadRow("choice", f"the answer {given!r} is the text of one choice and the letter of another")
        numbers = texts or letters or ([int(given)] if given.isascii() and given.isdigit() else [])
    if not numbers or not all(0 <= number < len(choices) for number in numbers):
        raise BadRow("choice", f"the answer {str(value)[:60]!r} is none of the {len(choices)} choices")
    return numbers
