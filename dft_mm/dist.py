"""The ranks of a run: who am I, sums over all, one log line from rank 0, and deciding things together."""

import contextlib
import hashlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

from dft_mm.errors import InputError, Stopped

T = TypeVar("T")
log = logging.getLogger("dft_mm")
_LONGEST = timedelta(days=1)
"""Of a collective: ranks wait while one prepares the data. Who watches a run is told sooner what holds it up."""


def setup_logging() -> None:
    """Log lines of rank 0 on standard error, without ornament; other ranks speak only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if rank() == 0 else logging.WARNING)


def init() -> torch.device:
    """Join the process group that the launcher describes, or make one of one rank; return this rank's device."""
    free_build_locks()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if "RANK" not in os.environ:  # started without a launcher
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # DeepSpeed's own calls of collectives that torch renames, and peft's of what transformers does: nothing that a user
    # could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing` is deprecated")
    accelerator = get_accelerator()
    if not torch_dist.is_initialized():
        if accelerator.device_name() != "cpu":
            accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        backend = accelerator.communication_backend_name()
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=_LONGEST)
        _unlink_shared_buffers()
    return device()


def device() -> torch.device:
    """This rank's."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def _unlink_shared_buffers() -> None:
    """Take the names of DeepSpeed's buffers in shared memory away as soon as all ranks have them open: a rank that is
    killed would leave 66 MiB behind, and a later run on the same port find them.
    """
    barrier()
    own = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank()}"
    Path("/dev/shm", own).unlink(missing_ok=True)


def free_build_locks() -> None:
    """Keep what DeepSpeed compiles at its first start in a folder of this host and installation (another would compile
    it anew each time), and remove locks there that a killed build left: every later start would wait for them for ever.

    A builder has its lock open as long as it builds, which /proc tells of all processes of the host.
    """
    installed = hashlib.sha256(repr((sys.prefix, sys.version, torch.__version__)).encode()).hexdigest()[:12]
    default = Path.home() / ".cache" / "dft_mm" / f"torch_extensions-{socket.gethostname()}-{installed}"
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(default)))
    locks = [path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)]
    if not locks or os.environ.get("LOCAL_RANK", "0") != "0" or not Path("/proc/self/fd").is_dir():
        return
    held = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it was closed, or is another user's
            held.add(os.readlink(descriptor))  # noqa: PTH115 - a Path would be resolved for nothing
    for lock in locks:
        if str(lock.resolve()) not in held:
            log.warning("removing %s: no process holds it, a build was killed", lock)
            lock.unlink(missing_ok=True)


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if torch_dist.is_initialized():
        torch_dist.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, on all ranks; the argument is left alone."""
    total = values.clone()
    if world_size() > 1:
        torch_dist.all_reduce(total)
    return total


def gather_objects(value: Any) -> list[Any]:
    """One small Python value of every rank, on every rank, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def on_main(work: Callable[[], T]) -> T:
    """Do something on rank 0 and hand its result to all ranks.

    An error there is raised on every rank, so that none is left waiting; InputError, Stopped and OSError as they are.
    """
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(work(), None)]
        except Exception as error:
            if world_size() == 1:
                raise
            known = isinstance(error, InputError | Stopped | OSError)  # the others may not survive the way
            if not known:
                log.exception("rank 0 failed")
            outcome = [(None, error if known else RuntimeError(f"rank 0: {error!r}"))]
    if world_size() > 1:
        torch_dist.broadcast_object_list(outcome, src=0)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def agree(error: Exception | None, what: str) -> None:
    """Raise on all ranks when any of them has an error; every rank calls it."""
    errors = gather_objects(None if error is None else f"{error!r}")
    if error is not None:
        raise error
    for number, text in enumerate(errors):
        if text is not None:
            raise RuntimeError(f"{what} failed on rank {number}: {text}")
