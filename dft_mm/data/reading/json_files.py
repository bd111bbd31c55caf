"""Where the rows of a JSON text stand (lines, a list, a map, objects one after the other), and what each says. Finding
them decodes nothing: a damaged row costs itself alone, and a file may be larger than the memory.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from mmap import mmap
from typing import Any, Literal, TypeAlias

from dft_mm.data.records import BadRow

JsonKind: TypeAlias = Literal["lines", "list", "map", "values"]
Span: TypeAlias = tuple[int, int]
"""First byte of a row, and the one after its last."""
_SEEN = 1000  # members of an object that decide whether it is one row or a map of rows
_LINE = 1 << 26  # bytes; a first line longer than this is taken for all that the file holds
_NESTED = 8  # brackets within brackets that one regular expression walks; deeper ones are walked token by token
_OPENING, _CLOSING = (b"{", b"["), {"list": b"]", "map": b"}"}


def _many(body: bytes) -> bytes:
    """Pattern of any number of `body`, of which nothing is given back."""
    # Before 3.11.5 Python's own form loses its place where a body fails half-way (gh-106052); the other takes memory.
    return rb"(?:" + body + rb")*+" if sys.version_info >= (3, 11, 5) else rb"(?>(?:" + body + rb")*)"


# Possessive (`*+`): nothing is ever tried twice, so the time is linear in the bytes, whatever they are.
_SPACE = re.compile(rb"[ \t\r\n]*+")
_TEXT = rb'"[^"\\]*+' + _many(rb'\\.[^"\\]*+')  # without the quote that ends it
_KEY = re.compile(_TEXT + rb'"', re.DOTALL)
_TOKEN = re.compile(_TEXT + rb'"?|[\[\]{}]', re.DOTALL)
_PLAIN = re.compile(rb'[^"\[\]{},]*+' + _many(_TEXT + rb'"[^"\[\]{},]*+'), re.DOTALL)


def _brackets(nested: int) -> bytes:
    """Pattern of a bracket up to the one that closes it; whether the two fit each other is left to the decoder."""
    inner = rb"(?!)"
    for _ in range(nested):
        member = rb"(?:" + _TEXT + rb'"|' + inner + rb")"
        inner = rb'[\[{][^"\[\]{}]*+' + _many(member + rb'[^"\[\]{}]*+') + rb"[\]}]"
    return inner


_BRACKETS = re.compile(_brackets(_NESTED), re.DOTALL)


class Damaged(Exception):
    """A file whose rows cannot be told apart; the message goes on from its name, `at` is the byte where that shows."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


def broken(what: str, at: int) -> Damaged:
    """What is raised for a text that ends too soon, or whose brackets, quotes or commas do not fit."""
    return Damaged(f"breaks off or is damaged: {what}; mend it, or fetch it again", at)


def json_kind(data: mmap, at: int) -> JsonKind:
    """How a text is laid out that begins with a bracket at `at`; the file's name does not matter.

    It is lines when the first line closes what it opens and others follow. When the first line does not, it is a
    damaged one if a whole object stands on one of the next two; else a list, a map or objects over many lines begin.
    """
    end, line_end = len(data), _line_end(data, at)
    following = skip_space(data, line_end)
    alone = following == end
    if not alone and _closing(data, at, line_end) is not None:
        return "lines"
    if data[at : at + 1] == b"[":
        return "list"
    for _ in range(0 if alone else 2):
        if data[following : following + 1] == b"{" and _closing(data, following, _line_end(data, following)):
            return "lines"
        following = skip_space(data, _line_end(data, following))
    try:
        members = list(itertools.islice(items(data, at + 1, end), _SEEN))
    except Damaged:
        if alone:
            return "lines"
        raise
    stop = members[-1][1]
    closed = data[stop : stop + 1] == b"}"
    several = closed and skip_space(data, stop + 1) < end
    if alone and (several or (not closed and len(members) < _SEEN)):
        return "lines"  # of which the one there is is damaged
    rows = all(data[value : value + 1] == b"{" for value in (_plain_end(data, *member) for member in members))
    return "map" if rows and not several else "values"


