"""What a worker process does with a part of a file: names its pictures, then writes its examples and refusals.

A part is a file of its own, named by all that decides what is in it, so that an interrupted preparation goes on where
it stopped, and a changed file costs its own parts only.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dft_mm.atomic import replacing
from dft_mm.config import DataConfig
from dft_mm.data.images import ImageError, ImageSettings, decode_image, image_grid, image_hash, image_size
from dft_mm.data.layouts.choose import Layout
from dft_mm.data.layouts.formats import Conversation, NotChosen, Picture
from dft_mm.data.layouts.rows import parse
from dft_mm.data.preparing.overlap import Benchmarks
from dft_mm.data.preparing.pictures import Key, Look, look
from dft_mm.data.preparing.prompts import ask, draw
from dft_mm.data.reading.files import Part, read
from dft_mm.data.records import BadRow, Record
from dft_mm.data.render import Renderer, RenderError
from dft_mm.errors import InputError

SCHEMA = pa.schema(
    {
        "own_id": pa.string(), "line": pa.int64(), "row": pa.int64(), "ids": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.bool_()), "length": pa.int64(), "supervised_tokens": pa.int64(),
        "patches": pa.int64(), "images": pa.list_(pa.string()), "image_root": pa.string(),
        "image_hashes": pa.list_(pa.string()), "grids": pa.list_(pa.list_(pa.int32(), 3)),
        "limits": pa.list_(pa.list_(pa.int64(), 2)), "content": pa.uint64(), "question": pa.uint64(),
        "overlap": pa.string(),
    }
)  # fmt: skip


class TooLong(Exception):
    """An example of more than max_length tokens that is left out, or may not be cut."""


@dataclass(frozen=True)
class Setup:
    """What every part is made with."""

    config: DataConfig
    renderer: Renderer
    images: ImageSettings | None
    folder: Path
    """RUN/data: pictures that rows contain go to images/, parts to parts/."""
    seed: int
    benchmarks: Benchmarks | None = None


@dataclass(frozen=True)
class Source:
    """What is the same for all rows of a file."""

    layout: Layout
    system: str | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Rows to be read."""

    part: Part
    take: int
    """The first so many of the part: a source's limit may end within it."""
    source: Source


@dataclass(frozen=True)
class Task:
    """One part to be made."""

    name: str
    """Of its file: a hash of all that decides what is in it."""
    rows: Rows
    looks: Mapping[Key, Look]
    """Of the pictures that its rows name."""


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    too_long: int = 0
    not_chosen: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised_tokens: int = 0
    images: int = 0
    image_patches: int = 0

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Example:
    """What a good row becomes."""

    ids: np.ndarray
    supervised: np.ndarray
    images: tuple[str, ...]
    """Paths relative to `root`."""
    root: str
    hashes: tuple[str, ...]
    grids: tuple[tuple[int, int, int], ...]
    limits: tuple[tuple[int, int], ...]
    """min_pixels and max_pixels of each picture."""
    truncated: bool


def find_pictures(setup: Setup, rows: Rows) -> set[Key]:
    """The picture files that rows name; those that cannot be read name none."""
    return {
        (rows.source.layout.images, picture.source)
        for _, conversation in _conversations(rows, Counts(), [])
        for picture in conversation.images
        if isinstance(picture.source, str)
    }


def look_at(setup: Setup, keys: list[Key]) -> list[tuple[Key, Look]]:
    """Decode some picture files."""
    return [(key, look(key)) for key in keys]


def make(setup: Setup, task: Task) -> str:
    """Write the examples of a part, and beside them its refusals; returns the part's name."""
    counts, refused, path, source = Counts(), [], task.rows.part.path, task.rows.source
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for record, conversation in _conversations(task.rows, counts, refused):
        try:
            if source.prompts:
                template = draw(source.prompts, setup.seed, path.name, record.row)
                conversation = Conversation(ask(conversation.messages, template), conversation.images, conversation.id)
            made = _examine(setup, task, conversation)
        except (BadRow, ImageError, RenderError) as error:
            refused.append((record, error))
            continue
        except TooLong as error:
            if setup.config.too_long == "error":
                raise InputError(
                    f"{path}:{record.line or record.row}: {error}, more than data.max_length "
                    f"({setup.config.max_length}); raise it, or set data.too_long to drop or truncate"
                ) from None
            counts.too_long += 1
            continue
        row = _row(record, conversation, made, setup)
        for name, values in columns.items():
            values.append(row[name])
        counts.kept += 1
        counts.truncated += made.truncated
        counts.tokens += row["length"]
        counts.supervised_tokens += row["supervised_tokens"]
        counts.images += len(made.images)
        counts.image_patches += row["patches"]
    folder = setup.folder / "parts"
    with replacing(folder / f"{task.name}.jsonl") as file:
        for record, error in refused:
            counts.quarantined[error.reason] += 1
            where = {"file": str(path), "line": record.line, "row": record.row}
            file.write(json.dumps(where | {"reason": error.reason, "detail": error.detail}).encode() + b"\n")
    schema = SCHEMA.with_metadata({"counts": json.dumps(vars(counts))})
    with replacing(folder / f"{task.name}.arrow") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(_batch(columns, schema))
    return task.name


