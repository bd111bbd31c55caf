"""Which checkpoints are whole: every file that a manifest names is there with its hash, and no other shard."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm import dist
from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError

MANIFEST = "manifest.json"
ENGINE = "engine"
"""Folder of DeepSpeed's shards in a checkpoint."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, rising."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """manifest.json, with a hash of its own content in it."""
    manifest = dict(manifest) | {"sha256": _own_hash(manifest)}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Raises ValueError when it is not what was written."""
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    if manifest["sha256"] != _own_hash(manifest):
        raise ValueError("it was changed after it was written")
    return manifest


def _own_hash(manifest: Mapping[str, Any]) -> str:
    told = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def verify(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there and has its hash.

    `part` of `parts`: hash only every `parts`-th file, for ranks that share the work.
    """
    try:
        manifest = read_manifest(checkpoint)
        step, _, files = manifest["step"], manifest["world_size"], manifest["files"]
        if checkpoint.name != checkpoint_name(step):
            return f"its manifest is that of step {step}"
        names = [entry["name"] for entry in files]
        problem = _wrong_names(checkpoint, names)
        if problem is not None:
            return problem
        for number, entry in enumerate(files):
            problem = _wrong_file(checkpoint / entry["name"], entry, number % parts == part)
            if problem is not None:
                return problem
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error!r}"
    return None


def _wrong_names(checkpoint: Path, names: Sequence[str]) -> str | None:
    for name in names:
        if not (checkpoint / name).resolve().is_relative_to(checkpoint.resolve()):
            return f"{name} lies outside the checkpoint"
    if not names:
        return "its manifest names no files"
    # DeepSpeed finds its shards by pattern: one that nobody hashed would be read along with the others.
    there = {path.relative_to(checkpoint).as_posix() for path in (checkpoint / ENGINE).rglob("*") if not path.is_dir()}
    unknown = sorted(there - set(names))
    return f"{unknown[0]} is not in its manifest" if unknown else None


def _wrong_file(path: Path, entry: dict[str, Any], hashed: bool) -> str | None:
    name = entry["name"]
    if path.is_symlink() or not path.is_file():
        return f"{name} is {'a link' if path.is_symlink() else 'missing'}"
    size = path.stat().st_size
    if size != entry["size"]:
        return f"{name} has {size} bytes instead of {entry['size']}"
    if not hashed:
        return None
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{name} was changed: its sha256 is not that of the manifest"
    except OSError as error:
        return f"{name} cannot be read: {error}"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that passes `verify`, on all ranks together; each hashes a share of the files.

    Each damaged one on the way is named in the log.
    """
    for step in reversed(dist.on_main(lambda: steps(folder))):
        checkpoint = folder / checkpoint_name(step)
        problem = verify_together(checkpoint)
        if problem is None:
            return checkpoint
        if dist.is_main():
            dist.log.warning("%s is damaged and not used: %s", checkpoint, problem)
    return None


def verify_together(checkpoint: Path) -> str | None:
    """`verify` by all ranks; one answer for all of them: the first rank's that found something."""
    found = dist.gather_objects(verify(checkpoint, dist.rank(), dist.world_size()))
    return next((problem for problem in found if problem is not None), None)


def verify_run(run: Path) -> list[tuple[Path, str | None]]:
    """Every checkpoint of a run and what is wrong with it, oldest first.

    Raises InputError when the folder holds none.
    """
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    found = [(folder / checkpoint_name(step), verify(folder / checkpoint_name(step))) for step in steps(folder)]
    if not found:
        raise InputError(f"{run}: no checkpoints in it; give the folder of a run that has saved one")
    return found


def size_of(checkpoint: Path) -> int:
    """Bytes of a checkpoint's files, by its manifest."""
    return sum(entry["size"] for entry in read_manifest(checkpoint)["files"])