def container(data: mmap, at: int, kind: JsonKind) -> Iterator[Span]:
    """The items of the list or map that begins at `at` and is all that the file holds."""
    closing, keys = _CLOSING[kind], set()
    for number, (start, stop) in enumerate(items(data, at + 1, len(data))):
        if start == stop:
            if number or data[stop : stop + 1] != closing:
                raise broken("an item is missing", stop)
            break
        if kind == "map" and (key := _KEY.match(data, start, stop)):
            if key[0] in keys:
                raise Damaged(f"has the key {key[0].decode(errors='replace')} twice; give each row its own", start)
            keys.add(key[0])
        yield start, stop
    if data[stop : stop + 1] != closing:
        raise broken(f"expecting ',' or '{closing.decode()}'", stop)
    rest = skip_space(data, stop + 1)
    if rest < len(data):
        raise broken(f"there is text after the '{closing.decode()}' that ends it", rest)


def items(data: mmap, at: int, end: int) -> Iterator[Span]:
    """What stands between commas from `at` to `end`, or to the bracket that closes the list or map."""
    while True:
        at = _SPACE.match(data, at, end).end()
        stop = _item_end(data, at, end)
        yield at, stop
        if stop == end or data[stop] != ord(","):
            return
        at = stop + 1


def _item_end(data: mmap, at: int, end: int) -> int:
    at = _plain_end(data, at, end)
    if data[at : at + 1] in _OPENING and at < end:
        at = _plain_end(data, _close(data, at, end), end)
        if data[at : at + 1] in _OPENING and at < end:
            raise broken("a comma is missing", at)
    if data[at : at + 1] == b'"' and at < end:
        raise broken("a quote opens that nothing closes", at)
    return at


def values(data: mmap, at: int, end: int) -> Iterator[Span]:
    """Objects one after the other, each over as many lines as it likes."""
    while (at := _SPACE.match(data, at, end).end()) < end:
        if data[at : at + 1] != b"{":
            raise broken("expecting another object", at)
        stop = _close(data, at, end)
        yield at, stop
        at = stop


def lines(data: mmap, at: int, end: int) -> Iterator[Span]:
    """Lines that are not blank."""
    data.seek(at)
    while at < end:
        line = data.readline()
        if not line.isspace():
            yield at, at + len(line)
        at += len(line)


def skip_space(data: mmap, at: int) -> int:
    """The next byte that JSON does not call white space."""
    return _SPACE.match(data, at).end()


def _close(data: mmap, at: int, end: int) -> int:
    stop = _closing(data, at, end)
    if stop is None:
        raise broken("a bracket opens that nothing closes", at)
    return stop


def _closing(data: mmap, at: int, end: int) -> int | None:
    """End of what the bracket at `at` opens; None when nothing closes it before `end`."""
    if whole := _BRACKETS.match(data, at, end):
        return whole.end()
    depth, stop = 0, None
    for token in _TOKEN.finditer(data, at, end):
        mark = data[token.start()]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth == 0:
            stop = token.end()
            break
    return stop


def _plain_end(data: mmap, at: int, end: int) -> int:
    """Next bracket, comma, or quote that nothing closes, after whole texts, numbers and words."""
    return _PLAIN.match(data, at, end).end()


def _line_end(data: mmap, at: int) -> int:
    end = data.find(b"\n", at, at + _LINE)
    return len(data) if end < 0 else end


def decode_json(data: bytes, kind: JsonKind, line: int) -> Any:
    """What a row says, or the BadRow that says why it says nothing; `line` is where it begins."""
    try:
        text = data.decode("utf-8")
        return _member(_DECODER.decode("{" + text + "}")) if kind == "map" else _DECODER.decode(text)
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"byte {error.start}: {error.reason}")
    except json.JSONDecodeError as error:
        return BadRow("broken_json", f"{error.msg}: line {line + error.lineno - 1}, column {error.colno}")
    except RecursionError:
        return BadRow("broken_json", "brackets are nested too deeply")
    except ValueError as error:
        return BadRow("broken_json", str(error))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def _member(member: dict[str, Any]) -> Any:
    """The row of a map; its key is its `id` when it has none."""
    ((key, row),) = member.items()
    return {**row, "id": key} if isinstance(row, dict) and row.get("id") is None else row
