"""Any file of rows → parts that processes read on their own. The content of a file decides what it is, its name only
where the content cannot.
"""

import hashlib
import itertools
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, MADV_DONTNEED, PAGESIZE, mmap
from pathlib import Path

import pyarrow as pa

from dft_mm.config import SourceConfig
from dft_mm.data.reading import table_files, text_files
from dft_mm.data.reading.folders import ROW_NAMES, SHEETS, fetch, in_folder, matching
from dft_mm.data.reading.json_files import Damaged, Span
from dft_mm.data.reading.unpack import inner_suffix, packing, unpack, write_once
from dft_mm.data.records import Record
from dft_mm.errors import InputError

_FOREIGN = {
    b"PK\x03\x04": "is a zip archive or an .xlsx sheet; unpack it, or save the sheet as CSV",
    b"version https://git-lfs": "is a pointer of Git LFS, not the data; run `git lfs pull`",
}
_CHANGED = "has changed since it was first looked at; start again"
_TABLE_NAMES = {".parquet", ".arrow", ".feather"}
_UNREAD = SHEETS | {".zip", ".tar", ".tgz", ".7z", ".rar"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class Part:
    """Some rows of a file, in order, and all that is needed to read them in any process."""

    path: Path
    """The file, as messages name it."""
    real: Path
    """What is read: `path`, or what it was unpacked to."""
    kind: text_files.Kind
    start: int
    """First byte of a text, first row of a table."""
    stop: int
    """The byte or row after the last."""
    line: int | None
    """Physical line where the first row begins, from 1; None for tables."""
    row: int
    """Number of the first row in the file, from 0."""
    rows: int
    """How many there are."""
    columns: tuple[str, ...] = ()
    """Header of a CSV or TSV."""


def find_files(source: SourceConfig) -> list[Path]:
    """The files that a source names: one; those of a folder or pattern, sorted; or those fetched for a hub name.

    Raises:
        InputError: nothing is there, files of several kinds are, or none of a kind that is read.
    """
    path = Path(source.path).expanduser()
    with _naming(path):
        if path.is_dir():
            files = in_folder(path, source.split)
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise Damaged("is neither a file nor a folder")
        elif re.search(r"[*?\[]", source.path):
            files = matching(path)
        elif _HUB_NAME.fullmatch(source.path) and inner_suffix(path) not in ROW_NAMES and not path.parent.is_dir():
            files = fetch(source)
        else:
            raise InputError(f"data: not found: {path} (looked in {Path.cwd()})")
        for file in files:
            if inner_suffix(file) in _UNREAD:
                way = "save the sheet as CSV" if inner_suffix(file) in SHEETS else "unpack it"
                raise InputError(f"data: {file}: {inner_suffix(file)} files are not read, {way}; {text_files.KNOWN}")
    return files


def split(path: Path, rows: int, work: Path) -> list[Part]:
    """Parts of at most `rows` rows each, in order, after one look at the file that decodes none of them.

    Packed files, and Parquet whose row groups are far larger than a part, are unpacked once into `work`.

    Raises:
        InputError: it is no file of rows, is empty, breaks off, or is damaged so that rows cannot be told apart.
    """
    with _naming(path):
        real = _unpacked(path, work)
        with real.open("rb") as file:
            head = file.read(32)
        for magic, message in _FOREIGN.items():
            if head.startswith(magic):
                raise Damaged(message)
        kind = next((kind for magic, kind in table_files.MAGIC.items() if head.startswith(magic)), None)
        if not head:
            parts = []
        elif kind:
            parts = _table_parts(path, real, kind, rows, work)
        elif inner_suffix(path) in _TABLE_NAMES:
            raise Damaged(f"does not begin as {inner_suffix(path)} files do; fetch or write it again")
        else:
            parts = _text_parts(path, real, rows)
    if not parts:
        raise InputError(f"data: {path} is empty; leave it out")
    return parts


def read(part: Part) -> Iterator[Record]:
    """The rows of a part; one that cannot be understood is a BadRow in its Record.

    Raises InputError when the file is gone, damaged or no longer what `split` saw.
    """
    found = 0
    with _naming(part.path):
        for record in _text_rows(part) if part.line else _table_rows(part):
            found += 1
            yield record
        if found != part.rows:
            raise Damaged(_CHANGED)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with _naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, ...]:
    """Size, two times in nanoseconds, and inode: while they are equal, a file need not be read again."""
    with _naming(path):
        found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What goes wrong with a file becomes an InputError with its name."""
    try:
        yield
    except Damaged as error:
        raise InputError(f"data: {path} {error}") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"data: {path} cannot be read: {error}") from error


def _unpacked(path: Path, work: Path) -> Path:
    """The file itself, or what it holds, written into `work`, when it is packed."""
    form = packing(path)
    if form is None:
        return path
    try:
        target = work / f"{digest(path)}{inner_suffix(path)}"
        return write_once(target, lambda sink: sink.writelines(unpack(path, form)))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise Damaged(f"breaks off, is damaged, or finds no room in {work} to be unpacked: {error}") from error


def _text_parts(path: Path, real: Path, rows: int) -> list[Part]:
    parts: list[Part] = []
    with _mapped(real) as data:
        try:
            kind, columns, spans = text_files.find_rows(data, inner_suffix(path))
            line, at, row = 1, 0, 0
            for start, stop, count in _groups(spans, rows):
                line, at = line + _newlines(data, at, start), start
                parts.append(Part(path, real, kind, start, stop, line, row, count, columns))
                row += count
                data.madvise(MADV_DONTNEED, 0, max(start // PAGESIZE, 1) * PAGESIZE)  # seen: it need not stay in memory
        except Damaged as error:
            if error.at is None:
                raise
            raise InputError(f"data: {path} (line {1 + _newlines(data, 0, error.at)}) {error}") from error
    return parts


def _groups(spans: Iterator[Span], rows: int) -> Iterator[tuple[int, int, int]]:
    """First byte, the byte after the last, and number of each `rows` spans."""
    for start, stop in spans:
        count = 1
        for _, end in itertools.islice(spans, rows - 1):
            stop, count = end, count + 1
        yield start, stop, count


def _text_rows(part: Part) -> Iterator[Record]:
    if part.real.stat().st_size < part.stop:
        raise Damaged(_CHANGED)
    with _mapped(part.real) as data:
        line, at = part.line, part.start
        for row, (start, stop) in enumerate(text_files.spans(data, part.kind, part.start, part.stop), part.row):
            line, at = line + _newlines(data, at, start), start
            yield Record(line, row, text_files.decode(data[start:stop], part.kind, part.columns, line))


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data


def _newlines(data: mmap, start: int, stop: int) -> int:
    return sum(data[at : min(at + _BLOCK, stop)].count(b"\n") for at in range(start, stop, _BLOCK))


def _table_parts(path: Path, real: Path, kind: text_files.Kind, rows: int, work: Path) -> list[Part]:
    total = table_files.count_rows(real, kind)
    if kind == "parquet" and table_files.has_large_groups(real, rows):
        parquet, kind = real, "arrow"
        real = write_once(work / f"{digest(parquet)}.arrow", lambda sink: table_files.to_arrow(parquet, sink))
    ends = ((start, min(start + rows, total)) for start in range(0, total, rows))
    return [Part(path, real, kind, start, stop, None, start, stop - start) for start, stop in ends]


def _table_rows(part: Part) -> Iterator[Record]:
    values = table_files.read_rows(part.real, part.kind, part.start, part.stop)
    return (Record(None, row, value) for row, value in enumerate(values, part.row))
