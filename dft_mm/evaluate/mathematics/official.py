r"""The rules by which the DFT paper's numbers were graded, as a second column: Qwen2.5-Math's evaluation script.

They are kept as they are, faults included (the last number of a text without a box is its answer; `3` equals `300\%`
and `0.03`; one part in ten thousand is equal; intervals lose their brackets), so that numbers compare with published
ones. Source: github.com/QwenLM/Qwen2.5-Math, evaluation/parser.py and grader.py (MIT), written anew here. Runs in the
child of `worker`; `Symbolic` answers whether two formulas are the same by computer algebra.
"""

import math
import re
from collections.abc import Callable

from word2number import w2n

Symbolic = Callable[[str, str], bool]

# Units of MathQA's answers, which the script strikes out of every answer, in its order.
_UNITS = (
    "east", "degree", "mph", "kmph", "ft", "m sqaure", " m east", "sq m", "deg", "mile", "q .", "monkey", "prime",
    "ratio", "profit of rs", "rd", "o", "gm", "p . m", "lb", "tile", "per", "dm", "lt", "gain", "ab", "way", "west",
    "a .", "b .", "c .", "d .", "e .", "f .", "g .", "h .", "t", "a", "h", "no change", "men", "soldier", "pie", "bc",
    "excess", "st", "inches", "noon", "percent", "by", "gal", "kmh", "c", "acre", "rise", "a . m", "th", "π r 2", "sq",
    "mark", "l", "toy", "coin", "sq . m", "gallon", "° f", "profit", "minw", "yr", "women", "feet", "am", "pm", "hr",
    "cu cm", "square", "v â € ™", "are", "rupee", "rounds", "cubic", "cc", "mtr", "s", "ohm", "number", "kmph", "day",
    "hour", "minute", "min", "second", "man", "woman", "sec", "cube", "mt", "sq inch", "mp", "∏ cm ³", "hectare",
    "more", "sec", "unit", "cu . m", "cm 2", "rs .", "rs", "kg", "g", "month", "km", "m", "cm", "mm", "apple", "liter",
    "loss", "yard", "pure", "year", "increase", "decrease", "d", "less", "Surface", "litre", "pi sq m", "s .", "metre",
    "meter", "inch",
)  # fmt: skip
# The script takes the names as patterns: the dot in "a ." is any character.
_UNIT_PATTERNS = [re.compile(rf"(^|\W){unit}($|\W)") for unit in (*_UNITS, *(unit + "s" for unit in _UNITS))]
_ABSENT = tuple(f"{name}{mark}" for mark in ("=", r"\in", r"\to") for name in "xyz")


def verdict(response: str, gold: str, keep_units: bool, symbolic: Symbolic) -> bool:
    """Whether the script would count a response as right. `keep_units`: as it does for Minerva Math."""
    # It cleans what it extracted twice.
    answer = strip(extract(response, keep_units), keep_units)
    return equal(answer, strip(gold, keep_units), symbolic)


def extract(response: str, keep_units: bool) -> str:
    """Final answer of a response: what a template's last words, the last box or the words "he answer is" hold, else the
    last number anywhere."""
    text = response.replace("\u043a\u0438", "")
    if "final answer is $" in text and "$. I hope" in text:
        found = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in text:
        after = text.rsplit("boxed", 1)[1]
        if not after:
            return ""
        found = _braced(after) if after[0] == "{" else after.split("$")[0].strip()
    elif "he answer is" in text:
        found = text.rsplit("he answer is", 1)[1].strip()
    elif "final answer is" in text:
        found = text.rsplit("final answer is", 1)[1].strip()
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
        found = numbers[-1] if numbers else ""
    found = re.sub(r"\n\s*", "", found)
    found = found.removeprefix(":").removesuffix(".").removesuffix("/")
    return strip(found, keep_units)


