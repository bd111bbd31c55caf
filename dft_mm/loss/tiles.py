"""What the head does with one tile of logits, in torch: fold it into running sums, and turn it into its gradient.

Axes: R rows of the tile, C columns of the vocabulary in it, K most probable tokens.

`triton_tiles` has `fold` and `gradient` too, for CUDA and objectives without a reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sums:
    """Softmax sums over the columns that were folded in so far, of R rows."""

    top: Tensor
    """(R, 1): the largest logit."""
    total: Tensor
    """(R, 1): Σ exp(z - top)."""
    at_target: Tensor
    """(R, 1): the target's logit."""
    moment: Tensor | None = None
    """(R, 1): Σ exp(z - top) · (z - top), where the entropy is wanted."""
    largest: Tensor | None = None
    """(R, ≤ K): the largest logits, falling, where they are wanted."""
    cross: Tensor | None = None
    """(R, 1), of a reference: Σ exp(z - top) · (z - z of the model), where the divergence is wanted."""

    @classmethod
    def start(cls, like: Tensor, entropy: bool = False, largest: bool = False, cross: bool = False) -> "Sums":
        """`like`: (R, …) of the type of the logits."""

        def column(value: float) -> Tensor:
            return like.new_full((len(like), 1), value)

        return cls(
            column(torch.finfo(like.dtype).min),
            column(0.0),
            column(0.0),
            column(0.0) if entropy else None,
            like.new_empty((len(like), 0)) if largest else None,
            column(0.0) if cross else None,
        )

    @property
    def nll(self) -> Tensor:
        """(R,). Differences of logits first: at ±1e4 the sum top + log(total) would lose three digits."""
        return (self.total.log() - (self.at_target - self.top)).squeeze(1)

    @property
    def entropy(self) -> Tensor:
        """(R,): -Σ p log p."""
        return (self.total.log() - self.moment / self.total).squeeze(1)

    @property
    def log_largest(self) -> Tensor:
        """(R, K): the largest log-probabilities, falling."""
        return (self.largest - self.top) - self.total.log()

    def divergence(self, model: "Sums") -> Tensor:
        """(R,): KL(self || model)."""
        return (self.cross / self.total + (model.top - self.top) + (model.total / self.total).log()).squeeze(1)


def fold(z: Tensor, sums: Sums, targets: Tensor, start: int, top_k: int = 0, model_z: Tensor | None = None) -> None:
    """Add a tile z (R, C) of columns from `start` to the sums; z becomes exp(z - top).

    `model_z`: where z is a reference's, the model's logits of the same tile.
    """
    index, inside = _within(targets, start, z.shape[1])
    torch.where(inside, z.gather(1, index), sums.at_target, out=sums.at_target)
    keep_largest(z, sums, top_k)
    top = torch.maximum(sums.top, z.amax(1, keepdim=True))
    shrunk = (sums.top - top).exp_()
    difference = z - model_z if sums.cross is not None else None
    if sums.moment is None:
        z.sub_(top).exp_()
    else:
        shifted = z.sub_(top)
        exponential = shifted.exp()
        # What was folded in before is measured from the old top.
        sums.moment = shrunk * (sums.moment + (sums.top - top) * sums.total)
        sums.moment += shifted.mul_(exponential).sum(1, keepdim=True)
        z.copy_(exponential)
    sums.total = sums.total * shrunk + z.sum(1, keepdim=True)
    if difference is not None:
        sums.cross = sums.cross * shrunk + difference.mul_(z).sum(1, keepdim=True)
    sums.top = top


def keep_largest(z: Tensor, sums: Sums, top_k: int) -> None:
    """Keep the largest logits of those kept so far and of a tile."""
    if sums.largest is not None:
        both = torch.cat([sums.largest, z.topk(min(top_k, z.shape[1]), dim=1).values], dim=1)
        sums.largest = both.topk(min(top_k, both.shape[1]), dim=1).values


def gradient(
    z: Tensor,
    sums: Sums,
    slope: Tensor,
    targets: Tensor,
    start: int,
    scale: Tensor,
    fresh: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Turn a tile into scale · softmax - slope · onehot, in place unless `dtype` is another type.

    Args:
        z: (R, C) logits, or what `fold` left of the only tile of these rows.
        slope, scale: (R, 1).
        fresh: z holds logits.
        dtype: of the result; None: that of z.
    """
    if fresh:
        z.sub_(sums.top).exp_()
    index, inside = _within(targets, start, z.shape[1])
    z.mul_(scale / sums.total).scatter_add_(1, index, torch.where(inside, -slope, 0.0))
    return z if dtype is None else z.to(dtype)


def _within(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """targets (R,) → their index (R, 1) in a tile's columns, and whether they are in it (else the index is moot)."""
    index = targets[:, None] - start
    clamped = index.clamp(0, width - 1)
    return clamped, index == clamped
