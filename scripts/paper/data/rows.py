"""Rows of tables and texts, some of them drawn, one after another: a file is never in memory as a whole."""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dft_mm.errors import InputError

Row: TypeAlias = dict[str, Any]
_BATCH = 1024  # rows of a table in memory at a time


def draw(rows: int, there: int, seed: int) -> list[int]:
    """`rows` different numbers below `there`, sorted: a function of the three alone, on every machine and version.

    They are those whose hash with the seed is least, so a longer draw holds the shorter ones of its seed.
    """
    least = heapq.nsmallest(rows, range(there), key=lambda number: hashlib.sha256(f"{seed} {number}".encode()).digest())
    return sorted(least)


def count_rows(path: Path) -> int:
    """Rows of a file. Raises InputError for one that cannot be read."""
    return _guarded(path, lambda: _KINDS[path.suffix][0](path))


def read_rows(
    paths: Sequence[Path], counts: Sequence[int], wanted: Sequence[int], columns: Sequence[str]
) -> Iterator[Row]:
    """The wanted rows of files laid end to end: their numbers, from 0 and sorted.

    A row has `columns`: a table is read no further, a text may have more. Raises InputError.
    """
    start = 0
    for path, count in zip(paths, counts, strict=True):
        own = [number - start for number in wanted if start <= number < start + count]
        rows = _KINDS[path.suffix][1](path, own, columns)
        while (row := _guarded(path, lambda rows=rows: next(rows, None))) is not None:
            yield row
        start += count


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}; fetch or copy it again") from error


def _count_table(path: Path) -> int:
    import pyarrow.parquet as parquet

    return parquet.read_metadata(path).num_rows


def _read_table(path: Path, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        _has_all(columns, file.schema_arrow.names, "it")
        start = position = 0
        for batch in _batches(file, columns):
            first = position
            while position < len(wanted) and wanted[position] < start + batch.num_rows:
                position += 1
            own = pa.array([number - start for number in wanted[first:position]], pa.int64())
            yield from batch.take(own).to_pylist()
            start += batch.num_rows


def _batches(file: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Of one row group after the other: asked for all of them, pyarrow reads hundreds of megabytes ahead."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(_BATCH, row_groups=[group], columns=list(columns))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _count_lines(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def _read_lines(path: Path, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[Row]:
    chosen = frozenset(wanted)
    for row, (number, line) in enumerate(_lines(path)):
        if row in chosen:
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON ({error})") from error
            if not isinstance(found, dict):
                raise ValueError(f"line {number} is a {type(found).__name__}, not an object")
            _has_all(columns, list(found), f"line {number}")
            yield found


def _has_all(columns: Sequence[str], there: Sequence[str], where: str) -> None:
    missing = [column for column in columns if column not in there]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}; there are {', '.join(there)}")


_KINDS: dict[str, tuple[Callable[[Path], int], Callable[..., Iterator[Row]]]] = {
    ".parquet": (_count_table, _read_table), ".jsonl": (_count_lines, _read_lines),
}  # fmt: skip


def filled(row: Row, column: str) -> bool:
    """Whether a row has a text there, and not an empty one."""
    return isinstance(row[column], str) and bool(row[column].strip())
