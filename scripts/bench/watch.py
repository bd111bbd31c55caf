"""What is looked at while a contestant makes its steps: time, waiting for the device, speed of matrix products."""

import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.bench.measure import synchronise

WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::unique_consecutive",
}  # fmt: skip
"""Operators that need values of the device on the host."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
"""These do when an index is a mask."""
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


class Watch:
    """`with watch.step():` around each step. The first ones warm up, the next are timed, in one the waiting of the host
    is counted, and in the last one the matrix products are timed.
    """

    def __init__(self, device: torch.device, warm: int, timed: int) -> None:
        self._device = device
        self._kinds = ["warm"] * warm + ["timed"] * timed + ["waits", "products"]
        self.timed = range(warm + 1, warm + timed + 1)
        """Numbers of the steps that are timed,"""
        self.seconds: list[float] = []
        """and their seconds."""
        self.waits: list[str] = []
        """An entry for each time that the host waited for the device: the operator, or the line of code."""
        self.product_rate: float | None = None
        """Operations of matrix products over the seconds that they took."""

    @property
    def left(self) -> int:
        """Steps to come."""
        return len(self._kinds)

    @contextmanager
    def step(self) -> Iterator[None]:
        kind = self._kinds.pop(0)
        synchronise(self._device)
        start = time.perf_counter()
        if kind == "waits":
            with host_waits(self._device) as seen:
                yield
            self.waits = seen
        elif kind == "products":
            with torch.profiler.profile(with_flops=True) as profile:
                yield
                synchronise(self._device)
            self.product_rate = product_rate(profile, self._device)
        else:
            yield
            synchronise(self._device)
        if kind == "timed":
            self.seconds.append(time.perf_counter() - start)


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """A list that gets one entry each time the host waits for the device: what torch warns of on CUDA, elsewhere the
    operators that would make it wait there.
    """
    seen: list[str] = []
    if device.type != "cuda":
        with _Operators(seen):
            yield seen
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
    seen += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


class _Operators(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if masked or name in WAITING:
            self._seen.append(f"{name} at {_caller()}")
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """The innermost line of code outside torch; in the backward pass that which began it."""
    frames = (frame for frame in reversed(traceback.extract_stack()) if "/torch/" not in frame.filename)
    frame = next(frame for frame in frames if frame.filename != __file__)
    return f"{Path(frame.filename).name}:{frame.lineno}"


def product_rate(profile: torch.profiler.profile, device: torch.device) -> float | None:
    """Operations a second of the matrix products of torch; None where there are none."""
    events = [event for event in profile.key_averages() if event.key in PRODUCTS and event.flops]
    times = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    microseconds = sum(getattr(event, times) for event in events)
    return sum(event.flops for event in events) / microseconds * 1e6 if microseconds else None
