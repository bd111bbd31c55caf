"""What a step tells about itself: sums over its tokens, kept on the device and added up over ranks once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dft_mm import dist
from dft_mm.batch import Batch

P_BINS = 10


@dataclass(frozen=True)
class Sums:
    """Sums over the supervised tokens of a step; adding is in place."""

    values: Tensor
    """(6,) float64: loss, nll, weight, p, p of turn-end tokens, ranks that were asked to stop."""
    counts: Tensor
    """(P_BINS + 5,) int64: histogram of p over [0, 1]; turn-end tokens, supervised tokens, real tokens, examples whose
    picture was lost, supervised tokens of these."""

    @classmethod
    def zeros(cls, device: torch.device) -> "Sums":
        values = torch.zeros(6, dtype=torch.float64, device=device)
        return cls(values, torch.zeros(P_BINS + 5, dtype=torch.int64, device=device))

    def add(self, outputs: tuple[Tensor, Tensor, Tensor, Tensor], batch: Batch, end_id: int) -> None:
        """outputs: loss (), nll, weight, target (M,) of one micro-batch, as the module returns them."""
        loss, nll, weight, targets = outputs
        nll = nll.double()
        p = torch.exp(-nll)
        is_end = targets == end_id
        self.values[:5] += torch.stack(
            [loss.detach().double(), nll.sum(), weight.double().sum(), p.sum(), (p * is_end).sum()]
        )
        # p = 1 belongs to the last bin; a NaN goes anywhere, because it stops the run.
        bins = (p.nan_to_num() * P_BINS).long().clamp_(0, P_BINS - 1)
        self.counts[:P_BINS] += torch.bincount(bins, minlength=P_BINS)
        self.counts[P_BINS] += is_end.sum()
        self.counts[P_BINS + 1] += targets.numel()
        self.counts[P_BINS + 2] += batch.tokens
        self.counts[P_BINS + 3] += len(batch.lost)
        self.counts[P_BINS + 4] += batch.lost_tokens

    def ask_to_stop(self) -> None:
        """Add this rank's wish to stop, so that the sum over ranks is one joint decision."""
        self.values[5] += 1

    def over_ranks(self) -> "Sums":
        """The sums of all ranks; a collective."""
        return Sums(dist.sum_over_ranks(self.values).cpu(), dist.sum_over_ranks(self.counts).cpu())

    @property
    def finite(self) -> bool:
        return bool(self.values.isfinite().all())

    @property
    def stop(self) -> bool:
        return bool(self.values[5] > 0)

    @property
    def supervised_tokens(self) -> int:
        return int(self.counts[P_BINS + 1])

    @property
    def lost(self) -> int:
        return int(self.counts[P_BINS + 3])

    @property
    def lost_tokens(self) -> int:
        return int(self.counts[P_BINS + 4])

    def metrics(self) -> dict[str, float | int | list[int]]:
        """Keys of metrics.jsonl; what was not measured is left out."""
        loss, nll, weight, p, end_p, _ = self.values.tolist()
        *hist, ends, supervised, tokens, lost, _ = self.counts.tolist()
        measured: dict[str, float | int | list[int]] = {
            "loss": loss / supervised,
            "ce": nll / supervised,
            "tokens": tokens,
            "supervised_tokens": supervised,
            "p_mean": p / supervised,
            "weight_mean": weight / supervised,
            "p_hist": hist,
        }
        if lost:
            measured["lost_images"] = lost
        if ends:
            measured["eos_p"] = end_p / ends
        return measured
