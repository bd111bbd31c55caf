r"""From a response to its final answer, and from an answer to a form in which equal answers look equal.

Every pass over model text is linear in its length: a response may be long and hostile.
"""

import re
from fractions import Fraction

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}\\][^\s${}]*)")
_GLUE = re.compile(r"[\s$]*(?:\\\)|\\\])?[\s$]*(?:,|and|or|, and|, or)[\s$]*(?:\\\(|\\\[)?[\s$]*")
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_STATED = re.compile(
    r"(?:\banswers?\b[*_]*[ \t]*(?:is|are|(?:would|should|must) be|equals|:|=)|####)[*_]*[ \t]*:?[ \t]*([^\n]*)",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$?((?:\\\$|[^$\n])+)\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL)
_BETWEEN = re.compile(r"\s*(?:,|and|or|, and|, or)\s*")
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?:\s|$)")


def extract(response: str) -> str | None:
    r"""The final answer of a response, or None.

    It is the last `<answer>…</answer>` or the last closed `\boxed{…}`, whichever comes later (a box inside the tag
    counts as the tag's); without either, the last stated one ("the answer is …", "Answer: …", "#### …"); a response
    that is nothing but one short formula states it.
    """
    boxed, box_end = _last_box(response)
    tags = list(_TAG.finditer(response))
    if tags and tags[-1].end() > box_end:
        inside = tags[-1].group(1)
        answer = _last_box(inside)[0] or _stated(inside) or inside
    else:
        answer = boxed or _stated(response) or _bare(response)
    answer = (answer or "").strip()
    return answer or None


def _last_box(text: str) -> tuple[str | None, int]:
    """Content of the last box that holds anything (several boxes joined by a comma or "and" are one answer)."""
    open_braces: list[int | None] = []  # where the content of a box starts; None for any other brace
    boxes: list[tuple[int, int, int]] = []  # start of the command, of the content, end of the content
    commands: list[int] = []
    for match in _BOX.finditer(text):
        token = match.group()
        if token == "}":
            if open_braces and (start := open_braces.pop()) is not None:
                boxes.append((commands.pop(), start, match.start()))
        elif token.endswith("{") and len(token) > 2:
            open_braces.append(match.end())
            commands.append(match.start())
        elif token == "{":
            open_braces.append(None)
    boxes = [box for box in boxes if text[box[1] : box[2]].strip()]
    if not boxes:
        bare = list(_BARE_BOX.finditer(text))
        return (bare[-1].group(1).rstrip(".,"), bare[-1].end()) if bare else (None, -1)
    parts = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = text[box[2] + 1 : parts[0][0]] if box[2] < parts[0][0] else "x"
        if len(gap) > 40 or not _GLUE.fullmatch(gap):
            break
        parts.insert(0, box)
    return ", ".join(text[start:end] for _, start, end in parts), boxes[-1][2] + 1


def _stated(text: str) -> str | None:
    matches = [match for match in _STATED.finditer(text) if match.group(1).strip()]
    if not matches:
        return None
    rest = matches[-1].group(1)
    formulas: list[re.Match[str]] = []
    for formula in _FORMULA.finditer(rest):
        if formulas and not _BETWEEN.fullmatch(rest[formulas[-1].end() : formula.start()]):
            break
        formulas.append(formula)
    if formulas:
        return ", ".join(next(group for group in formula.groups() if group) for formula in formulas)
    return _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *_")


def _bare(text: str) -> str | None:
    bare = text.strip()
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", bare[:_BARE_LENGTH])
    return None if len(bare) > _BARE_LENGTH or words or "\n" in bare or "<" in bare else bare


_BARE_LENGTH = 80
_PLAIN = (
    ("**", ""), ("−", "-"), ("–", "-"), ("×", r"\times "), ("·", r"\cdot "), ("÷", "/"), ("π", r"\pi "),
    ("∞", r"\infty "), ("°", r"^\circ"), ("√", r"\sqrt "), ("²", "^2"), ("³", "^3"), ("*", r"\cdot "),
    ("≤", r"\le "), ("≥", r"\ge "), ("∪", r"\cup "), ("∈", r"\in "),
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cfrac", r"\frac"),
    (r"\mathrm{", r"\text{"), (r"\textbf{", r"\text{"), (r"\textrm{", r"\text{"),
    (r"\mathbf{", r"\text{"), (r"\mbox{", r"\text{"), (r"\leq", r"\le"), (r"\geq", r"\ge"), (r"\$", ""), ("$", ""),
    (r"\(", ""), (r"\)", ""), (r"\[", ""), (r"\]", ""), ("bmatrix", "pmatrix"),
)  # fmt: skip
_SPACES = re.compile(r"(?<!\\)\\[ ,;:!]|\\q?quad\b|\\(?:left|right|displaystyle)(?![A-Za-z])|~|\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\\circ\}?|\\text\{\s*degrees?\s*\}|\bdegrees?\b)")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})")
_NAME = re.compile(r"^(?:[A-Za-z]\w?(?:_\{[^{}]*\})?|\\[a-z]+|[a-zA-Z]\([a-z]\))\s*(?:=|\\in\b)\s*(?=[^=]+$)")
_UNIT = re.compile(
    r"(?<=[\d})])\s*(?:\\text\{(?!\s*[ap]\.?m\b)[^{}]*\}|(?<=\s)(?![ap]m\b)[A-Za-z]{2,}(?:\s+[A-Za-z]+){0,3})(?:\^\{?\d\}?)?$"
)
_METRIC = re.compile(r"(?<=[\d}\s)i])\s*(?:(?:mm|cm|dm|km|厘米|千米|米)(?:\^\{?[23]\}?)?|m\^\{?[23]\}?|(?<=\s)m)$")
_WORD_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(?:np\.)?(sqrt|pi|(?:arc)?(?:sin|cos|tan)|ln|log)(?![A-Za-z])\s*(?:\(([^()]*)\))?"
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_BASE = re.compile(r"^(\d+)_\{?(\d+)\}?$")
_LONE_INDEX = re.compile(r"([_^])\{(\w)\}")
_SCIENTIFIC = re.compile(
    r"(?:([-+]?(?:\d{1,100}(?:\.\d{0,100})?|\.\d{1,100}))(?:\\times|\\cdot))?10\^\{?([-+]?\d{1,3})\}?"
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?:[ap]m)?")
_CHOICE = re.compile(r"(?:[Oo]ption\s*)?\(?(?:([A-Z])\)?(?:[.:)\s].*)?|([a-z])\)?)", re.DOTALL)
_DECIMAL = re.compile(r"[-+]?(?:\d{1,100}(?:\.\d{0,100})?|\.\d{1,100})(?:[eE][-+]?\d{1,3})?")
_RATIO = re.compile(r"([-+]?)(?:\\frac\{([-+]?\d{1,100})\}\{(\d{1,100})\}|(\d{1,100}(?:\.\d{0,100})?)/(\d{1,100}))")