def _braced(text: str) -> str:
    """Inside of the braces that a text begins with, or all that follows when they never close."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:place]
    return text[1:]


def strip(answer: str, keep_units: bool = False) -> str:
    """The script's normal form of an answer."""
    text = str(answer).strip().replace("\n", "").rstrip(".").replace(r"\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = re.sub(r"\\end\{array\}", r"\\end{pmatrix}", text)
    for old, new in (
        ("bmatrix", "pmatrix"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\neq", r"\ne"), (r"\leq", r"\le"),
        (r"\geq", r"\ge"), (r"\left", ""), (r"\right", ""), (r"\{", "{"), (r"\}", "}"),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    if not keep_units:
        for pattern in _UNIT_PATTERNS * 2:
            text = pattern.sub(r"\1\2", text) or text
    for gone in (r"^{\circ}", r"^\circ", r"\$", "$", r"\(", r"\)"):
        text = text.replace(gone, "")
    text = re.sub(r"\\text\{(.*?)\}", r"\1", _number_words(text))
    for gone in _ABSENT:
        text = text.replace(gone, "")
    text = text.replace(r"\emptyset", "{}").replace(r"(-\infty,\infty)", r"\mathbb{R}")
    for old, new in ((r"\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0."), ("infinity", r"\infty")):
        text = text.replace(old, new)
    if r"\infty" not in text:
        text = text.replace("inf", r"\infty")
    text = re.sub(r"\\mbox{.*?}", "", text.replace("and", "").replace(r"\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*$", r"\1", re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text))
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _ratio(_fractions(text))


def _number_words(text: str) -> str:
    try:
        return str(w2n.word_to_num(text))
    except (ValueError, IndexError, TypeError, KeyError):  # no number words, or none that it can read
        return text


def _fractions(text: str) -> str:
    r"""\frac12 and \frac1{72} with all their braces; as it was when one of them is cut off."""
    first, *rest = text.split(r"\frac")
    parts = [first]
    for part in rest:
        if part.startswith("{"):
            parts.append(part)
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            parts.append(f"{{{part[0]}}}{part[1:]}")
        else:
            parts.append(f"{{{part[0]}}}{{{part[1]}}}{part[2:]}")
    return r"\frac".join(parts)


def _ratio(text: str) -> str:
    """3/4 as a fraction, where both are whole numbers or hold a root."""
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        above, below = (side if "sqrt" in side else int(side) for side in sides)
    except ValueError:
        return text
    return rf"\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text


def equal(answer: str, gold: str, symbolic: Symbolic) -> bool:
    """Equal as text, as numbers (as percentages, too), part by part, or by computer algebra."""
    if answer.strip().lower() == gold.strip().lower():
        return True
    if gold in ("A", "B", "C", "D", "E") and _letter(answer) == gold:
        return True
    value, wanted = _number(answer), _number(gold)
    if value is not None and wanted is not None:
        return any(numerically_close(value, each) for each in (wanted / 100, wanted, wanted * 100))
    if not answer:
        return False
    answer, gold = answer.strip(), gold.strip()
    if "pmatrix" in answer and "pmatrix" not in gold:
        gold = ", ".join(_as_matrix(inside) for inside in re.findall(r"\{.*,.*\}", gold))
    if _bare(answer, gold):
        return True
    return _same_parts(answer, gold, symbolic) or _same_equation(answer, gold, symbolic)


def _letter(text: str) -> str:
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters = re.findall(r"\b(A|B|C|D|E)\b", text.upper())
    return (letters[-1] if letters else text.strip().strip(".")).rstrip(".").rstrip("/")


def _number(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        if not text.endswith("%"):
            return None
    try:
        return float(text[:-1].removesuffix("\\")) / 100
    except ValueError:
        return None


def numerically_close(value: float, wanted: float) -> bool:
    """To one part in ten thousand, as the script has it."""
    return math.isclose(wanted, value, rel_tol=1e-4)


def _as_matrix(inside: str) -> str:
    return r"\begin{pmatrix}" + inside.strip("{}").replace(",", "\\") + r"\end{pmatrix}"


def _bare(answer: str, gold: str) -> bool:
    """Equal without brackets."""
    square = answer.startswith("[") and answer.endswith("]") and not gold.startswith("(")
    round_ = answer.startswith("(") and answer.endswith(")") and not gold.startswith("[")
    if square or round_:
        answer, gold = answer.strip("[]()"), gold.strip("[]()")
    table = str.maketrans("", "", "{}()")
    return answer.translate(table).lower() == gold.translate(table).lower()


def _same_parts(answer: str, gold: str, symbolic: Symbolic) -> bool:
    """Tuples part by part; matrices row by row."""
    bracketed = re.compile(r"(\(|\[).+(\)|\])")
    if bracketed.match(answer) and bracketed.match(gold):
        ours, theirs = answer[1:-1].split(","), gold[1:-1].split(",")
        if len(ours) == len(theirs) and all(equal(*pair, symbolic) for pair in zip(ours, theirs)):
            return True
    rows = _matrix(answer), _matrix(gold)
    if rows[0] is None or rows[1] is None or len(rows[0]) != len(rows[1]):
        return False
    return all(
        len(ours) == len(theirs) and all(equal(*pair, symbolic) for pair in zip(ours, theirs))
        for ours, theirs in zip(*rows)
    )


def _matrix(text: str) -> list[list[str]] | None:
    begins = text.startswith((r"\begin{pmatrix}", r"\begin{bmatrix}"))
    if not begins or not text.endswith((r"\end{pmatrix}", r"\end{bmatrix}")):
        return None
    inside = text[len(r"\begin{pmatrix}") : -len(r"\end{pmatrix}")]
    return [row.strip().split("&") for row in inside.split(r"\\") if row.strip()]


def _same_equation(answer: str, gold: str, symbolic: Symbolic) -> bool:
    ours, theirs = answer.split("="), gold.split("=")
    if len(ours) == 2 and len(theirs) == 2:
        left, right = (f"{side[0].strip()} - ({side[1].strip()})" for side in (ours, theirs))
        if symbolic(left, right) or symbolic(f"-({left})", right):
            return True
    elif len(ours) == 2 and len(ours[0].strip()) <= 2 and len(theirs) == 1:
        if equal(ours[1], gold, symbolic):
            return True
    elif len(theirs) == 2 and len(theirs[0].strip()) <= 2 and len(ours) == 1 and equal(answer, theirs[1], symbolic):
        return True
    return symbolic(answer, gold)
