"""Files of rows → an index of examples, read and checked once on all cores: every row rendered, every picture decoded,
every refusal written down with file, line and reason.

    manifest.json     counts, fingerprint, what was read and what was written; last
    index.arrow       one small row an example: where it is, how long it is, which split
    parts/            tokens, masks and pictures of up to 1,000 rows a file
    pictures.jsonl    the picture files that were decoded
    quarantine.jsonl  rows that cannot be learned from
    duplicates.jsonl, overlap.jsonl   rows that stand twice; rows that share 13 words with a benchmark question
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dft_mm.atomic import replacing
from dft_mm.config import DataConfig, SourceConfig
from dft_mm.data.images import ImageSettings
from dft_mm.data.layouts.choose import Layout, choose_layout
from dft_mm.data.layouts.llamafactory import INFO, named_entry
from dft_mm.data.layouts.rows import parse
from dft_mm.data.preparing.groups import group, hold_out, repeats
from dft_mm.data.preparing.manifest import (
    NO_MATTER,
    VERSION,
    asked,
    model_stamps,
    read_manifest,
    refuse,
    size,
    stamp,
    unchanged,
)
from dft_mm.data.preparing.overlap import Benchmarks
from dft_mm.data.preparing.parts import (
    Counts,
    Rows,
    Setup,
    Source,
    Task,
    find_pictures,
    look_at,
    make,
    read_counts,
)  # fmt: skip
from dft_mm.data.preparing.pictures import Key, Pictures
from dft_mm.data.preparing.pool import Pool, cores
from dft_mm.data.preparing.prompts import read_prompts
from dft_mm.data.reading import files
from dft_mm.data.reading.files import Part
from dft_mm.data.records import BadRow
from dft_mm.data.render import Renderer
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.progress import progress

_PART_ROWS = 1000
_ALONE = 4000  # rows up to which starting worker processes costs more than they save
_ALONE_PICTURES = 200
_PICTURES = 16  # looked at in one task
_FIRST = 20  # rows that a layout is chosen by
_OUTPUTS = ("index.arrow", "quarantine.jsonl", "duplicates.jsonl", "overlap.jsonl")
_SMALL = ["length", "supervised_tokens", "patches", "image_hashes", "content", "question", "overlap"]
_PERCENTILES = {"min": 0, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True)
class _File:
    """A file of a source, ready to be read."""

    source: int
    """Number of its source, those to learn from first."""
    path: Path
    sha256: str
    rows: tuple[Rows, ...]


def prepare(
    config: DataConfig, renderer: Renderer, images: ImageSettings | None, folder: Path, seed: int,
    model: tuple[str, Path] | None = None, begun: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the index of all sources into `folder`; return the manifest.

    Nothing is read again when no setting and no file changed. A preparation that was interrupted goes on.

    Args:
        model: its name in the recipe and its folder, for `still_holds`.
        begun: a run has learned from the index, so that a picture that changed since does not change it: its row
            keeps its slot.

    Raises:
        InputError: a file cannot be read, too many rows are bad, a row is too long under `too_long: error`, or
            nothing is left to learn from.
    """
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: {folder} cannot be made ({error}); give another `output`") from error
    settings = _settings(config, renderer, images, seed)
    manifest = read_manifest(folder)
    pictures = Pictures(folder / "pictures.jsonl")
    if not (
        manifest
        and manifest["settings"] == settings
        and unchanged(manifest, config, folder)
        and (begun or pictures.unchanged())
    ):
        known = {tuple(read["stamp"]): read["sha256"] for read in (manifest or {}).get("inputs", []) if read["stamp"]}
        (folder / "manifest.json").unlink(missing_ok=True)
        made = _Preparation(config, Setup(config, renderer, images, folder, seed), pictures, known).run()
        manifest = {"settings": settings, "asked": None, "model": {}} | made
    if model:
        manifest |= {"asked": asked(config, seed, model[0]), "model": model_stamps(model[1])}
    with replacing(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=2).encode())
    refuse(manifest, config.bad_rows, folder)
    return manifest