def clean(answer: str) -> str:
    """The same mathematics in plain LaTeX: no fonts, spacing commands, units, degrees, currency or `x =` before it."""
    text = answer
    for _ in range(3):  # a box in a box happens; thousands of them only happen on purpose
        text = _last_box(text)[0] or text
    text = re.sub(r",\\!\s*", "", text.replace("{,}", ","))
    for old, new in _PLAIN:
        text = text.replace(old, new)
    text = _SPACES.sub(" ", text).strip().rstrip(".,;: ")
    text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    if not any(bracket in text for bracket in "([{"):
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = _DEGREES.sub("", text)
    text = re.sub(r"(?<!\\)%", r"\%", text)
    text = _WORD_FUNCTION.sub(_in_latex, text)
    text = _NAME.sub("", text)
    return _METRIC.sub("", _UNIT.sub("", text)).strip()


def _in_latex(match: re.Match[str]) -> str:
    """sqrt(3) → \\sqrt{3}, pi → \\pi."""
    name, inside = match.groups()
    if inside is None:
        return rf"\{name} "
    return rf"\{name}{{{inside}}}" if name == "sqrt" else rf"\{name} ({inside})"


def squash(cleaned: str) -> str:
    """A key for comparison: what `clean` gave, without text commands, spaces and, for words, letter case."""
    text = _LONE_INDEX.sub(r"\1\2", re.sub(r"\s+", "", _TEXT.sub(r"\1", cleaned)))
    if re.fullmatch(r"\(?[A-Za-z]{3,}\)?|\([A-Za-z]\)", text):
        text = text.strip("()")
    time = text.lower().replace(".", "")
    if _CLOCK.fullmatch(time):
        return time
    return text.lower() if re.fullmatch(r"[A-Za-z]{3,}", text) else text


def number(key: str) -> Fraction | None:
    r"""The exact value of a squashed decimal, ratio, fraction or a \times 10^{n}; None for anything else."""
    if _DECIMAL.fullmatch(key):
        return Fraction(key)
    if scientific := _SCIENTIFIC.fullmatch(key):
        return Fraction(scientific[1] or 1) * Fraction(10) ** int(scientific[2])
    match = _RATIO.fullmatch(key)
    if match is None:
        return None
    above, below = Fraction(match[2] or match[4]), int(match[3] or match[5])
    return None if below == 0 else above / below * (-1 if match[1] == "-" else 1)


def same_number(gold: Fraction, answer: Fraction, answer_key: str) -> bool:
    """Equal exactly; or to a millionth where the answer is a decimal and no decimal could be exact."""
    rest = gold.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    close = rest > 1 and "." in answer_key and abs(gold - answer) <= abs(gold) / 1_000_000
    return gold == answer or close


def within(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two answers are numbers that differ by no more than `tolerance`."""
    left, right = number(squash(clean(gold))), number(squash(clean(answer)))
    return left is not None and right is not None and abs(left - right) <= Fraction(str(tolerance))


def is_words(key: str) -> bool:
    """A squashed answer that is a word, a name or a time: compared as text, never as a product or a ratio."""
    return re.fullmatch(r"[a-z]{3,}", key) is not None or _CLOCK.fullmatch(key) is not None


def choice(answer: str) -> str | None:
    """The letter of "(C)", "C. 12" or "option C"; None when it does not look like a choice."""
    match = _CHOICE.fullmatch(_TEXT.sub(r"\1", clean(answer)).strip())
    return (match[1] or match[2]).upper() if match else None


def bases_differ(gold: str, answer: str) -> bool | None:
    """For numerals such as 4210_{5}: True when digits or stated bases differ, None when neither states a base."""
    left, right = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if left is None and right is None:
        return None
    digits = [match.group(1) if match else text for match, text in ((left, gold), (right, answer))]
    bases = [match.group(2) for match in (left, right) if match]
    return digits[0] != digits[1] or len(set(bases)) > 1
