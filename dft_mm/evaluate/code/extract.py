"""From an answer to the code in it: the fenced block that defines the function, a bare function, or a body."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from dft_mm.evaluate.code.languages import Language

# Patterns run over text that a model wrote, in our own process: none of them may take more than its length times a
# constant, so they look at the starts of lines and at a bounded number of characters.
_LONGEST = 60_000
_LINE = 300
_FENCE = re.compile(
    r"(?:^([ \t]*))?(`{3,9}|~{3,9})[ \t]{0,9}([\w+#.-]{0,30})[^\n`]{0,99}\n"
    r"(.*?)(?:^[ \t]*\2|\Z)",
    re.DOTALL | re.MULTILINE,
)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_UNNAMED = {"", "code", "text", "plaintext"}
_STARTS = re.compile(
    r"(?:#include|#!|using |import |from |<\?php|template|struct |class |public |private |static |function |async |"
    r"const |let |var |def |@\w|//|/\*|[A-Z_]+ = )"
)
_PYTHON_LINE = re.compile(
    r"(?:def|class|import|from|if|for|while|with|try|except|else|elif|finally|return|assert|print|async|raise|pass)\b|"
    r"[@#)\]}\"']|[\w.\[\]\"', ]+\s*(?:[-+*/]?=(?!=)|\()"
)
_BODY_LINE = re.compile(
    r"\s+\S|.*[;{}:)]\s*$|[\w.\[\], ]+[-+*/]?=(?!=)|(?:return|if|for|while|local|let|const|var|import|auto|int|echo)\b"
)


@dataclass(frozen=True)
class Code:
    text: str
    whole: bool
    """It defines the function itself, rather than going on from its first line."""
    chat: bool = True


def code_of(
    text: str, language: Language, name: str, prompt: str, completion: bool, stop: Sequence[str]
) -> Code | None:
    """The code in an answer about the function `name`; None when there is none.

    `completion`: the model went on writing from the prompt. `stop`: what ends such a text; it may not be cut yet.
    """
    text = _final(text.replace("\r\n", "\n"))[:_LONGEST] if not completion else text[:_LONGEST]
    repeated = _after_prompt(text, prompt)
    if completion or repeated is not None:
        written = text if repeated is None else repeated
        start = definition(written, language, name)
        if start is not None and not written[:start].strip():  # it begins with the function's first line once more
            return Code(cut(written[start:], stop), True)
        body = cut(written, stop)
        return Code(body, False, False) if body.strip() else None
    blocks = [
        (word.lower(), textwrap.dedent(block) if indent else block) for indent, _, word, block in _FENCE.findall(text)
    ]
    if not blocks:
        return _unfenced(text, language, name, stop)
    ours = [block for word, block in blocks if word in language.fences | _UNNAMED]
    defining = [block for _, block in blocks if _defines(block, language, name)]
    for block in (*defining[-1:], *[each for each in ours if each.strip()][-1:]):
        if block in defining:
            return Code(block, True)
        return Code(_indented(cut("\n" + block, stop).strip("\n"), language), False)
    return None


def cut(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop texts."""
    ends = [place for each in stop if (place := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text


def _after_prompt(text: str, prompt: str) -> str | None:
    """What follows the prompt, where an answer repeats it at its start; blank lines around it do not count."""
    given = prompt.strip()
    text = text.lstrip()
    return text[len(given) :] if text.startswith(given) else None


def _final(text: str) -> str:
    """What is said after thinking, inside <answer> where there is code in it."""
    after = text.rpartition("</think>")[2]
    text = after if after.strip() else text
    answers = [answer for answer in _ANSWER.findall(text) if answer.strip()]
    return answers[-1] if answers else text


def _defines(text: str, language: Language, name: str) -> bool:
    return definition(text, language, name) is not None


def definition(text: str, language: Language, name: str) -> int | None:
    """Where the line starts that defines the function `name`."""
    for found in re.finditer(rf"\b{re.escape(name)}(?={language.behind})", text):
        start = text.rfind("\n", 0, found.start()) + 1
        if found.start() - start <= _LINE and re.fullmatch(language.before, text[start : found.start()]):
            return start
    return None


def _unfenced(text: str, language: Language, name: str, stop: Sequence[str]) -> Code | None:
    lines = text.split("\n")
    found = definition(text, language, name)
    if found is None:
        first = next((line for line in lines if line.strip()), "")
        if not _BODY_LINE.match(first[:_LINE]):
            return None
        return Code(_indented(cut("\n" + text, stop).lstrip("\n").rstrip(), language), False)
    defined = text.count("\n", 0, found)
    first = next((number for number, line in enumerate(lines[:defined]) if _STARTS.match(line)), defined)
    last = len(lines)
    if language.comment == "#" and language.source.endswith(".py"):
        rest = enumerate(lines[defined + 1 :], defined + 1)
        last = next((n for n, line in rest if line[:1].strip() and not _PYTHON_LINE.match(line[:_LINE])), last)
    else:
        while last > defined + 1 and not lines[last - 1].rstrip().endswith(("}", ";", ")", "?>")):
            last -= 1
    return Code("\n".join(lines[first:last]), True)


def _indented(body: str, language: Language) -> str:
    """A Python body as deep as its function wants it."""
    if not language.source.endswith(".py"):
        return body
    lines = body.split("\n")
    depths = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    if not depths or depths[0] > 0:
        return body
    if min(depths[1:], default=0) >= 4:  # only the first line has lost its white space
        return "    " + body
    return textwrap.indent(body, "    ")
