"""The files of a run beside its checkpoints: recipe, environment, STATUS.json, metrics.jsonl. Rank 0 writes them."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

import dft_mm
from dft_mm.atomic import write_atomically
from dft_mm.config import Recipe, read_text, to_yaml
from dft_mm.errors import InputError

State = Literal["running", "finished", "stopped", "failed"]
_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "datasets", "pillow", "tokenizers", "numpy")
# What may differ between a run and its continuation: it changes no step.
_HARMLESS = {
    ("output",), ("deepspeed",), ("data", "workers"), ("train", "save_every"), ("train", "keep"),
    ("train", "heldout_every"), ("train", "micro_tokens"), ("model", "gradient_checkpointing"),
}  # fmt: skip


def write_status(folder: Path, state: State, step: int, reason: str = "") -> None:
    """STATUS.json: a launcher loses exit codes, so the truth is here. `step` is the last step done."""
    status = {"state": state, "step": step, "reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomically(folder / "STATUS.json", json.dumps(status) + "\n")


def read_status(folder: Path) -> dict[str, Any] | None:
    path = folder / "STATUS.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def provenance() -> dict[str, Any]:
    """Versions, commit and command line: what somebody needs to do it again."""
    # This package's own repository, when it is one: the user's working directory may be another project's.
    package = Path(dft_mm.__file__).parent
    git = subprocess.run(["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "dft_mm": dft_mm.__version__,
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "command": sys.argv,
    }


def open_run(folder: Path, recipe: Recipe, deepspeed: Mapping[str, Any]) -> None:
    """Make the run folder and write what the run is; InputError when it cannot be made or holds another recipe."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: the run folder {folder} cannot be made ({error}); give another `output`") from error
    known = folder / "recipe.yaml"
    if known.is_file() and any((folder / "checkpoints").glob("step-*")):
        changed = _changes(yaml.safe_load(read_text(known, "recipe")), recipe.model_dump(mode="json"))
        if changed:
            raise InputError(
                f"{folder} holds checkpoints of another recipe; changed: {'; '.join(changed)}. "
                "Give the run another name or output, or go on with the recipe it was started with"
            )
    write_atomically(known, to_yaml(recipe))
    write_atomically(folder / "deepspeed.json", json.dumps(deepspeed, indent=2) + "\n")
    write_atomically(folder / "environment.json", json.dumps(provenance(), indent=2) + "\n")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[str]:
    """`key: old -> new` of every value that decides a step and differs."""
    found: list[str] = []
    for key in old.keys() | new.keys():
        here = (*path, key)
        before, after = old.get(key), new.get(key)
        if here in _HARMLESS or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changes(before, after, here)
        else:
            found.append(f"{'.'.join(here)}: {before!r} -> {after!r}")
    return sorted(found)


class MetricsFile:
    """metrics.jsonl: one line a step. Opening it for a run that goes on drops the steps that are done again."""

    def __init__(self, path: Path, last_step: int) -> None:
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    step = json.loads(line)["step"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # the line that a crash cut short; it is the last one
                if step <= last_step:
                    kept.append(line)
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
