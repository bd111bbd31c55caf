"""Started by DeepSpeed's launcher, or alone: the twenty mixed steps at several stages, parameters written by rank 0."""

import sys
from pathlib import Path

import deepspeed
import torch
from mixed_batches import (
    ANCHORED,
    END_ID,
    IMAGES,
    LOSSES,
    PAD_ID,
    WINDOW,
    lr,
    mixed_model,
    reference_model,
    steps,
    with_adapters,
)  # fmt: skip
from tiny_models import IMAGE_ID

from dft_mm import dist
from dft_mm.data.collate import Collator
from dft_mm.loss.family import Objective
from dft_mm.model.attention import PACKED, pack_tower
from dft_mm.model.export import gather_state
from dft_mm.train.module import Trainable
from dft_mm.train.step import train_step


def run(stage, kind, optimizer_name):
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True, "data_types": {"grad_accum_dtype": "fp32"},
        # persistence 0: else such small parameters are never partitioned and the test would prove nothing
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }  # fmt: skip
    pack = kind != "padded"
    module = trainable(kind, pack)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if optimizer_name == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=lr(kind), momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    collate = Collator(PAD_ID, IMAGE_ID, IMAGES, WINDOW, pack=pack)
    objective = Objective(ANCHORED if kind in ("anchored", "adapters") else LOSSES)
    lines = []
    for ranks in steps():
        if dist.world_size() == 1:  # the whole step in one micro-batch
            mine = [[e for micro_batches in ranks for micro in micro_batches for e in micro]]
        else:
            mine = ranks[dist.rank()]
        every = [e for micro_batches in ranks for micro in micro_batches for e in micro]
        tokens = sum(int(e.supervised[1:].sum()) + e.lost_tokens for e in every)  # as the plan counts them
        batches = [collate(micro) for micro in mine]
        sums, norm = train_step(engine, batches, len(batches), tokens, objective, END_ID)
        lines.append({**sums.metrics(), "grad_norm": norm})
    state = gather_state(module.model, dist.is_main())
    return {"state": state, "metrics": lines}


def trainable(kind, pack):
    model = mixed_model(tied=kind == "tied")
    if kind == "adapters":
        model = with_adapters(model)
    module = Trainable(model, reference_model() if kind == "anchored" else None).train()
    for each in (module.core, module.reference):
        if pack and each is not None:
            each.set_attn_implementation(PACKED)
            pack_tower(each)
    return module


def main(out, runs):
    dist.init()
    for stage, kind, optimizer_name in runs:
        result = run(int(stage), kind, optimizer_name)
        if dist.is_main():
            torch.save(result, out / f"world{dist.world_size()}-stage{stage}-{kind}-{optimizer_name}.pt")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), [word.split("-") for word in words[1:]])
