"""A file of training rows derived from a published data set: fetched, drawn from, converted, and written whole, with a
manifest of what it was made of. Each script of this folder is one `Derived`.

The manifest, DIR/NAME.json: {"name", "version", "settings", "sources": [{"of", "revision", "files": [FILE]}], "rows":
{"there", "drawn", "out", "dropped": {REASON: count}}, "outputs": [FILE]}, a FILE being {"name", "size", "sha256"}.
"""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import dft_mm
from dft_mm.arguments import positive
from dft_mm.atomic import replacing, write_atomically
from dft_mm.errors import InputError
from scripts.paper.data.rows import Row, count_rows, draw, read_rows
from scripts.paper.data.sources import Found, Source

log = logging.getLogger("dft_mm")
LIST = ".sha256"
"""Suffix of an output that lists further ones, a line `SHA256  NAME` each, as `sha256sum --check` reads them."""


class Place(NamedTuple):
    """What a conversion may look at beside the rows."""

    files: Mapping[str, Path]
    """All files of the sources, by their names."""
    out: Path


@dataclass(frozen=True)
class Derived:
    """What a script makes."""

    name: str
    """Of the script and of the manifest."""
    folder: str
    """Where it goes unless the user says otherwise."""
    file: str
    source: Source
    """Of the rows."""
    columns: tuple[str, ...]
    """Those that a row must have."""
    convert: Callable[[Iterable[Row], Place], Iterable[Row | str]]
    """For each row, in order, the one to write, or in words why there is none."""
    rows: int | None = None
    """How many are drawn; None: all are taken."""
    beside: tuple[Source, ...] = ()
    """Of further files."""
    lists: tuple[str, ...] = ()
    """Further outputs, which the conversion writes: each a list of files (`LIST`)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides the rows beside the draw."""


def each(convert: Callable[[Row], Row | str]) -> Callable[[Iterable[Row], Place], Iterator[Row | str]]:
    """A conversion that looks at one row at a time and at nothing else."""
    return lambda rows, place: map(convert, rows)


