"""Started by DeepSpeed's launcher on two ranks: the random mixes, packed, at ZeRO-3 by plain SGD; rank 0 writes the
whole gradient of every step. Every so many steps the parameters are compared with plain torch's, and go on from these:
small differences would grow, and gradients at other places be compared.
"""

import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad, safe_set_full_fp32_param
from many_mixes import BLOCK, LR, new_model, steps
from mixed_batches import END_ID, IMAGES, LOSSES, PAD_ID, WINDOW
from tiny_models import IMAGE_ID

from dft_mm import dist
from dft_mm.data.collate import Collator
from dft_mm.loss.family import Objective
from dft_mm.model.attention import PACKED, pack_tower
from dft_mm.model.export import gather_state
from dft_mm.train.module import Trainable
from dft_mm.train.step import train_step

CONFIG = {
    "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 0.0,
    "zero_allow_untested_optimizer": True, "data_types": {"grad_accum_dtype": "fp32"},
    # persistence 0: else such small parameters are never partitioned and the test would prove nothing
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}  # fmt: skip


class Watched:
    """The engine, and the gradients of which it makes its updates: (parameters,) float32 a step, on rank 0."""

    def __init__(self, engine):
        self._engine, self.gradients = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def __call__(self, *args, **kwargs):
        return self._engine(*args, **kwargs)

    def step(self):
        if self._engine.is_gradient_accumulation_boundary():
            # Under ZeRO the optimizer divides by its loss scale, which the step sets where pictures are lost.
            scale = self._engine.optimizer.loss_scale
            whole = torch.cat([safe_get_full_grad(p).flatten() for p in self._engine.module.parameters()])
            if dist.is_main():
                self.gradients.append(whole / scale)
        self._engine.step()


def put(state, model):
    """Give the parameters, and the optimizer's copies of them, other values."""
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(state[name])
        safe_set_full_fp32_param(parameter, state[name])


def main(folder):
    dist.init()
    starts = torch.load(folder / "starts.pt", weights_only=True)
    model = new_model()
    model.set_attn_implementation(PACKED)
    pack_tower(model)
    module = Trainable(model).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    engine = Watched(deepspeed.initialize(model=module, optimizer=optimizer, config=CONFIG)[0])
    collate, metrics, ends = Collator(PAD_ID, IMAGE_ID, IMAGES, WINDOW, pack=True), [], []
    for number, ranks in enumerate(steps()):
        if number % BLOCK == 0:
            put(starts[number // BLOCK], module.model)
        batches = [collate(examples) for examples in ranks[dist.rank()]]
        every = [e for micro_batches in ranks for examples in micro_batches for e in examples]
        tokens = sum(int(e.supervised[1:].sum()) + e.lost_tokens for e in every)  # as the plan counts them
        sums, norm = train_step(engine, batches, len(batches), tokens, Objective(LOSSES), END_ID)
        metrics.append(sums.metrics() | {"grad_norm": norm})
        if (number + 1) % BLOCK == 0:
            ends.append(gather_state(module.model, dist.is_main()))
    if dist.is_main():
        gradients = torch.stack(engine.gradients)
        torch.save({"gradients": gradients, "ends": ends, "metrics": metrics}, folder / "result.pt")


if __name__ == "__main__":
    main(Path(next(word for word in sys.argv[1:] if not word.startswith("--local_rank"))))
