"""Rows of Parquet and Arrow files, a slice at a time; what a row embeds (pictures) stays bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from dft_mm.data.reading.json_files import Damaged
from dft_mm.data.records import BadRow

TableKind: TypeAlias = Literal["parquet", "arrow"]
MAGIC: dict[bytes, TableKind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_BATCH = 64  # rows that are decoded together; each may embed pictures
_LARGE = 8  # a row group of more than so many parts is too long to begin anew for each of them


def count_rows(path: Path, kind: TableKind) -> int:
    """Rows of a table; Damaged when two of its columns have one name."""
    if kind == "parquet":
        with _parquet(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    else:
        with _arrow(path) as (schema, batches):
            names, rows = schema.names, sum(batch.num_rows for batch in batches)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Damaged(f"has several columns of the name {twice[0]!r}; give each its own")
    return rows


def has_large_groups(path: Path, rows: int) -> bool:
    """Whether parts of `rows` rows would read a Parquet file's row groups over and over."""
    with _parquet(path) as file:
        groups = range(file.metadata.num_row_groups)
        return any(file.metadata.row_group(group).num_rows > _LARGE * rows for group in groups)


def to_arrow(path: Path, sink: Any) -> None:
    """A Parquet file as an Arrow stream, in which a row is found without decoding those before it."""
    with _parquet(path) as file, pa.ipc.new_stream(sink, file.schema_arrow) as stream:
        for batch in file.iter_batches(_BATCH):
            stream.write_batch(batch)


def read_rows(path: Path, kind: TableKind, start: int, stop: int) -> Iterator[Any]:
    """Each row from `start` up to `stop`: column name → value, or the BadRow that says why there is none."""
    for batch in (_parquet_slices if kind == "parquet" else _arrow_slices)(path, start, stop):
        for at in range(0, batch.num_rows, _BATCH):
            yield from _decode(batch.slice(at, _BATCH))


def _decode(batch: pa.RecordBatch) -> list[Any]:
    """Rows as Python values. Offsets and texts are checked first: a damaged file would be read out of bounds."""
    try:
        batch.validate(full=True)
        return batch.to_pylist()
    except (pa.ArrowInvalid, ValueError) as error:
        if batch.num_rows > 1:
            return [row for at in range(batch.num_rows) for row in _decode(batch.slice(at, 1))]
        return [BadRow("not_utf8" if "UTF8" in str(error) else "broken_value", str(error))]


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def _parquet_slices(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    with _parquet(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if first < stop and start < last:
                yield from _slices(file.iter_batches(_BATCH, row_groups=[group]), first, start, stop)
            first = last


def _arrow_slices(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    with _arrow(path) as (_, batches):
        yield from _slices(batches, 0, start, stop)


def _slices(batches: Iterator[pa.RecordBatch], first: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """What lies between `start` and `stop`; the first batch begins with row `first`."""
    for batch in batches:
        if first >= stop:
            return
        begin = max(start - first, 0)
        if begin < batch.num_rows:
            yield batch.slice(begin, stop - first - begin)
        first += batch.num_rows


@contextmanager
def _arrow(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Schema and batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            yield reader.schema, iter(reader)
