"""Steps of random mixes for a tiny Qwen2.5-VL on two ranks: text alone, one or more pictures of any shape, nothing to
learn, lost pictures, empty micro-batches, two losses; and the same steps in plain torch.
"""

import torch
from mixed_batches import plain_loss
from tiny_models import IMAGE_ID, tiny_vl

from dft_mm.batch import Example

RANKS, STEPS, BLOCK, LR = 2, 500, 50, 0.005


class Draw:
    """Random numbers of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low, high):
        """low ≤ number ≤ high"""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_in(self, count):
        return self.number(1, count) == 1

    def tensor(self, low, high, shape, dtype=torch.int64):
        return torch.randint(low, high, shape, generator=self.generator, dtype=dtype)


def example(draw, name):
    """0 to 3 pictures, each of 1 to 16 tokens, then text of which some of the last tokens, or none, are learned."""
    length = draw.number(2, 24)
    ids, supervised = [draw.tensor(2, 490, (1,))], draw.number(0, length - 1) if draw.one_in(2) else 0
    patches, grids = [], []
    for _ in range(draw.number(1, 3) if draw.one_in(3) else 0):
        rows, columns = 2 * draw.number(1, 4), 2 * draw.number(1, 4)
        tokens = rows * columns // 4
        ids += [torch.tensor([502]), torch.full((tokens,), IMAGE_ID), torch.tensor([503])]
        patches.append(draw.tensor(0, 256, (rows * columns, 588), torch.uint8))
        grids.append([1, rows, columns])
    ids = torch.cat([*ids, draw.tensor(2, 490, (length,))])
    lost = bool(patches) and draw.one_in(6)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[len(ids) - supervised :] = not lost
    pictures = (torch.cat(patches), torch.tensor(grids)) if patches else (None, None)
    return Example(name, "test", ids, mask, *pictures, draw.number(0, 1), *(("gone", supervised) if lost else ()))


def steps(count=STEPS, seed=0):
    """[step][rank][micro-batch] → examples; ranks have equally many micro-batches, and a step something to learn."""
    draw, made = Draw(seed), []
    while len(made) < count:
        micro = draw.number(1, 3)
        step = [
            [[example(draw, f"{len(made)}-{rank}-{m}-{n}") for n in range(draw.number(0, 3))] for m in range(micro)]
            for rank in range(RANKS)
        ]
        if any(e.supervised.any() for rank in step for examples in rank for e in examples):
            made.append(step)
    return made


def new_model():
    """The same weights each time, larger than the usual 0.02, so that probabilities differ between tokens."""
    return tiny_vl(tied=True, initializer_range=0.1)


def plain_gradient(model, step):
    """(parameters,) without a line of the package: each example alone, full logits, one backward of the mean."""
    model.zero_grad()
    plain_loss(model, [e for micro_batches in step for micro in micro_batches for e in micro]).backward()
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