class _Preparation:
    """One pass over all sources."""

    def __init__(self, config: DataConfig, setup: Setup, pictures: Pictures, known: dict[tuple[int, ...], str]) -> None:
        self._config, self._setup, self._pictures = config, setup, pictures
        self._folder = setup.folder
        self._known = known  # stamp -> hash of files that were read before
        self._sources = [*config.train, *config.heldout]
        self._inputs: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """Everything but manifest.json, of which it returns most."""
        self._setup = Setup(**vars(self._setup) | {"benchmarks": self._benchmarks()})
        opened = [file for number in range(len(self._sources)) for file in self._open(number)]
        todo = [(file, rows) for file in opened for rows in file.rows]
        count = sum(rows.take for _, rows in todo)
        with Pool(self._setup, cores()) as pool:
            named = self._look(pool, todo, count)
            names = self._make(pool, todo, named, count)
        self._pictures.keep(set(itertools.chain.from_iterable(named)))
        self._tidy(set(names))
        return self._finish([(file, name) for (file, _), name in zip(todo, names)])

    def _benchmarks(self) -> Benchmarks | None:
        if not self._config.benchmarks:
            return None
        questions = []
        for path in self._config.benchmarks:
            source = SourceConfig(path=path)
            for file in self._files(source):
                parts = files.split(file, _PART_ROWS, self._folder / "unpacked")
                layout = choose_layout(source, file, _readable(parts))
                questions += list(_questions(parts, layout))
        return Benchmarks(questions)

    def _files(self, source: SourceConfig) -> list[Path]:
        found = files.find_files(source)
        if source.dataset_info is not None:
            self._note(named_entry(source.dataset_info)[0])
        for path in found:
            self._note(path)
            self._note(path.with_name(INFO))  # decides a layout, even by not being there
        return found

    def _note(self, path: Path) -> None:
        """Take down a file that decides something."""
        now = stamp(path)
        sha256 = None if now is None else self._known.get(now) or files.digest(path)
        self._inputs[str(path)] = {"path": str(path), "stamp": now, "sha256": sha256}

    def _open(self, number: int) -> list[_File]:
        """The files of a source, each with its layout, cut to the source's limit."""
        source = self._sources[number]
        prompts = read_prompts(source.prompts) if source.prompts else ()
        if source.prompts:
            self._note(Path(source.prompts))
        left, opened = source.limit, []
        for path in self._files(source):
            parts = files.split(path, _PART_ROWS, self._folder / "unpacked")
            layout = choose_layout(source, path, _readable(parts))
            how, rows = Source(layout, source.system, prompts), []
            for part in parts:
                take = part.rows if left is None else min(left, part.rows)
                left = left and left - take
                rows += [Rows(part, take, how)] * (take > 0)
            opened.append(_File(number, path, self._inputs[str(path)]["sha256"], tuple(rows)))
            if left == 0:
                break
        for said, count in Counter(file.rows[0].source.layout.why for file in opened if file.rows).items():
            log.info("%s%s: %s", source.path, f" ({count} files)" if len(opened) > 1 else "", said)
        if not any(file.rows for file in opened):
            raise InputError(f"data: {source.path} is empty")
        return opened

    def _look(self, pool: Pool, todo: list[tuple[_File, Rows]], count: int) -> list[set[Key]]:
        """Decode each picture file that is new or changed; returns those that each part names."""
        if self._setup.images is None:
            return [set() for _ in todo]
        named = []
        with progress("read", count) as advance:
            found = pool.map(find_pictures, (rows for _, rows in todo), alone=count <= _ALONE)
            for (_, rows), keys in zip(todo, found):
                named.append(keys)
                advance(rows.take)
        stale = self._pictures.stale(sorted(set(itertools.chain.from_iterable(named))))
        if stale:
            tasks = [stale[start : start + _PICTURES] for start in range(0, len(stale), _PICTURES)]
            looks = itertools.chain.from_iterable(pool.map(look_at, tasks, alone=len(stale) <= _ALONE_PICTURES))
            with progress("pictures", len(stale)) as advance:
                for _ in self._pictures.add(looks):
                    advance()
        return named

    def _make(
        self, pool: Pool, todo: list[tuple[_File, Rows]], named: list[set[Key]], count: int
    ) -> list[str]:
        """The names of all parts, those made that were not there."""
        setup = self._setup
        same = [
            VERSION, setup.renderer.fingerprint, repr(setup.images), self._config.max_length, self._config.too_long,
            setup.benchmarks.fingerprint if setup.benchmarks else None,
        ]  # fmt: skip
        names, tasks = [], []
        for (file, rows), keys in zip(todo, named):
            looks = {key: self._pictures[key] for key in keys}
            decides = [
                *same, file.sha256, repr(rows), setup.seed if rows.source.prompts else None,
                sorted((*key, look.sha256, look.reason, look.detail) for key, look in looks.items()),
            ]  # fmt: skip
            name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
            names.append(name)
            if read_counts(self._folder / "parts" / f"{name}.arrow") is None:
                tasks.append(Task(name, rows, looks))
        left = sum(task.rows.take for task in tasks)
        with progress("prepare", count, count - left) as advance:
            for task, _ in zip(tasks, pool.map(make, tasks, alone=left <= _ALONE)):
                advance(task.rows.take)
        return names

    def _tidy(self, names: set[str]) -> None:
        """Remove what an earlier state of the data left behind."""
        for path in (self._folder / "parts").iterdir():
            if path.stem not in names:
                path.unlink()
        for path in (self._folder / "unpacked").glob("*"):
            path.unlink()

    def _finish(self, parts: list[tuple[_File, str]]) -> dict[str, Any]:
        folder = self._folder / "parts"
        tables, counts, ids, sources = [], [], _Ids(), []
        for number, (file, name) in enumerate(parts):
            table = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
            for own, row in zip(table["own_id"].to_pylist(), table["row"].to_pylist()):
                ids.add(own, str(file.path), row)
            sources.append(np.full(len(table), file.source))
            place = [pa.array(np.full(len(table), number, np.int32)), pa.array(np.arange(len(table), dtype=np.int32))]
            table = table.select(_SMALL).append_column("part", place[0]).append_column("at", place[1])
            tables.append(table)
            counts.append(read_counts(folder / f"{name}.arrow"))
        table = pa.concat_tables(tables).combine_chunks()
        ids = ids.names
        heldout = self._heldout(table, ids, np.concatenate(sources))
        same = repeats(table["content"].to_numpy())
        index = table.select(["part", "at", "length", "supervised_tokens", "patches"])
        index = index.append_column("id", pa.array(ids, pa.string())).append_column("heldout", pa.array(heldout))
        with replacing(self._folder / "index.arrow") as out, pa.ipc.new_file(out, index.schema) as writer:
            writer.write_table(index)
        with replacing(self._folder / "quarantine.jsonl") as out:
            for _, name in parts:
                out.write((folder / f"{name}.jsonl").read_bytes())
        again = np.flatnonzero(same != np.arange(len(same)))
        _write_lines(self._folder / "duplicates.jsonl", ({"id": ids[n], "same_as": ids[same[n]]} for n in again))
        overlap = table["overlap"].to_pylist() if self._config.benchmarks else []
        hits = [{"id": id_, "question": hit} for id_, hit in zip(ids, overlap) if hit is not None]
        _write_lines(self._folder / "overlap.jsonl", hits)
        return self._summary(parts, counts, table, heldout, len(again), hits)

    def _heldout(self, table: pa.Table, ids: list[str], sources: np.ndarray) -> np.ndarray:
        """(n,) bool: measured, not learned from."""
        if not self._config.heldout_fraction or not len(table):
            return sources >= len(self._config.train)
        keys = zip(table["question"].to_pylist(), table["image_hashes"].to_pylist())
        return hold_out(
            group([question, *hashes] for question, hashes in keys), ids, self._config.heldout_fraction,
            self._setup.seed,
        )  # fmt: skip

    def _summary(
        self, parts: list[tuple[_File, str]], counts: list[Counts], table: pa.Table, heldout: np.ndarray,
        duplicates: int, overlap: list[dict[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        total, sources = Counts(), []
        for number, source in enumerate(self._sources):
            count, mine = Counts(), []
            for (file, _), of_part in zip(parts, counts):
                if file.source == number:
                    count.add(of_part)
                    if file not in mine:
                        mine.append(file)
            total.add(count)
            chosen = [rows.source.layout for file in mine for rows in file.rows[:1]]
            layouts = sorted({layout.why for layout in chosen})
            split = "train" if number < len(self._config.train) else "heldout"
            about = {"path": source.path, "split": split, "files": len(mine), "layouts": layouts}
            sources.append(about | vars(count))
        lengths = table["length"].to_numpy()
        decides = [[name for _, name in parts], [s.model_dump(mode="json") for s in self._sources]]
        decides += [self._config.heldout_fraction, self._setup.seed if self._config.heldout_fraction else None]
        manifest = {
            "end_id": self._setup.renderer.end_id,
            "fingerprint": hashlib.sha256(json.dumps(decides).encode()).hexdigest(),
            "parts": [{"name": name, "file": str(file.path), "source": file.source} for file, name in parts],
            "sources": sources,
            "examples": {"train": int((~heldout).sum()), "heldout": int(heldout.sum())},
            "tokens": total.tokens,
            "supervised_tokens": total.supervised_tokens,
            "images": total.images,
            "distinct_images": len(pc.unique(table["image_hashes"].combine_chunks().flatten())) if len(table) else 0,
            "image_patches": total.image_patches,
            "length_percentiles": {
                name: float(np.percentile(lengths, at)) for name, at in _PERCENTILES.items() if len(lengths)
            },
            "duplicates": duplicates,
        }
        if self._config.heldout:
            manifest["heldout_shared"] = _shared(table, heldout)
        if self._setup.benchmarks:
            found = len({hit["question"] for hit in overlap})
            manifest["overlap"] = {
                "questions": len(self._setup.benchmarks), "shorter_than_13_words": self._setup.benchmarks.short,
                "rows": len(overlap), "questions_found": found,
            }  # fmt: skip
        return manifest | {"inputs": list(self._inputs.values()), "files": _sizes(self._folder, parts)}


def _readable(parts: list[Part]) -> list[dict[str, Any]]:
    """The first few records of a file that can be read; raises InputError when there are rows and none can be."""
    records = itertools.chain.from_iterable(map(files.read, parts))
    first = next(records, None)
    every = itertools.chain([] if first is None else [first], records)
    values = list(itertools.islice((record.value for record in every if isinstance(record.value, dict)), _FIRST))
    if first is not None and not values:
        why = first.value if isinstance(first.value, BadRow) else f"it is a {type(first.value).__name__}, not an object"
        raise InputError(f"data: {parts[0].path}: no row can be read; the first, line {first.line}: {why}")
    return values


def _questions(parts: list[Part], layout: Layout) -> Iterator[tuple[str, str]]:
    """Name and text of every question of a benchmark file, with or without an answer to it."""
    for part in parts:
        for record in files.read(part):
            try:
                conversation = parse(record.value, layout)
            except BadRow:
                continue
            texts = [
                piece["text"]
                for message in conversation.messages if message["role"] == "user"
                for piece in message["content"] if piece["type"] == "text"
            ]  # fmt: skip
            yield f"{part.path}:{conversation.id or record.row}", " ".join(texts)


class _Ids:
    """Each row's own id where no earlier row has it, else one made of file and row."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._seen: set[str] = set()

    def add(self, own: str | None, file: str, row: int) -> None:
        path = Path(file).with_suffix("")
        names = (own, *("/".join(path.parts[-n:]) + f":{row}" for n in range(1, len(path.parts))), f"{file}:{row}")
        more = (f"{file}:{row}#{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain(names, more) if name is not None and name not in self._seen)
        self._seen.add(name)
        self.names.append(name)


def _shared(table: pa.Table, heldout: np.ndarray) -> int:
    """Held-out rows whose question or picture is learned from too."""
    questions, hashes = table["question"].to_pylist(), table["image_hashes"].to_pylist()
    learned: set[Any] = set()
    for row in np.flatnonzero(~heldout):
        learned.update([questions[row], *hashes[row]])
    return sum(not learned.isdisjoint([questions[row], *hashes[row]]) for row in np.flatnonzero(heldout))


def _settings(config: DataConfig, renderer: Renderer, images: ImageSettings | None, seed: int) -> str:
    """A hash of all but the files that decides what the index holds."""
    sources = [*config.train, *config.heldout]
    decides = {
        "version": VERSION,
        "data": config.model_dump(mode="json", exclude=NO_MATTER),
        "renderer": renderer.fingerprint,
        "images": asdict(images) if images else None,
        "seed": seed if config.heldout_fraction or any(source.prompts for source in sources) else None,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _sizes(folder: Path, parts: Iterable[tuple[Any, str]]) -> dict[str, int | None]:
    """Bytes of the files that make up the index."""
    names = [*_OUTPUTS, *(f"parts/{name}.arrow" for name in dict.fromkeys(name for _, name in parts))]
    return {name: size(folder / name) for name in names}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
