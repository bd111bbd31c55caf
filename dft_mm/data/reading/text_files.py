"""Rows of any text file: what it is laid out as, where its rows stand, and what each says."""

import codecs
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any, TypeAlias

from dft_mm.data.reading import json_files
from dft_mm.data.reading.csv_files import DELIMITERS, decode_cells, delimited, header
from dft_mm.data.reading.json_files import Damaged, Span, decode_json

Kind: TypeAlias = str
"""lines, list, map, values (all JSON), csv, tsv; of tables parquet or arrow."""
JSON_NAMES = {".json", ".jsonl", ".ndjson"}
KNOWN = "known are JSONL, JSON, CSV and TSV (also as gz, bz2, xz, zst), Parquet, Arrow and `datasets` folders"


def find_rows(data: mmap, suffix: str) -> tuple[Kind, tuple[str, ...], Iterator[Span]]:
    """Kind, header (CSV, TSV) and the place of each row; raises Damaged now, or when the places are drawn.

    What begins with a bracket is JSON. Other texts are what `suffix`, the end of the name, says.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise Damaged("is UTF-16; convert it to UTF-8")
    begin = len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0
    at = json_files.skip_space(data, begin)
    if at == len(data):
        return "lines", (), iter(())
    if data[at : at + 1] in (b"{", b"["):
        kind = json_files.json_kind(data, at)
        if kind in ("list", "map"):
            return kind, (), json_files.container(data, at, kind)
        return kind, (), spans(data, kind, begin, len(data))
    if suffix in JSON_NAMES:
        return "lines", (), spans(data, "lines", begin, len(data))
    kind = suffix[1:]
    if kind not in DELIMITERS:
        raise Damaged(f"is no file of rows; {KNOWN}")
    rows = spans(data, kind, begin, len(data))
    return kind, header(data, next(rows), DELIMITERS[kind]), rows


def spans(data: mmap, kind: Kind, start: int, stop: int) -> Iterator[Span]:
    """The places of the rows of which the first begins at `start` and the last ends at `stop`."""
    return _SPANS[kind](data, start, stop)


_SPANS: dict[Kind, Callable[[mmap, int, int], Iterator[Span]]] = {
    "lines": json_files.lines,
    "list": json_files.items,
    "map": json_files.items,
    "values": json_files.values,
    "csv": lambda data, start, stop: delimited(data, start, stop, DELIMITERS["csv"]),
    "tsv": lambda data, start, stop: delimited(data, start, stop, DELIMITERS["tsv"]),
}


def decode(data: bytes, kind: Kind, columns: tuple[str, ...], line: int) -> Any:
    """What a row that begins on `line` says, or the BadRow that says why it says nothing."""
    if kind in DELIMITERS:
        return decode_cells(data, DELIMITERS[kind], columns)
    return decode_json(data, kind, line)