def read_counts(path: Path) -> Counts | None:
    """What became of the rows of a part that was written; None when there is no whole part."""
    try:
        with pa.memory_map(str(path)) as file:
            values = json.loads(pa.ipc.open_file(file).schema.metadata[b"counts"])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None
    return Counts(**values | {"quarantined": Counter(values["quarantined"])})


def _conversations(
    rows: Rows, counts: Counts, refused: list[tuple[Record, Any]]
) -> Iterator[tuple[Record, Conversation]]:
    """The rows that can be read; the others are counted, or refused."""
    for record in itertools.islice(read(rows.part), rows.take):
        counts.rows += 1
        try:
            yield record, parse(record.value, rows.source.layout, rows.source.system)
        except NotChosen:
            counts.not_chosen += 1
        except BadRow as bad:
            refused.append((record, bad))


def _examine(setup: Setup, task: Task, conversation: Conversation) -> Example:
    """Render a conversation and hold it against max_length; raises BadRow, ImageError, RenderError or TooLong."""
    pictures = conversation.images
    if pictures and setup.images is None:
        raise BadRow("image", "the row has a picture, and the model takes none")
    embedded = any(isinstance(picture.source, bytes) for picture in pictures)
    root = str(setup.folder / "images") if embedded else task.rows.source.layout.images
    files, hashes, grids, limits = [], [], [], []
    for picture in pictures:
        settings = setup.images.limited(picture.min_pixels, picture.max_pixels)
        digest, size = _seen(setup, task, picture, embedded)
        hashes.append(digest)
        files.append(digest if embedded else picture.source)
        grids.append(image_grid(*size, settings))
        limits.append((settings.min_pixels, settings.max_pixels))
    rendered = setup.renderer.render(conversation.messages, grids)
    ids, supervised, truncated, limit = rendered.ids, rendered.supervised, False, setup.config.max_length
    if len(ids) > limit:
        last_image = max((end for _, end in rendered.image_spans), default=0)
        if setup.config.too_long != "truncate" or last_image > limit:
            raise TooLong(f"{len(ids)} tokens")
        ids, supervised, truncated = ids[:limit], supervised[:limit], True
        if not supervised[1:].any():
            raise TooLong(f"{len(rendered.ids)} tokens, and nothing to learn in the first {limit}")
    if not supervised[1:].any():
        raise BadRow("no_answer", "no token of the row would be learned")
    return Example(
        ids, supervised, tuple(files), root, tuple(hashes), tuple(grids), tuple(limits), truncated
    )


def _seen(setup: Setup, task: Task, picture: Picture, keep: bool) -> tuple[str, tuple[int, int]]:
    """Hash and size of a picture; `keep`: its file goes to images/, since the row it came in is not read again."""
    if isinstance(picture.source, str):
        key = task.rows.source.layout.images, picture.source
        found = task.looks[key]
        if found.reason:
            raise ImageError(found.reason, found.detail)
        if keep:
            _keep(setup, Path(*key).read_bytes(), found.sha256)
        return found.sha256, (found.width, found.height)
    digest = image_hash(picture.source)
    name = "the picture in the row"
    if (setup.folder / "images" / digest).is_file():  # decoded before it was kept: the header is enough
        return digest, image_size(picture.source, name)
    size = decode_image(picture.source, name).size
    _keep(setup, picture.source, digest)
    return digest, size


def _keep(setup: Setup, data: bytes, digest: str) -> None:
    path = setup.folder / "images" / digest
    if not path.is_file():
        with replacing(path) as file:
            file.write(data)


def _row(record: Record, conversation: Conversation, made: Example, setup: Setup) -> dict[str, Any]:
    texts = [
        part["text"]
        for message in conversation.messages if message["role"] == "user"
        for part in message["content"] if part["type"] == "text"
    ]  # fmt: skip
    return {
        "own_id": conversation.id, "line": record.line, "row": record.row, "ids": made.ids,
        "supervised": made.supervised, "length": len(made.ids),
        # The first token has nothing before it to be predicted from.
        "supervised_tokens": int(made.supervised[1:].sum()),
        "patches": sum(t * h * w for t, h, w in made.grids), "images": made.images, "image_root": made.root,
        "image_hashes": made.hashes, "grids": made.grids, "limits": made.limits,
        "content": _hash(made.ids.tobytes(), made.supervised.tobytes(), *map(str.encode, made.hashes)),
        "question": _hash(" ".join(" ".join(texts).casefold().split()).encode()),
        "overlap": setup.benchmarks.find(texts) if setup.benchmarks else None,
    }  # fmt: skip


def _hash(*pieces: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return int.from_bytes(digest.digest(), "big")


def _batch(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        _token_lists(values, field.type) if field.name in ("ids", "supervised") else pa.array(values, field.type)
        for field, values in zip(schema, columns.values())
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _token_lists(rows: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """The same as pa.array(rows), which looks at every number by itself."""
    offsets = np.fromiter(itertools.accumulate(map(len, rows), initial=0), dtype=np.int32, count=len(rows) + 1)
    values = np.concatenate(rows) if rows else np.zeros(0, dtype=kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind.value_type))
