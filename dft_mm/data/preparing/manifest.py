"""The manifest of a prepared data folder: whether it still holds, and whether a run may start on it. Light to import,
so that preparing what is prepared already takes a moment.
"""

import hashlib
import importlib.metadata
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from dft_mm.config import DataConfig, SourceConfig
from dft_mm.data.preparing.pictures import Pictures
from dft_mm.data.reading import files
from dft_mm.errors import InputError

VERSION = 3
"""A new number when the same files give another index."""
NO_MATTER = {"bad_rows", "workers", "pack"}
"""Settings that do not decide what the index holds."""
_LIBRARIES = ("dft_mm", "transformers", "tokenizers", "pillow", "pyarrow")
_SHOWN = 3  # refused rows that a refusal quotes
_DETAIL = 300  # characters of each


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """None when there is none, or one of another version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "settings" in manifest else None


def summary(manifest: dict[str, Any]) -> str:
    """One sentence: how many rows there are, and what became of those that are not learned from."""
    sources = manifest["sources"]
    rows, long, other = (sum(source[name] for source in sources) for name in ("rows", "too_long", "not_chosen"))
    reasons = sum((Counter(source["quarantined"]) for source in sources), Counter())
    refused = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    parts = [f"{rows} rows: {manifest['examples']['train']} to learn from"]
    parts += [f"{manifest['examples']['heldout']} held out"] * (manifest["examples"]["heldout"] > 0)
    parts += [f"{long} too long"] * (long > 0)
    parts += [f"{other} not chosen"] * (other > 0)
    parts += [f"{reasons.total()} refused ({refused})"] * (reasons.total() > 0)
    parts += [f"{manifest['duplicates']} that stand twice"] * (manifest["duplicates"] > 0)
    overlap = manifest.get("overlap", {}).get("rows", 0)
    parts += [f"{overlap} that share 13 words with a benchmark question"] * (overlap > 0)
    shared = manifest.get("heldout_shared", 0)
    parts += [f"{shared} held out that share a question or picture with those learned from"] * (shared > 0)
    return ", ".join(parts)


def asked(config: DataConfig, seed: int, model: str) -> str:
    """A hash of what the recipe says, and of the versions that read it."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    said = [VERSION, config.model_dump(mode="json", exclude=NO_MATTER), seed, model, versions]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def model_stamps(folder: Path) -> dict[str, Any]:
    """Of all files of a model folder but its weights: they decide what a row becomes."""
    small = (path for path in folder.iterdir() if path.suffix != ".safetensors")
    return {str(path): stamp(path) for path in sorted(small)}


def still_holds(
    folder: Path, config: DataConfig, seed: int, model: str, begun: bool = False
) -> dict[str, Any] | None:
    """The manifest, when recipe, versions, model files, rows and (of a run that has not `begun`) pictures are as they
    were; else None, which is no proof that they are not.

    Raises InputError when they are, and a run may not start on them.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("asked") != asked(config, seed, model):
        return None
    known = {path: then and tuple(then) for path, then in manifest["model"].items()}
    folders = {Path(path).parent for path in known}
    same = len(folders) == 1 and (home := folders.pop()).is_dir() and model_stamps(home) == known
    if not (same and unchanged(manifest, config, folder)):
        return None
    if not (begun or Pictures(folder / "pictures.jsonl").unchanged()):
        return None
    refuse(manifest, config.bad_rows, folder)
    return manifest


def unchanged(manifest: dict[str, Any], config: DataConfig, folder: Path) -> bool:
    """Whether the files that were read and those that were written are as they were, and no more have come."""
    known = {read["path"]: read["stamp"] and tuple(read["stamp"]) for read in manifest["inputs"]}
    sources = [*config.train, *config.heldout, *(SourceConfig(path=path) for path in config.benchmarks)]
    found = {str(path) for source in sources for path in files.find_files(source)}
    return (
        found <= known.keys()
        and all(stamp(Path(path)) == then for path, then in known.items())
        and all(size(folder / name) == then for name, then in manifest["files"].items())
    )


def stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to; None where there is none."""
    return files.stamp(path) if path.is_file() else None


def size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def refuse(manifest: dict[str, Any], bad_rows: float, folder: Path) -> None:
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
        raise InputError(f"no row is left to learn from ({left}); raise data.max_length, or see {quarantine}")


def _first_refused(quarantine: Path, file: str | None = None) -> list[str]:
    """The first few refused rows, of one file or of all, for reading."""
    with quarantine.open(encoding="utf-8") as lines:
        refused = (row for row in map(json.loads, lines) if file in (None, row["file"]))
        return [
            f"  {row['file']}:{row['line'] or 'row ' + str(row['row'])}: {row['reason']}: {row['detail'][:_DETAIL]}"
            for row in itertools.islice(refused, _SHOWN)
        ]
