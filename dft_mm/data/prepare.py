"""Files of rows → an index of examples, read and checked once: every row rendered, every picture decoded, every refusal
written down with file, line and reason.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dft_mm.config import DataConfig, SourceConfig
from dft_mm.data.formats import BadRow, Conversation
from dft_mm.data.images import ImageError, ImageSettings, decode_image, image_grid, image_hash, read_image
from dft_mm.data.render import Renderer, RenderError
from dft_mm.data.rows import Record, parse, read_records
from dft_mm.errors import InputError
from dft_mm.progress import progress

_VERSION = 1  # a new number when the same files give another index
_BATCH = 256  # rows that are written together
_SHOWN = 3  # refused rows that a refusal quotes
_DETAIL = 300  # characters of each
_FILES = ("index.arrow", "heldout.npy", "quarantine.jsonl")
# Settings that do not decide what is in the index.
_NO_MATTER = {"bad_rows", "workers", "pack", "train", "heldout"}

SCHEMA = pa.schema(
    {
        "id": pa.string(), "source": pa.string(), "file": pa.string(), "line": pa.int64(), "row": pa.int64(),
        "ids": pa.list_(pa.int32()), "supervised": pa.list_(pa.bool_()), "length": pa.int64(),
        "supervised_tokens": pa.int64(), "images": pa.list_(pa.string()), "image_root": pa.string(),
        "image_hashes": pa.list_(pa.string()), "grids": pa.list_(pa.list_(pa.int32(), 3)),
    }
)  # fmt: skip


class TooLong(Exception):
    """An example of more than max_length tokens that is left out, or may not be cut."""


@dataclass(frozen=True)
class Prepared:
    """What a good row becomes."""

    ids: np.ndarray
    supervised: np.ndarray
    images: tuple[str, ...]
    """Paths relative to `image_root`."""
    image_root: str
    image_hashes: tuple[str, ...]
    grids: tuple[tuple[int, int, int], ...]
    truncated: bool


def prepare(
    config: DataConfig, renderer: Renderer, images: ImageSettings | None, folder: Path, seed: int
) -> dict[str, Any]:
    """Write index.arrow, heldout.npy, quarantine.jsonl and, last, manifest.json into `folder`; return the manifest.

    When the manifest there has the fingerprint of these files and settings, nothing is read again.

    Raises:
        InputError: a file cannot be read, too many rows are bad, a row is too long under `too_long: error`, or
            nothing is left to learn from.
    """
    sources = [(source, False) for source in config.train] + [(source, True) for source in config.heldout]
    contents = [_content(source) for source, _ in sources]
    fingerprint = _fingerprint(config, sources, contents, renderer, images, seed)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if manifest.get("fingerprint") != fingerprint or manifest.get("files") != _sizes(folder):
        path.unlink(missing_ok=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output: {folder} cannot be made ({error}); give another `output`") from error
        lines = sum(lines for _, lines in contents)
        manifest = {"fingerprint": fingerprint} | _Index(config, renderer, images, folder).write(sources, lines, seed)
        manifest["files"] = _sizes(folder)
        with _replacing(path) as file:
            file.write(json.dumps(manifest, indent=2).encode())
    _refuse(manifest, config.bad_rows, folder)
    return manifest


def examine(
    conversation: Conversation, root: Path, config: DataConfig, renderer: Renderer, images: ImageSettings | None,
    blobs: Path,
) -> Prepared:  # fmt: skip
    """Decode the pictures of a conversation, render it and hold it against max_length.

    `blobs` is the folder for pictures that the row itself contains. Raises BadRow or TooLong.
    """
    try:
        if conversation.images and images is None:
            raise BadRow("image", "the row has a picture, and the model takes none")
        files = [image if isinstance(image, bytes) else read_image(image, root) for image in conversation.images]
        names = [image if isinstance(image, str) else "the picture in the row" for image in conversation.images]
        pictures = [decode_image(file, name) for file, name in zip(files, names)]
        grids = tuple(image_grid(*picture.size, images) for picture in pictures)
        rendered = renderer.render(conversation.messages, grids)
    except (ImageError, RenderError) as error:
        raise BadRow(error.reason, error.detail) from error
    ids, supervised, truncated = rendered.ids, rendered.supervised, False
    if len(ids) > config.max_length:
        last_image = max((end for _, end in rendered.image_spans), default=0)
        if config.too_long != "truncate" or last_image > config.max_length:
            raise TooLong(f"{len(ids)} tokens")
        ids, supervised, truncated = ids[: config.max_length], supervised[: config.max_length], True
        if not supervised[1:].any():
            raise TooLong(f"{len(rendered.ids)} tokens, and nothing to learn in the first {config.max_length}")
    if not supervised[1:].any():
        raise BadRow("no_answer", "no token of the row would be learned")
    hashes = tuple(map(image_hash, files))
    if any(isinstance(image, bytes) for image in conversation.images):
        blobs.mkdir(exist_ok=True)
        for name, file in zip(hashes, files):
            (blobs / name).write_bytes(file)
        return Prepared(ids, supervised, hashes, str(blobs), hashes, grids, truncated)
    paths = tuple(str(image) for image in conversation.images)
    return Prepared(ids, supervised, paths, str(root), hashes, grids, truncated)


@dataclass
class _Counts:
    """What became of the rows of one source."""

    path: str
    split: str
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    too_long: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)


class _Index:
    """Writes the index of all sources."""

    def __init__(self, config: DataConfig, renderer: Renderer, images: ImageSettings | None, folder: Path) -> None:
        self._config, self._renderer, self._images, self._folder = config, renderer, images, folder
        self._seen: set[str] = set()
        self._batch: list[dict[str, Any]] = []
        self._totals: Counter[str] = Counter()
        self._lengths: list[int] = []

    def write(self, sources: list[tuple[SourceConfig, bool]], lines: int, seed: int) -> dict[str, Any]:
        counts = []
        ids: list[str] = []
        heldout: list[bool] = []
        with (
            _replacing(self._folder / "index.arrow") as index,
            _replacing(self._folder / "quarantine.jsonl") as quarantine,
            pa.ipc.new_file(index, SCHEMA) as writer,
            progress("prepare", lines) as advance,
        ):
            for source, is_heldout in sources:
                count = _Counts(source.path, "heldout" if is_heldout else "train")
                counts.append(count)
                line = 0
                for record in read_records(source):
                    row = self._row(record, source, count, quarantine)
                    if row is not None:
                        ids.append(row["id"])
                        heldout.append(is_heldout)
                        self._batch.append(row)
                    if len(self._batch) == _BATCH:
                        self._flush(writer)
                    advance(record.line - line)
                    line = record.line
            self._flush(writer)
        chosen = np.array(heldout, dtype=bool)
        if self._config.heldout_fraction:
            chosen = _draw(ids, self._config.heldout_fraction, seed)
        with _replacing(self._folder / "heldout.npy") as file:
            np.save(file, chosen)
        percentiles = np.percentile(self._lengths, (0, 25, 50, 75, 95, 99, 100)).tolist() if self._lengths else []
        return {
            "sources": [asdict(count) for count in counts],
            "examples": {"train": int((~chosen).sum()), "heldout": int(chosen.sum())},
            "tokens": self._totals["tokens"],
            "supervised_tokens": self._totals["supervised_tokens"],
            "images": self._totals["images"],
            "image_patches": self._totals["image_patches"],
            "length_percentiles": dict(zip(("min", "p25", "p50", "p75", "p95", "p99", "max"), percentiles)),
        }

    def _row(self, record: Record, source: SourceConfig, count: _Counts, quarantine: Any) -> dict[str, Any] | None:
        """The index row of a record; None when it is quarantined or left out, which is counted."""
        count.rows += 1
        try:
            conversation = parse(record, source)
            root = Path(source.images) if source.images else Path(source.path).parent
            blobs = self._folder / "images"
            made = examine(conversation, root, self._config, self._renderer, self._images, blobs)
        except BadRow as bad:
            count.quarantined[bad.reason] = count.quarantined.get(bad.reason, 0) + 1
            refused = {"file": source.path, "line": record.line, "row": record.row}
            refused |= {"reason": bad.reason, "detail": bad.detail}
            quarantine.write(json.dumps(refused, ensure_ascii=True).encode() + b"\n")
            return None
        except TooLong as error:
            if self._config.too_long == "error":
                raise InputError(
                    f"{source.path}:{record.line}: {error}, more than data.max_length ({self._config.max_length}); "
                    "raise it, or set data.too_long to drop or truncate"
                ) from None
            count.too_long += 1
            return None
        count.kept += 1
        count.truncated += made.truncated
        learned = int(made.supervised[1:].sum())  # the first token has nothing before it to be predicted from
        self._lengths.append(len(made.ids))
        self._totals += Counter(
            tokens=len(made.ids),
            supervised_tokens=learned,
            images=len(made.images),
            image_patches=sum(t * h * w for t, h, w in made.grids),
        )
        return {
            "id": self._unique(conversation.id, source, record.row), "source": source.path, "file": source.path,
            "line": record.line, "row": record.row, "ids": made.ids, "supervised": made.supervised,
            "length": len(made.ids), "supervised_tokens": learned, "images": list(made.images),
            "image_root": made.image_root, "image_hashes": list(made.image_hashes),
            "grids": [list(grid) for grid in made.grids],
        }  # fmt: skip

    def _unique(self, own: str | None, source: SourceConfig, row: int) -> str:
        """The row's own id where no other row has it, else one made of file and row."""
        names = [own, f"{Path(source.path).stem}:{row}", f"{source.path}:{row}"]
        more = (f"{source.path}:{row}#{number}" for number in range(2, len(self._seen) + 3))
        name = next(name for name in (*names, *more) if name is not None and name not in self._seen)
        self._seen.add(name)
        return name

    def _flush(self, writer: pa.ipc.RecordBatchFileWriter) -> None:
        if self._batch:
            writer.write_batch(pa.RecordBatch.from_pylist(self._batch, SCHEMA))
            self._batch = []


