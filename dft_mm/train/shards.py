"""The files of a checkpoint, as DeepSpeed asks for them: hashed while written, and read as data, not as code."""

import copyreg
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

_BUFFER = 2**24
# What DeepSpeed's own shards hold besides tensors and plain values. Anything else in a shard is refused.
_KNOWN = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address, set]
# Python before 3.11.4 writes a member of an enumeration as a call of getattr, which no reading can allow.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


class ShardFiles(CheckpointEngine):
    """This rank's files of one checkpoint. Nothing is raised while DeepSpeed writes: it would leave the other ranks in
    its barriers. `error` says afterwards what went wrong.

    The interface is that of deepspeed 0.19.8.
    """

    def __init__(self, root: Path, alive: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.root, self._alive = root, alive
        self.written: list[dict[str, Any]] = []
        """{"name", "size", "sha256"} of each file, its name relative to the root."""
        self.error: OSError | None = None
        self._open: list[BinaryIO] = []

    def create(self, info: Any) -> None:
        pass

    def commit(self, info: Any) -> bool:
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self._noting():
            Path(path).mkdir(parents=True, exist_ok=True)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_shard(Path(path), map_location)

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file; its bytes reach the disk in `sync`."""
        if self.error:
            return
        with self._noting():
            file = _Hashed(Path(path), self._alive)
            self._open.append(file.file)
            try:
                torch.save(state_dict, file)
                file.flush()
            except Exception as failure:  # torch wraps what a file raises
                raise file.error or failure from None
            name = Path(path).relative_to(self.root).as_posix()
            self.written.append({"name": name, "size": file.size, "sha256": file.digest.hexdigest()})

    def sync(self) -> None:
        """Wait until all files are on the disk, and close them; may run in another thread than `save`."""
        for file in self._open:
            with self._noting():
                os.fsync(file.fileno())
            with suppress(OSError):
                file.close()
        self._open.clear()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


class _Hashed:
    """A file for writing that keeps its own hash: of what was handed over, not of what a disk made of it."""

    def __init__(self, path: Path, alive: Callable[[], None]) -> None:
        self.file, self._alive = path.open("wb", buffering=_BUFFER), alive
        self.digest, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, part: Any) -> int:
        self._alive()
        self.digest.update(part)
        length = memoryview(part).nbytes
        self.size += length
        try:
            self.file.write(part)
        except OSError as error:
            self.error = error
            raise
        return length

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.error = error
            raise


def load_shard(path: Path, map_location: Any = None) -> Any:
    """A file of a checkpoint that was verified. Of Python's objects only those that DeepSpeed writes are built."""
    with torch.serialization.safe_globals(_KNOWN):
        return torch.load(path, map_location=map_location, weights_only=True)