def make(derived: Derived, given: argparse.Namespace) -> str:
    """Make what is not there yet. Returns in words what is there now. Raises InputError."""
    from dft_mm.progress import progress

    output, settings = given.out / derived.file, _settings(derived, given)
    if _is_made(derived, given, settings):
        return f"{output} is there already, whole, and made with the same settings"
    sources = (derived.source, *derived.beside)
    found = _located(sources, given.files)
    files = {name: where.folder / name for source, where in zip(sources, found) for name in source.files}
    paths = [files[name] for name in derived.source.files]
    counts = [count_rows(path) for path in paths]
    chosen = _chosen(derived.name, settings, sum(counts))
    with progress(derived.name, len(chosen)) as advance:
        rows = derived.convert(read_rows(paths, counts, chosen, derived.columns), Place(files, given.out))
        written, dropped = _write(output, rows, advance)
    log.info("%s: hashing the files that it was made of", derived.name)
    manifest = {
        "name": derived.name,
        "version": dft_mm.__version__,
        "settings": settings,
        "sources": [_made_of(source, where) for source, where in zip(sources, found)],
        "rows": {"there": sum(counts), "drawn": len(chosen), "out": written, "dropped": dict(dropped.most_common())},
        "outputs": [hashed(given.out, name) for name in (derived.file, *derived.lists)],
    }
    write_atomically(_manifest(derived, given), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return f"{output}: {written} rows, from {len(chosen)} of {sum(counts)}{_told(dropped)}"


def _located(sources: Sequence[Source], placed: Path | None) -> list[Found]:
    try:
        return [source.locate(placed) for source in sources]
    except InputError as error:
        ways_out = [source.way_out(placed or Path("DIR")) for source in sources]  # all, so that one look is enough
        raise InputError("\n".join([str(error), *ways_out])) from error


def _settings(derived: Derived, given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the rows beside the files; None is what does not matter."""
    rows = given.rows or derived.rows
    how = given.draw if rows else None
    return {"rows": rows, "draw": how, "seed": given.seed if how == "random" else None, **derived.settings}


def _made_of(source: Source, where: Found) -> dict[str, Any]:
    files = [hashed(where.folder, name) for name in source.files]
    return {"of": source.name, "revision": where.revision, "files": files}


def _chosen(name: str, settings: Mapping[str, Any], there: int) -> Sequence[int]:
    rows = settings["rows"]
    if rows is None:
        return range(there)
    if rows > there:
        raise InputError(f"{name}: {rows} rows are to be taken, and {there} are there; take less by --rows N")
    return range(rows) if settings["draw"] == "first" else draw(rows, there, settings["seed"])


def _write(path: Path, rows: Iterable[Row | str], advance: Callable[..., None]) -> tuple[int, Counter[str]]:
    """Rows as JSON lines; how many were written, and how many were not for which reason."""
    written, dropped = 0, Counter[str]()
    with replacing(path) as file:
        for row in rows:
            advance()
            if isinstance(row, str):
                dropped[row] += 1
                continue
            try:
                line = json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                dropped["broken text (half a surrogate pair)"] += 1
                continue
            file.write(line + b"\n")
            written += 1
        if not written:
            raise InputError(f"{path}: would hold no row{_told(dropped)}")
    return written, dropped


def _told(dropped: Counter[str]) -> str:
    return "".join(f"\n  {count} left out: {reason}" for reason, count in dropped.most_common())


def hashed(folder: Path, name: str) -> dict[str, Any]:
    """{"name", "size", "sha256"} of a file."""
    path = folder / name
    with path.open("rb") as file:
        return {"name": name, "size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest(derived: Derived, given: argparse.Namespace) -> Path:
    return given.out / f"{derived.name}.json"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found, so nothing was finished there; run this without --check") from error
    except ValueError as error:
        raise InputError(f"{path}: a damaged manifest ({error}); delete it, and run this again") from error


def _is_made(derived: Derived, given: argparse.Namespace, settings: Mapping[str, Any]) -> bool:
    """Whether the output is there and whole, of the same sources and with the same settings."""
    path = _manifest(derived, given)
    if not path.exists():
        return False
    manifest = _read_manifest(path)
    sources = [source.name for source in (derived.source, *derived.beside)]
    same = manifest["settings"] == settings and [source["of"] for source in manifest["sources"]] == sources
    return same and not _replaced(manifest, given.files) and not damage(manifest, given.out)


def _replaced(manifest: Mapping[str, Any], placed: Path | None) -> bool:
    """Whether the user has placed files of other sizes since; what they hold is looked at by --check."""
    files = [file for source in manifest["sources"] for file in source["files"]] if placed else []
    there = [((placed or Path()) / file["name"], file["size"]) for file in files]
    return any(path.is_file() and path.stat().st_size != size for path, size in there)


def damage(manifest: Mapping[str, Any], out: Path) -> list[str]:
    """A line for each output that is missing or not what the manifest says, with those that lists name."""
    found = [line for file in manifest["outputs"] for line in _differs(out, file["name"], file["sha256"])]
    whole_lists = [] if found else [file["name"] for file in manifest["outputs"] if file["name"].endswith(LIST)]
    for name in whole_lists:
        for line in (out / name).read_text(encoding="utf-8").splitlines():
            digest, _, listed = line.partition("  ")
            found += _differs(out, listed, digest)
    return found


def _differs(folder: Path, name: str, digest: str) -> list[str]:
    path = folder / name
    if not path.is_file():
        return [f"{path}: missing"]
    return [] if hashed(folder, name)["sha256"] == digest else [f"{path}: damaged, its SHA-256 is another"]


def check(derived: Derived, given: argparse.Namespace) -> int:
    """Say whether what was made is whole, and with --files what it was made of; 0 if so, 1 if not."""
    manifest = _read_manifest(_manifest(derived, given))
    found = damage(manifest, given.out)
    if given.files:
        told = [file for source in manifest["sources"] for file in source["files"]]
        found += [line for file in told for line in _differs(given.files, file["name"], file["sha256"])]
    print("\n".join(found or [f"{given.out / derived.file}: whole"]))
    return 1 if found else 0


def parser(derived: Derived, about: str | None) -> argparse.ArgumentParser:
    """What every script of this folder can be told."""
    told = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "all" if derived.rows is None else f"{derived.rows:,}"
    folder = Path(derived.folder)
    told.add_argument("--out", type=Path, default=folder, metavar="DIR", help=f"default: {folder}")
    told.add_argument("--files", type=Path, metavar="DIR", help="take the published files from here; fetch nothing")
    told.add_argument("--rows", type=positive, metavar="N", help=f"how many rows to take (default: {default})")
    told.add_argument("--draw", choices=("random", "first"), default="random", help="which of them (default: random)")
    told.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    told.add_argument("--check", action="store_true", help="only say whether what was made is whole: exit 0, else 1")
    return told


def run(derived: Derived, given: argparse.Namespace) -> int:
    """Exit code: 0 done; 1 damaged (--check); 2, with one message, where the user's input is wrong."""
    from dft_mm.__main__ import exit_code
    from dft_mm.dist import setup_logging

    setup_logging()
    return exit_code(lambda: check(derived, given) if given.check else print(make(derived, given)))


def main(derived: Derived, about: str | None, words: Sequence[str] | None = None) -> int:
    """The whole of a script that can be told no more."""
    return run(derived, parser(derived, about).parse_args(words))
