"""Checkpoints that are whole or not there: a temporary folder, a hash for every file, the manifest last, a rename."""

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import nn

from dft_mm import dist
from dft_mm.atomic import sync_folder
from dft_mm.errors import InputError
from dft_mm.train.reshape import loading_reshaped
from dft_mm.train.shards import ShardFiles, load_shard
from dft_mm.train.verify import (
    ENGINE,
    checkpoint_name,
    read_manifest,
    size_of,
    steps,
    write_manifest,
)  # fmt: skip

_GIB = 2**30


class SaveError(RuntimeError):
    """A checkpoint could not be written, on any rank. The older ones are untouched, and the run may go on."""


@dataclass
class _Pending:
    """A checkpoint that is written and not committed yet."""

    step: int
    temporary: Path
    writer: ShardFiles
    syncing: Thread


class Checkpoints:
    """Writes the checkpoints of a run; every rank calls each method, in the same order.

    A checkpoint is handed to the system in `save`, during which no weight may change; that it reaches the disk is
    waited for in the background, and `commit` then makes it count.

    Args:
        engine: the DeepSpeedEngine.
        folder: where checkpoints are, on a file system that all ranks share.
        identity: what a run must share to go on from here. With `base` in it, the fingerprint of weights that never
            change, these are not written: adapters are all there is.
        keep: how many of the newest stay.
        before_commit: called on rank 0 before a checkpoint counts.
        alive: called again and again while files are written.
    """

    def __init__(
        self,
        engine: Any,
        folder: Path,
        identity: Mapping[str, Any],
        keep: int,
        before_commit: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._folder, self._identity, self._keep = engine, folder, dict(identity), keep
        self._before_commit, self._alive = before_commit, alive
        self._pending: _Pending | None = None

    @property
    def on_disk(self) -> bool:
        """Whether nothing of this rank's is on its way to the disk: when that holds on all ranks, `commit` is quick."""
        return self._pending is None or not self._pending.syncing.is_alive()

    @property
    def pending(self) -> bool:
        return self._pending is not None

    def save(self, step: int) -> None:
        """Write `step-…`, after the one before it is committed.

        Raises SaveError on every rank when it fails on any: then there is no new checkpoint, and nothing is pending.
        """
        self.commit()
        temporary = self._folder / f".{checkpoint_name(step)}.partial"
        self._on_main(step, lambda: self._clear(temporary))
        writer = ShardFiles(temporary, self._alive)
        self._engine.checkpoint_engine = writer
        # DeepSpeed would copy scripts for other tools beside the shards, on one rank and outside the writer.
        self._engine._copy_recovery_script = lambda _: None
        frozen_left_out = "base" in self._identity
        with _adapters_only(self._engine.module) if frozen_left_out else nullcontext():
            self._engine.save_checkpoint(
                str(temporary), tag=ENGINE, save_latest=False, exclude_frozen_parameters=frozen_left_out
            )
        writer.save(_rng_state(), str(temporary / _rng_name(dist.rank())))
        self._agree(step, writer.error)
        self._pending = _Pending(step, temporary, writer, Thread(target=writer.sync, name="sync", daemon=True))
        self._pending.syncing.start()

    def commit(self) -> Path | None:
        """Make the pending checkpoint count, and remove older ones than are kept; None where none is pending.

        Raises SaveError as `save` does.
        """
        if self._pending is None:
            return None
        pending = self._pending
        pending.syncing.join()
        self._agree(pending.step, pending.writer.error)
        written = [entry for of_rank in dist.gather_objects(pending.writer.written) for entry in of_rank]
        final = self._folder / checkpoint_name(pending.step)
        self._on_main(pending.step, lambda: self._publish(pending, written, final))
        self._pending = None
        return final

    def _clear(self, temporary: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".step-*"):  # of saves that were cut short
            shutil.rmtree(left, ignore_errors=True)
        needed, free = self._bytes_needed(), shutil.disk_usage(self._folder).free
        if free < needed:
            told = f"a checkpoint takes about {needed / _GIB:.3g} GiB, and {free / _GIB:.3g} are free"
            raise OSError(errno.ENOSPC, told, str(self._folder))
        temporary.mkdir()

    def _bytes_needed(self) -> int:
        """As much as the last whole one, or at least master weights and two moments of all that learns."""
        for step in reversed(steps(self._folder)):
            checkpoint = self._folder / checkpoint_name(step)
            try:
                return size_of(checkpoint)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is damaged; an older one may do
        learning = (p for p in self._engine.module.parameters() if p.requires_grad)
        return sum(12 * getattr(p, "ds_numel", p.numel()) for p in learning)

    def _publish(self, pending: _Pending, written: list[dict[str, Any]], final: Path) -> None:
        self._before_commit()
        listed = written + _others(pending.temporary, {entry["name"] for entry in written})
        listed.sort(key=lambda entry: entry["name"])
        about = {"step": pending.step, "world_size": dist.world_size(), "identity": self._identity}
        for folder in {(pending.temporary / entry["name"]).parent for entry in listed}:
            sync_folder(folder)
        write_manifest(pending.temporary, about | {"files": listed})
        sync_folder(pending.temporary)
        replaced = final.with_name(f".{final.name}.replaced")
        if final.exists():  # it was damaged, and its step is done again
            final.rename(replaced)
        pending.temporary.rename(final)
        sync_folder(self._folder)
        # Newer ones are damaged, or the run would have gone on from there.
        older = [step for step in steps(self._folder) if step <= pending.step]
        for gone in [replaced, *(self._folder / checkpoint_name(step) for step in older[: -self._keep])]:
            shutil.rmtree(gone, ignore_errors=True)

    def _on_main(self, step: int, work: Callable[[], None]) -> None:
        error: OSError | None = None
        if dist.is_main():
            try:
                work()
            except OSError as failure:
                error = failure
        self._agree(step, error)

    def _agree(self, step: int, error: OSError | None) -> None:
        """Give the checkpoint up on all ranks when any of them has an error."""
        errors = dist.gather_objects(None if error is None else str(error))
        failed = [(rank, text) for rank, text in enumerate(errors) if text is not None]
        if not failed:
            return
        if self._pending is not None:
            self._pending.syncing.join()
            self._pending = None
        if dist.is_main():
            shutil.rmtree(self._folder / f".{checkpoint_name(step)}.partial", ignore_errors=True)
        rank, text = failed[0]
        raise SaveError(f"the checkpoint of step {step} could not be written (rank {rank}: {text})")


def _others(root: Path, known: set[str]) -> list[dict[str, Any]]:
    """Entries of files that DeepSpeed wrote by itself, such as what it keeps on NVMe."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [_describe(path, root) for path in paths if path.relative_to(root).as_posix() not in known]


def _describe(path: Path, root: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.relative_to(root).as_posix(), "size": path.stat().st_size, "sha256": digest}


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


def load(engine: Any, checkpoint: Path, identity: Mapping[str, Any]) -> int:
    """Restore engine and random states from a checkpoint that `newest_whole` chose, on every rank; return its step.

    Made by another number of ranks it is cut anew first; each rank then draws random numbers of its own.
    Raises InputError when it belongs to another model, data set or ZeRO stage.
    """
    manifest = read_manifest(checkpoint)
    for key, value in identity.items():
        if manifest["identity"].get(key) != value:
            raise InputError(
                f"{checkpoint}: it was made with another {key} ({manifest['identity'].get(key)}) than this run has "
                f"({value}); use the same, or give the run another name"
            )
    same = manifest["world_size"] == dist.world_size()
    engine.checkpoint_engine = ShardFiles(checkpoint)
    with nullcontext(checkpoint) if same else loading_reshaped(engine, checkpoint, manifest) as folder:
        path, _ = engine.load_checkpoint(str(folder), tag=ENGINE, load_module_strict="base" not in identity)
    if path is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed could not load it")
    if same:
        _restore_rng(load_shard(checkpoint / _rng_name(dist.rank())))
    else:
        torch.manual_seed(manifest["step"] * dist.world_size() + dist.rank())
    return manifest["step"]


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


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
