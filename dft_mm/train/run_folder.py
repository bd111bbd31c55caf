"""The files of a run beside its checkpoints: recipe, environment, STATUS.json, metrics.jsonl. Rank 0 writes them."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

import dft_mm
from dft_mm.atomic import write_atomically
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.lock import locked
from dft_mm.sections import read_text, to_yaml, with_defaults

State = Literal["running", "finished", "stopped", "failed"]
_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "datasets", "pillow", "tokenizers", "numpy")
# What may differ between a run and its continuation: it changes no step.
_HARMLESS = {
    ("output",), ("deepspeed",), ("data", "workers"), ("train", "save_every"), ("train", "keep"),
    ("train", "heldout_every"), ("train", "micro_tokens"), ("model", "gradient_checkpointing"),
    ("train", "log_entropy"), ("train", "hang_minutes"), ("train", "restarts"),
    ("log", "trackers"),
}  # fmt: skip


def write_status(folder: Path, state: State, step: int, reason: str = "", notes: Sequence[str] = ()) -> None:
    """STATUS.json: a launcher loses exit codes, so the truth is here. `step` is the last step done; `notes` is absent
    where there are none.
    """
    status = {"state": state, "step": step, "reason": reason, "time": _now()}
    text = json.dumps(status | ({"notes": list(notes)} if notes else {})) + "\n"
    path = folder / "STATUS.json"
    try:
        write_atomically(path, text)
    except OSError:
        # A full disk has no room for a second file, but the old one's block is ours.
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def read_status(folder: Path) -> dict[str, Any] | None:
    path = folder / "STATUS.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def state_of(run: Path) -> State | None:
    """The state in STATUS.json; of a run that is finished only when its export is there."""
    status = read_status(run)
    if status is None or (status["state"] == "finished" and not (run / "export").is_dir()):
        return None
    return status["state"]


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
        "command": [_without_secrets(word) for word in sys.argv],
    }


def _without_secrets(word: str) -> str:
    """A word of the command line, without what looks like a key of a hub, a tracker or a server."""
    word = re.sub(r"(?i)([\w.-]*(?:token|secret|passw|api_?key)[\w.-]*[=:]\s*).+", r"\1***", word)
    word = re.sub(r"\b(hf_|sk-|ghp_|wandb_)[\w-]{8,}", r"\1***", word)
    return re.sub(r"(://[^/:@\s]+:)[^@\s]+@", r"\1***@", word)


def locked_run(folder: Path) -> AbstractContextManager[Path]:
    """The run folder, made and held by this process; InputError when another run works there."""
    return locked(folder, "run", "give this one another name or output")


def open_run(folder: Path, recipe: Recipe, deepspeed: Mapping[str, Any], accept_changes: bool = False) -> None:
    """Write what the run is, unless it is finished; InputError when the folder cannot be written, or is a run of
    another recipe: a finished one, or one with checkpoints, as long as `accept_changes` does not allow for it.
    """
    known = folder / "recipe.yaml"
    finished = state_of(folder) == "finished"
    if known.is_file() and (finished or any((folder / "checkpoints").glob("step-*"))):
        before = with_defaults(Recipe, yaml.safe_load(read_text(known, "recipe")))
        changed = _changes(before, recipe.model_dump(mode="json"))
        if changed and finished:
            raise InputError(
                f"{folder} is finished, with another recipe; changed: {'; '.join(changed)}. Give the run another name "
                f"or output; to train on from this one's result, also model.path={folder / 'export'}"
            )
        if changed and not accept_changes:
            raise InputError(
                f"{folder} holds checkpoints of another recipe; changed: {'; '.join(changed)}. Give the run another "
                "name or output, go on with the recipe it was started with, or add --accept-changes"
            )
        if changed:
            log.warning("%s goes on with another recipe: %s", folder, "; ".join(changed))
            with (folder / "changes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": _now(), "changed": changed}) + "\n")
    if finished:  # its files say how it was made
        return
    try:
        write_atomically(known, to_yaml(recipe))
        write_atomically(folder / "deepspeed.json", json.dumps(deepspeed, indent=2) + "\n")
        write_atomically(folder / "environment.json", json.dumps(provenance(), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"output: {folder} cannot be written ({error.strerror}); make room or mend it, or give another `output`"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._waiting: list[str] = []

    def write(self, values: Mapping[str, Any]) -> str | None:
        """Add a line; where the disk takes none it waits for the next time, and what is wrong is returned."""
        self._waiting.append(json.dumps(values) + "\n")
        try:
            self._flush()
        except OSError as error:
            return f"{self._path} cannot be written ({error.strerror}); {len(self._waiting)} lines wait"
        return None

    def sync(self) -> None:
        """Wait until all lines are on the disk; raises OSError."""
        self._flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _flush(self) -> None:
        left = content = "".join(self._waiting).encode()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._size)  # half a line is none
            raise
        self._size += len(content)
        self._waiting.clear()
