r"""Multiple choice: which option does a response choose? A letter, `B. text`, the option's text, or its value."""

import re
from collections.abc import Mapping, Sequence

from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics import text as math_text
from dft_mm.evaluate.task import Grade

_SET_OFF = re.compile(r"\\(?:boxed|fbox)\b|<answer>", re.IGNORECASE)
_STATED = re.compile(  # `<Answer>: <<B>>` is what WeMath asks for
    r"(?i:\b(?:answer|option|choice)\b)[>*_\s]*(?i:\bis|\bare|(?:would|should|must) be|:|=)"
    r"[\s:<*_(\[$\"']*(?:\\[a-z]+\{)?(?i:(?:option|choice)\s+)?\(?([A-Z])(?![\w'’])\)?(?P<after>\s*[^\s.,;:)\]}>*_$\\\"']?)"
)
_APPROVED = re.compile(r"\b([A-Z])\b[)*.]{0,3}\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best|answer)\b")
_LETTERS = re.compile(r"(?<![\w\\])[A-Z](?![\w'’])")
_SEVERAL = re.compile(r"[A-Z](?:\s*(?:[,;&\n]|and)\s*[A-Z])+")
_LABELLED = re.compile(r"\(?([A-Z])\)?\s*([.:)]|\s)\s*(.*)", re.DOTALL)
_OPTION_LINES = re.compile(r"^\s*\(?([A-Z])\)?\s*[:.)]\s*(.*?)\s*$", re.MULTILINE)
_LONGEST_BARE = 200


def options_of(question: str) -> dict[str, str]:
    """The options that MathVerse writes below `Choices:`, by letter."""
    _, found, below = question.partition("Choices:")
    return dict(_OPTION_LINES.findall(below)) if found else {}


def grade_choices(grader: Grader, items: Sequence[tuple[str, str, Mapping[str, str], str]]) -> list[Grade]:
    """Grades of (response, gold letter or letters, options by letter, finish reason), in order.

    An answer that names no letter is right if it is the gold option's text or equals its value.
    """
    chosen = [read_choice(response, options) for response, _, options, _ in items]
    by_value = [
        place
        for place, ((_, gold, options, _), (letters, answer)) in enumerate(zip(items, chosen))
        if answer is not None and not letters and options.get(gold.strip(), "").strip()
    ]
    values = [
        (rf"\boxed{{{chosen[place][1]}}}", items[place][2][items[place][1].strip()], "stop") for place in by_value
    ]
    equal = dict(zip(by_value, grader.grade_all(values)))
    return [_grade(*item, *choice, equal.get(place)) for place, (item, choice) in enumerate(zip(items, chosen))]


def _grade(
    response: str, gold: str, options: Mapping[str, str], finish: str, letters: str, answer: str | None,
    value: Grade | None,
) -> Grade:  # fmt: skip
    wanted = letters_of(gold)
    if not wanted or (options and not set(wanted) <= set(options)):
        return Grade("ungradable", answer, f"the gold answer {gold!r} is none of the options {', '.join(options)}")
    if answer is None:
        return Grade("truncated" if finish == "length" else "no_answer", None)
    if letters:
        return Grade("correct" if set(letters) == set(wanted) else "wrong", answer)
    if value is not None and value.status in ("correct", "timeout"):
        return Grade(value.status, answer, value.detail)
    return Grade("wrong", answer)


def letters_of(gold: str) -> str:
    """`B` of "B", `CD` of "C\\nD"; empty for anything else."""
    gold = gold.strip()
    if len(gold) == 1:
        return gold if gold.isascii() and gold.isupper() else ""
    return "".join(_LETTERS.findall(gold)) if _SEVERAL.fullmatch(gold) else ""


def read_choice(response: str, options: Mapping[str, str]) -> tuple[str, str | None]:
    """Letters that a response chooses (empty where it names none) and the text that says so (None: no answer)."""
    if _SET_OFF.search(response) and (answer := math_text.extract(response)) is not None:
        return _letters(answer, options), answer
    # "the answer is A triangle" states no letter
    stated = [match for match in _STATED.finditer(response) if match[1] != "A" or not match["after"].strip()]
    for match in sorted([*stated, *_APPROVED.finditer(response)], key=lambda match: match.start(1), reverse=True):
        if known := _known(match[1], options):
            return known, match[1]
    # A bare answer is a whole response, or the line below a reasoning.
    line = (response.strip().splitlines() or [""])[-1].strip().strip("*_ ")
    if line and len(line) <= _LONGEST_BARE and (letters := _letters(line, options)):
        return letters, line
    answer = math_text.extract(response)
    return ("", None) if answer is None else (_letters(answer, options), answer)


def _known(letters: str, options: Mapping[str, str]) -> str:
    """All of them, or none where one is no option: the text may then be a value."""
    return letters if not options or set(letters) <= set(options) else ""


def _letters(answer: str, options: Mapping[str, str]) -> str:
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}", r"\1", answer).strip().strip("$*_. ")
    single = re.fullmatch(r"(?i:option|choice)?\s*[(<\[]*([A-Za-z])[)>\].]*", text)
    if single and (known := _known(single[1].upper(), options)):
        return known
    same = [letter for letter, option in options.items() if _key(option) == _key(text)]
    if same:
        return same[0]
    if len(text) <= _LONGEST_BARE and _SEVERAL.fullmatch(text):
        return _known("".join(_LETTERS.findall(text)), options)
    labelled = _LABELLED.fullmatch(text)
    if labelled and (labelled[2].strip() or labelled[1] != "A" or _key(labelled[3]) == _key(options.get("A", ""))):
        return _known(labelled[1], options)
    return ""


def _key(text: str) -> str:
    return math_text.squash(math_text.clean(text)).casefold()
