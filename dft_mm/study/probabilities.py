"""What a model gives to the tokens that it would learn: the probability of each, on a sample of the training rows.

Rows, packing and loss head are those of training, so a probe of the rows of a run's first step has that step's numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dft_mm.config import Recipe
from dft_mm.data.dataset import Dataset
from dft_mm.data.plan import epoch_order, heldout_micro_batches
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.model.lora import load_with_adapter
from dft_mm.model.processing import Processing
from dft_mm.progress import progress
from dft_mm.train.feed import make_collator
from dft_mm.train.module import Trainable

_LEAST = 16
"""Rows of a small source beside large ones: fewer say nothing about it."""


@dataclass(frozen=True)
class Probabilities:
    """N supervised tokens of the R rows of a sample."""

    p: np.ndarray
    """(N,) float64: the model's probability of each; computed in float32."""
    targets: np.ndarray
    """(N,) int64: the tokens."""
    rows: np.ndarray
    """(N,) int64: number of each one's row in the sample."""
    vocabulary: int
    """How many tokens share the probability."""


def choose_rows(dataset: Dataset, weights: Sequence[float], rows: int, seed: int) -> np.ndarray:
    """(R,) indices, R ≤ rows, in file order; the same each time, and those of a smaller sample among them.

    Sources get shares as an epoch gives them, but each at least `_LEAST` rows where there is room for all.
    """
    of_source = [np.flatnonzero(dataset.sources == number) for number in range(len(weights))]
    floor = min(_LEAST, rows // max(1, len(weights)))
    counts = [min(floor, len(indices)) for indices in of_source]
    while sum(counts) < min(rows, len(dataset)):
        wanting = [
            weight * len(indices) / (count + 1) if count < len(indices) else 0.0
            for weight, indices, count in zip(weights, of_source, counts)
        ]
        counts[int(np.argmax(wanting))] += 1  # d'Hondt: to who would still have most for each
    chosen = [indices[epoch_order(len(indices), seed, 0)[:count]] for indices, count in zip(of_source, counts)]
    return np.sort(np.concatenate(chosen))


def load_probed(path: str, recipe: Recipe, device: torch.device) -> Trainable:
    """A model, or an adapter's base with the adapter added, with its loss head, on the device.

    On a CPU in float32 whatever the recipe says: bfloat16 is far slower there.
    """
    dtype = recipe.model.dtype if device.type == "cuda" else "float32"
    model = load_with_adapter(path, dtype, attention=recipe.model.attention, packed=recipe.data.pack)
    return Trainable(model).to(device).eval()


@torch.no_grad()
def measure(
    module: Trainable, dataset: Dataset, indices: np.ndarray, recipe: Recipe, processing: Processing
) -> Probabilities:
    """The probabilities of the rows `indices` in order; raises InputError when there is none, or one is no number."""
    device = next(module.parameters()).device
    collate, objective = make_collator(recipe, processing), Objective("sft")
    groups = heldout_micro_batches(dataset.lengths[indices], 1, recipe.train.micro_tokens, recipe.data.pack)[0]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    lost: list[str] = []
    with progress("probe", len(indices)) as advance:
        for group in groups:
            examples = [dataset[int(indices[number])] for number in group]
            batch = collate(examples)
            counts = [int(example.supervised[1:].sum()) for example in examples]
            on_device = batch.to(device)
            _, nll, *_ = module(on_device.rows, on_device.targets, objective, **on_device.model_inputs)
            p = torch.exp(-nll.double()).cpu().numpy()
            parts.append((p, batch.targets.numpy(), np.repeat(group, counts)))
            lost += batch.lost
            advance(len(group))
    if lost:
        log.warning("%d rows are not measured, their pictures are lost: %s", len(lost), "; ".join(lost[:3]))
    p, targets, rows = (np.concatenate(columns) for columns in zip(*parts))
    if not len(p):
        raise InputError("no token of the sample is learned from: its rows have no answers, or their pictures are lost")
    if not np.isfinite(p).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(p))} of {len(p)} probabilities are not finite: the model's weights are "
            "broken, or model.dtype is too narrow for them"
        )
    order = np.argsort(rows, kind="stable")
    vocabulary = module.core.lm_head.weight.shape[0]
    return Probabilities(p[order], targets[order], rows[order], vocabulary)