def _draw(ids: list[str], fraction: float, seed: int) -> np.ndarray:
    """(n,) bool: the share of rows whose hash of seed and id is least, wherever they stand in their file."""
    keys = [hashlib.sha256(f"{seed}\0{id_}".encode()).digest() for id_ in ids]
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[sorted(range(len(ids)), key=keys.__getitem__)[: round(len(ids) * fraction)]] = True
    return chosen


def _content(source: SourceConfig) -> tuple[str, int]:
    """Hash and number of lines of a source's file; raises InputError when there is none."""
    next(read_records(source), None)  # its own checks of the path
    digest, lines = hashlib.sha256(), 0
    with Path(source.path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            lines += block.count(b"\n")
    return digest.hexdigest(), lines


def _fingerprint(
    config: DataConfig, sources: list[tuple[SourceConfig, bool]], contents: list[tuple[str, int]],
    renderer: Renderer, images: ImageSettings | None, seed: int,
) -> str:  # fmt: skip
    decides = {
        "version": _VERSION,
        "settings": config.model_dump(mode="json", exclude=_NO_MATTER),
        "sources": [
            [source.model_dump(mode="json"), heldout, digest]
            for (source, heldout), (digest, _) in zip(sources, contents)
        ],
        "renderer": renderer.fingerprint,
        "images": asdict(images) if images else None,
        "seed": seed if config.heldout_fraction else None,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files that make up the index; what is not there is not in it."""
    return {path.name: path.stat().st_size for name in _FILES if (path := folder / name).is_file()}


def _refuse(manifest: dict[str, Any], bad_rows: float, folder: Path) -> None:
    """Raise InputError when the data, read and counted, is not what a run should start on."""
    sources = manifest["sources"]
    rows = sum(source["rows"] for source in sources)
    bad = sum(sum(source["quarantined"].values()) for source in sources)
    quarantine = folder / "quarantine.jsonl"
    if bad / rows > bad_rows:
        shown = "\n".join(_first_refused(quarantine))
        raise InputError(
            f"{bad} of {rows} rows cannot be used, more than data.bad_rows ({bad_rows:g}) allows:\n{shown}\n"
            f"All are in {quarantine}. Mend them, or raise data.bad_rows to train without them"
        )
    for source in sources:
        if source["rows"] == sum(source["quarantined"].values()):
            shown = "\n".join(_first_refused(quarantine, source["path"]))
            raise InputError(f"data: {source['path']} has no row that can be used:\n{shown}\nAll are in {quarantine}")
    if not manifest["examples"]["train"]:
        left = ", ".join(
            f"{source['path']}: {source['rows']} rows, {source['too_long']} too long" for source in sources
        )
        raise InputError(f"no row is left to learn from ({left}); see {quarantine}, or raise data.max_length")


def _first_refused(quarantine: Path, file: str | None = None) -> list[str]:
    """The first few refused rows, of one file or of all, for reading."""
    with quarantine.open(encoding="utf-8") as lines:
        refused = (row for row in map(json.loads, lines) if file in (None, row["file"]))
        return [
            f"  {row['file']}:{row['line']}: {row['reason']}: {row['detail'][:_DETAIL]}"
            for row in itertools.islice(refused, _SHOWN)
        ]


@contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes its place when it is whole and on the disk; not at all after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
