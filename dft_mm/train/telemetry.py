"""What a step tells about itself: sums over its tokens, kept on the device and added up over ranks once."""

import math
import statistics
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_mm import dist
from dft_mm.batch import Batch

P_BINS = 10
_SPIKE_STEPS = 50
_SPIKE_WIDTHS = 8.0
_SPIKE_LEAST = 0.1  # nats per token


_VALUES = ("loss", "nll", "weight", "p", "end_p", "entropy", "entropies", "skipped", "stop", "saving")
"""Sums of numbers; of these the first six must be finite."""
_COUNTS = ("ends", "supervised_tokens", "tokens", "lost", "lost_tokens")


def p_bins(p: Tensor) -> Tensor:
    """(M,) int64: the bin of `p_hist` that each probability belongs to. 1 belongs to the last one; a NaN goes anywhere,
    because it stops the run.
    """
    return (p.nan_to_num() * P_BINS).long().clamp_(0, P_BINS - 1)


@dataclass(frozen=True)
class Sums:
    """Sums over the supervised tokens of a step; adding is in place, and waits for no device."""

    on_device: Tensor
    """(10 + P_BINS + 1,) float64: `_VALUES`, the histogram of p over [0, 1], turn-end tokens. Exact to 2^53."""
    on_host: dict[str, int]
    """The other `_COUNTS`, which are known without asking the device."""

    @classmethod
    def zeros(cls, device: torch.device) -> "Sums":
        size = len(_VALUES) + P_BINS + 1
        return cls(torch.zeros(size, dtype=torch.float64, device=device), dict.fromkeys(_COUNTS[1:], 0))

    def add(self, outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], batch: Batch, end_id: int) -> None:
        """outputs: loss (), nll, weight, entropy (M,) and skipped () of one micro-batch, as the module returns them."""
        loss, nll, weight, entropy, skipped = outputs
        nll = nll.double()
        p = torch.exp(-nll)
        is_end = (batch.targets == end_id).double()
        sums = [loss.detach().double(), nll.sum(), weight.double().sum(), p.sum(), (p * is_end).sum()]
        sums += [entropy.double().sum(), nll.new_full((), len(entropy)), skipped.double(), *nll.new_zeros(2)]
        hist = nll.new_zeros(P_BINS).index_add_(0, p_bins(p), torch.ones_like(p))
        self.on_device.add_(torch.cat([torch.stack(sums), hist, is_end.sum()[None]]))
        here = (len(batch.targets), batch.tokens, len(batch.lost), batch.lost_tokens)
        for name, count in zip(_COUNTS[1:], here):
            self.on_host[name] += count

    def tell(self, stop: bool, saving: bool) -> None:
        """Add that this rank wishes to stop, or still writes a checkpoint, so that the sum is one joint decision."""
        for name, holds in (("stop", stop), ("saving", saving)):
            if holds:
                self.on_device[_VALUES.index(name)] += 1

    def over_ranks(self) -> "Totals":
        """The sums of all ranks; a collective, and the one time that a step waits for the device."""
        counts = self.on_device.new_tensor([float(self.on_host[name]) for name in _COUNTS[1:]])
        *numbers, ends, supervised, tokens, lost, lost_tokens = dist.sum_over_ranks(
            torch.cat([self.on_device, counts])
        ).tolist()
        values = dict(zip(_VALUES, numbers))
        hist = [int(count) for count in numbers[len(_VALUES) :]]
        counted = zip(_COUNTS, (ends, supervised, tokens, lost, lost_tokens))
        return Totals(values, hist, {name: int(count) for name, count in counted})


@dataclass(frozen=True)
class Totals:
    """The sums of a step over all ranks."""

    values: dict[str, float]
    p_hist: list[int]
    counts: dict[str, int]

    @property
    def finite(self) -> bool:
        return all(math.isfinite(self.values[name]) for name in _VALUES[:6])

    @property
    def stop(self) -> bool:
        return self.values["stop"] > 0

    @property
    def saving(self) -> bool:
        return self.values["saving"] > 0

    @property
    def supervised_tokens(self) -> int:
        return self.counts["supervised_tokens"]

    @property
    def lost(self) -> int:
        return self.counts["lost"]

    @property
    def lost_tokens(self) -> int:
        return self.counts["lost_tokens"]

    def metrics(self) -> dict[str, float | int | list[int]]:
        """Keys of metrics.jsonl; what was not measured is left out."""
        values, counts = self.values, self.counts
        supervised = counts["supervised_tokens"]
        measured: dict[str, float | int | list[int]] = {
            "loss": values["loss"] / supervised,
            "ce": values["nll"] / supervised,
            "tokens": counts["tokens"],
            "supervised_tokens": supervised,
            "p_mean": values["p"] / supervised,
            "weight_mean": values["weight"] / supervised,
            "p_hist": self.p_hist,
        }
        if counts["lost"]:
            measured["lost_images"] = counts["lost"]
        if counts["ends"]:
            measured["eos_p"] = values["end_p"] / counts["ends"]
        if values["entropies"]:
            measured["entropy"] = values["entropy"] / values["entropies"]
        if values["skipped"]:
            measured["skipped_rows"] = int(values["skipped"])
        return measured


class Spikes:
    """Notices a loss far above those of the steps before it."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_SPIKE_STEPS)

    def look(self, step: int, ce: float) -> str | None:
        """A note about this step's cross-entropy, where it is a spike: above the median of the last 50 steps by more
        than 8 times their median distance from it, and by more than 0.1: near 0 a loss scatters over powers of ten.
        """
        seen, note = list(self._last), None
        self._last.append(ce)
        if len(seen) < _SPIKE_STEPS // 2:
            return None
        middle = statistics.median(seen)
        width = max(statistics.median(abs(value - middle) for value in seen), 0.01 * abs(middle))
        if ce > middle + max(_SPIKE_WIDTHS * width, _SPIKE_LEAST):
            note = f"step {step}: the loss jumped: cross-entropy {ce:.3g}, {middle:.3g} in the {len(seen)} steps before"
        return note

