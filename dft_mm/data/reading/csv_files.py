"""Where the rows of a CSV or TSV text with a header stand, and what each says; its cells stay texts."""

import csv
import io
from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import Any

from dft_mm.data.reading.json_files import Damaged, Span, broken
from dft_mm.data.records import BadRow

DELIMITERS = {"csv": ",", "tsv": "\t"}
_CELL = 2**28  # characters; csv's own 131,072 are less than a picture, and without a limit a lost quote eats the memory


def delimited(data: mmap, at: int, end: int, delimiter: str) -> Iterator[Span]:
    """Lines that are not blank; several where a quoted cell holds line breaks."""
    data.seek(at)
    reader = _reader((line.decode("utf-8", "surrogateescape") for line in iter(data.readline, b"")), delimiter)
    while at < end:
        try:
            blank = not next(reader)
        except csv.Error as error:  # said again, of that row, when it is decoded
            blank = False
            if data.tell() == len(data) and "unexpected end" in str(error):
                raise broken("a row has a quote that nothing closes", at) from error
        if not blank:
            yield at, data.tell()
        at = data.tell()


def header(data: mmap, span: Span, delimiter: str) -> tuple[str, ...]:
    """The column names; raises Damaged where a column would have none of its own."""
    start, stop = span
    try:
        names = next(_reader(_lines(data[start:stop].decode("utf-8")), delimiter))
    except (csv.Error, UnicodeDecodeError) as error:
        raise Damaged(f"has a header that cannot be read: {error}; mend it", start) from error
    nameless = [number for number, name in enumerate(names, 1) if not name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if nameless:
        raise Damaged(f"has no name for column {nameless[0]} of {len(names)}; name every column", start)
    if twice:
        raise Damaged(f"has several columns of the name {twice[0]!r}; give each its own", start)
    if len(names) == 1 and (other := next((mark for mark in ";|\t," if mark in names[0]), None)):
        raise Damaged(f"has columns that look separated by {other!r}; save it with {delimiter!r} between them", start)
    return tuple(names)


def decode_cells(data: bytes, delimiter: str, columns: tuple[str, ...]) -> Any:
    """Column name → text, or the BadRow that says why there is none."""
    try:
        cells = next(_reader(_lines(data.decode("utf-8")), delimiter))
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"byte {error.start}: {error.reason}")
    except csv.Error as error:
        return BadRow("broken_csv", str(error))
    if len(cells) != len(columns):
        return BadRow("columns", f"{len(cells)} cells in a table of {len(columns)} columns")
    return dict(zip(columns, cells))


def _reader(text: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(_CELL)  # csv has one for the whole process
    return csv.reader(text, delimiter=delimiter, strict=True)


def _lines(text: str) -> Iterable[str]:
    return io.StringIO(text, newline="\n")
