"""From a model's code to a whole program: with the benchmark's tests behind it, in place of a main of its own."""

import re
from dataclasses import dataclass

from dft_mm.evaluate.code.extract import Code, definition
from dft_mm.evaluate.code.languages import Language

_QUOTED = re.compile(
    r'//[^\n]*|/\*.*?(?:\*/|\Z)|@"(?:[^"]|"")*"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`(?:\\.|[^`\\])*`', re.DOTALL
)
_IMPORT = re.compile(r"^[ \t]*(?:import|using)\s[\w.*= \t]+;[ \t]*$", re.MULTILINE)
_PACKAGE = re.compile(r"^[ \t]*(?:package|namespace)\s+[\w.]+\s*;[ \t]*$", re.MULTILINE)
_CLASS = re.compile(r"\b(?:class|struct|record)\s+\w+[^;{}]*\Z")
_TOP_LEVEL = re.compile(
    r"^[ \t]*(?:public[ \t]+)?((?:\w+[ \t]+){0,4}(?:class|interface|enum|record|struct)\s)", re.MULTILINE
)
_TYPE = re.compile(r"\b(?:union|struct)\s+(\w+)\s*\{")


CLASS = "class Problem {"
"""Begins the class of every program in a language whose functions are members of one."""
_NEAR = 300  # a class says what it is within so many characters before its brace


@dataclass(frozen=True)
class Row:
    """What a row of MultiPL-E says."""

    name: str
    """Of the function."""
    prompt: str
    tests: str


def assemble(code: Code, row: Row, language: Language) -> str:
    """The whole program."""
    tests = row.tests
    closes = tests.lstrip().startswith("}")
    if not code.whole:
        return f"{row.prompt}{_body(code, closes, language)}\n{tests}"
    text = _without_main(code.text, language)
    found = definition(text, language, row.name)
    if found is None:  # the function stood in its main
        text, found = code.text, definition(code.text, language, row.name) or 0
    masked = mask(text)
    if closes and _is_closed(text, masked, found, language):
        tests = tests.lstrip()[1:]
    if language.wrapper:
        return _in_class(text, masked, found, row, tests)
    text = re.sub(r"<\?php|\?>", "", text) if language.title == "PHP" else text
    return f"{_head(row.prompt, text)}{text}\n{tests}"


def _body(code: Code, closes: bool, language: Language) -> str:
    """A body that ends where the tests go on: before its closing brace where they bring one."""
    if not code.chat or language.comment == "#":
        return code.text
    depth = 0
    for place, character in enumerate(mask(code.text)):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return code.text[:place] if closes else code.text
    return code.text if closes else f"{code.text}\n}}"


def mask(text: str) -> str:
    """The text, as long as it was, with strings and comments blank, so that braces can be counted."""
    return _QUOTED.sub(lambda found: " " * len(found.group()), text)


def _end_of_braces(masked: str, start: int) -> int:
    """Behind the brace that closes the first one after `start`; the end of the text when none does."""
    depth = 0
    for place in range(start, len(masked)):
        depth += (masked[place] == "{") - (masked[place] == "}")
        if depth == 0 and masked[place] == "}":
            return place + 1
    return len(masked)


def _is_closed(text: str, masked: str, start: int, language: Language) -> bool:
    if language.comment == "#":  # a shell's braces are not all blocks
        return re.search(r"^\}", text[start:], re.MULTILINE) is not None or text[start:].rstrip().endswith("}")
    end = _end_of_braces(masked, start)
    return masked[:end].endswith("}")


def _without_main(text: str, language: Language) -> str:
    found = re.search(language.main, text, re.MULTILINE) if language.main else None
    if found is None:
        return text
    return text[: found.start()] + text[_end_of_braces(mask(text), found.start()) :]


def _head(prompt: str, text: str) -> str:
    """What stands in the prompt before the function's own first line, unless the answer brings those types itself."""
    lines = prompt.rstrip("\n").split("\n")[:-1]
    if any(re.search(rf"\b(?:union|struct)\s+{name}\b", text) for name in _TYPE.findall(prompt)):
        lines = [line for line in lines if line.startswith("#")]
    return "".join(f"{line}\n" for line in lines)


def _in_class(text: str, masked: str, place: int, row: Row, tests: str) -> str:
    """Members of the answer's own class become members of the benchmark's; its imports and other types stay."""
    imports = "".join(f"{each.strip()}\n" for each in _IMPORT.findall(text))
    around = _enclosing_class(masked, place)
    if around is None:
        members, others = _IMPORT.sub("", _PACKAGE.sub("", text)), ""
    else:
        opening, closing = around
        members = text[opening + 1 : closing - 1 if masked[:closing].endswith("}") else closing]
        head = masked.rfind("\n", 0, masked.rfind("class", 0, opening)) + 1
        others = _top_level(text, masked, head, closing)
    head = row.prompt[: row.prompt.index(CLASS) + len(CLASS)]
    return f"{imports}{head}\n{members}\n{tests}\n{others}"


def _enclosing_class(masked: str, place: int) -> tuple[int, int] | None:
    """Its braces: of the innermost class around `place`."""
    open_braces: list[int] = []
    for at, character in enumerate(masked[:place]):
        if character == "{":
            open_braces.append(at)
        elif character == "}" and open_braces:
            open_braces.pop()
    for opening in reversed(open_braces):
        if _CLASS.search(masked[max(0, opening - _NEAR) : opening]):
            return opening, _end_of_braces(masked, opening)
    return None


def _top_level(text: str, masked: str, start: int, end: int) -> str:
    """Other types beside the class that stands from `start` to `end`."""
    found = []
    for part, hidden in ((text[:start], masked[:start]), (text[end:], masked[end:])):
        place = 0
        while match := _TOP_LEVEL.search(hidden, place):
            place = _end_of_braces(hidden, match.start())
            found.append(part[match.start(1) : place])
    return "\n".join(found)
