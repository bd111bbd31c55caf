"""The learning rate as a pure function of the step."""

import math
from typing import Literal


def lr_factor(step: int, steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]) -> float:
    """What the peak rate is multiplied by in `step` (from 1) of `steps`.

    It rises linearly over the first ceil(warmup_ratio · steps) steps, reaches 1 at the last of them, then falls
    towards zero, which it would reach one step after the end: no step is spent at rate zero.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - 1 - warmup) / (steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
