"""Checkpoints that are whole or not there: a temporary folder, a hash for every file, the manifest last, a rename."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dft_mm import dist
from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError

_TAG = "engine"
_MANIFEST = "manifest.json"


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def save(engine: Any, folder: Path, step: int, identity: Mapping[str, Any], keep: int) -> Path:
    """Write `folder/step-…`; every rank calls it. `identity` is what a run must share to go on from here.

    With `base` in it, the fingerprint of weights that never change, these are not written: adapters are all there is.
    Raises on every rank when any of them fails; then no new checkpoint is there, and the older ones are untouched.
    """
    final = folder / checkpoint_name(step)
    temporary = folder / f".{final.name}.partial"

    def clear() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    dist.on_main(clear)
    before = set(temporary.rglob("*"))
    with _adapters_only(engine.module) if "base" in identity else nullcontext():
        engine.save_checkpoint(
            str(temporary), tag=_TAG, save_latest=False, exclude_frozen_parameters="base" in identity
        )
    error: Exception | None = None
    own: list[dict[str, Any]] = []
    try:
        torch.save(_rng_state(), temporary / f"rng-{dist.rank():05d}.pt")
        dist.barrier()
        # Each rank hashes a share of all files: who wrote which is DeepSpeed's own business.
        files = sorted(path for path in set(temporary.rglob("*")) - before if path.is_file())
        own = [_describe(path, temporary) for path in files[dist.rank() :: dist.world_size()]]
    except OSError as failure:
        error = failure
    dist.agree(error, f"saving {final.name}")
    listed = sorted((entry for part in dist.gather_objects(own) for entry in part), key=lambda entry: entry["name"])

    def commit() -> None:
        manifest = {"step": step, "world_size": dist.world_size(), "files": listed, "identity": dict(identity)}
        write_atomically(temporary / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(folder / checkpoint_name(old))

    dist.on_main(commit)
    return final


@contextmanager
def _adapters_only(module: nn.Module) -> Iterator[None]:
    """Leave what does not learn out of the module's state: DeepSpeed itself would keep tied weights and the statistics
    of quantised ones.
    """

    def drop(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        for name in state.keys() - learning:
            del state[name]

    hook = module.register_state_dict_post_hook(drop)
    try:
        yield
    finally:
        hook.remove()


def _describe(path: Path, root: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.relative_to(root).as_posix(), "size": path.stat().st_size, "sha256": digest}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-[0-9]*") if path.is_dir())


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there and has its hash."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        for entry in manifest["files"]:
            path = checkpoint / entry["name"]
            if not path.resolve().is_relative_to(checkpoint.resolve()):
                return f"{entry['name']} lies outside the checkpoint"
            if not path.is_file():
                return f"{entry['name']} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{entry['name']} has {path.stat().st_size} bytes instead of {entry['size']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{entry['name']} does not have its sha256"
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error!r}"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that passes `verify`; each damaged one on the way is named in the log."""
    for step in reversed(_steps(folder)):
        checkpoint = folder / checkpoint_name(step)
        problem = verify(checkpoint)
        if problem is None:
            return checkpoint
        dist.log.warning("%s is damaged and not used: %s", checkpoint, problem)
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))


def load(engine: Any, checkpoint: Path, identity: Mapping[str, Any]) -> int:
    """Restore engine and random states from a verified checkpoint, on every rank; return its step.

    Raises InputError when it belongs to another model, data set, ZeRO stage or number of ranks.
    """
    manifest = read_manifest(checkpoint)
    for key, value in identity.items():
        if manifest["identity"].get(key) != value:
            raise InputError(
                f"{checkpoint}: it was made with another {key} ({manifest['identity'].get(key)}) than this run has "
                f"({value}); use the same, or give the run another name"
            )
    if manifest["world_size"] != dist.world_size():
        raise InputError(
            f"{checkpoint}: it was made by {manifest['world_size']} ranks and can only go on with as many; "
            f"this run has {dist.world_size()}"
        )
    # The shards are pickled; the hashes of the manifest were checked before.
    path, _ = engine.load_checkpoint(str(checkpoint), tag=_TAG, load_module_strict="base" not in identity)
    if path is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed could not load it")
    _restore_rng(torch.load(checkpoint / f"rng-{dist.rank():05d}.pt", weights_only=True))
    return manifest["step"]


def _rng_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_rng(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
