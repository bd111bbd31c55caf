"""The contestants of `step`: each is built from the shared setup, makes its steps under a watch, and is taken apart."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dft_mm.batch import IGNORE_INDEX
from dft_mm.loss.family import Objective
from dft_mm.model.freeze import freeze, parameter_groups
from dft_mm.model.load import load_model
from dft_mm.train.build import build_module
from dft_mm.train.deepspeed_config import deepspeed_config
from dft_mm.train.engine import build_engine
from dft_mm.train.feed import train_batches
from dft_mm.train.step import train_step
from scripts.bench.measure import REPO
from scripts.bench.step_setup import Setup
from scripts.bench.watch import Watch

Contestant = Callable[[Setup, Watch], float | None]
"""Makes the watch's steps; returns the seconds of the timed ones in which there was no data, None if it cannot tell."""

OURS, ALONE, PLAIN, TRL = "ours, ZeRO-3", "ours, no DeepSpeed", "plain, ZeRO-3", "TRL, ZeRO-3"


def ours(setup: Setup, watch: Watch, stage: int) -> float:
    """The training loop's own step: packed rows, its loss head, telemetry included."""
    recipe = setup.recipe.model_copy(update={"deepspeed": str(stage_file(setup, stage))})
    config = deepspeed_config(recipe)
    module = build_module(recipe, setup.processing.family, config)
    engine = build_engine(module, setup.processing.family, recipe, config)
    waited = our_steps(setup, watch, engine)
    engine.destroy()
    return waited


def alone(setup: Setup, watch: Watch) -> float:
    """The same step without DeepSpeed: what ZeRO on one device is measured against."""
    module = build_module(setup.recipe, setup.processing.family, {}).to(setup.device)
    return our_steps(setup, watch, Alone(module, setup))


def stage_file(setup: Setup, stage: int) -> Path:
    """The shipped config of a ZeRO stage; the one of stage 0 is empty."""
    if stage:
        return REPO / f"ds_configs/zero{stage}.json"
    path = setup.folder / "stage0.json"
    path.write_text("{}", encoding="utf-8")
    return path


def our_steps(setup: Setup, watch: Watch, engine: Any) -> float:
    data, waited = setup.data, 0.0
    batches = train_batches(data, setup.recipe, 1)
    for step in range(1, watch.left + 1):
        batches.waited_s = 0.0
        with watch.step():
            count = len(data.plan.micro_batches(step)[0])
            tokens = int(data.train.supervised[data.plan.examples(step)].sum())
            objective = Objective(data.losses, step)
            train_step(engine, itertools.islice(batches, count), count, tokens, objective, data.end_id)
        waited += batches.waited_s if step in watch.timed else 0.0
    return waited


class Alone:
    """What the step asks of an engine, with nothing partitioned: masters, gradients and moments in float32."""

    def __init__(self, module: nn.Module, setup: Setup) -> None:
        self.module, self.device, self._clip = module, setup.device, setup.recipe.optim.clip
        optim = setup.recipe.optim
        groups = parameter_groups(module.model, setup.processing.family, optim)
        self._pairs = []
        for group in groups:
            group["params"], weights = [weight.detach().float().clone() for weight in group["params"]], group["params"]
            self._pairs += zip(weights, group["params"])
        for weight, master in self._pairs:
            master.grad = torch.zeros_like(master)
            weight.register_post_accumulate_grad_hook(partial(_collect, master))
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self._last = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self._last = last

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self) -> None:
        if not self._last:
            return
        weights, masters = zip(*self._pairs)
        self._norm = torch.nn.utils.clip_grad_norm_(masters, self._clip)
        self.optimizer.step()
        torch._foreach_copy_(weights, masters)
        torch._foreach_zero_([master.grad for master in masters])

    def zero_optimization_stage(self) -> int:
        return 2  # as there: gradients are the engine's own affair, and so is their norm

    def get_global_grad_norm(self) -> Tensor:
        return self._norm

    def was_step_applied(self) -> bool:
        return True


def _collect(master: Tensor, weight: Tensor) -> None:
    master.grad += weight.grad
    weight.grad = None


def plain(setup: Setup, watch: Watch) -> float:
    """transformers' model and DeepSpeed: padded rows in order, logits of all of them, cross-entropy times p."""
    import deepspeed

    recipe, data, family = setup.recipe, setup.data, setup.processing.family
    config = deepspeed_config(recipe)
    model = load_model(recipe.model.path, recipe.model.dtype, deepspeed_config=config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.model.freeze:
        freeze(model, family, recipe.model.freeze)
    groups = parameter_groups(model, family, recipe.optim)
    optimizer = torch.optim.AdamW(groups, lr=recipe.optim.lr, betas=recipe.optim.betas, fused=True)
    engine, *_ = deepspeed.initialize(model=model.train(), optimizer=optimizer, config=config)
    steps = range(1, watch.left + 1)
    loader = DataLoader(
        data.train,
        batch_sampler=[group for step in steps for group in setup.in_order(step)],
        collate_fn=setup.padded,
        num_workers=recipe.data.workers,
        pin_memory=setup.device.type == "cuda",
    )
    batches, waited = iter(loader), 0.0
    for step in steps:
        count = len(setup.in_order(step))
        tokens = int(data.train.supervised[data.plan.examples(step)].sum())
        lacking = 0.0
        with watch.step():
            for number in range(1, count + 1):
                start = time.perf_counter()
                inputs = {name: value.to(setup.device, non_blocking=True) for name, value in next(batches).items()}
                lacking += time.perf_counter() - start
                engine.set_gradient_accumulation_boundary(number == count)
                labels = inputs.pop("labels")
                logits = engine(**inputs, use_cache=False).logits
                engine.backward(plain_loss(logits, labels) / tokens, scale_wrt_gas=False)
                engine.step()
        waited += lacking if step in watch.timed else 0.0
    engine.destroy()
    return waited


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (B, T, V), labels (B, T) → the summed loss of DFT, as trainers commonly write it."""
    flat, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    nll = F.cross_entropy(flat, targets, reduction="none", ignore_index=IGNORE_INDEX)
    return (nll * torch.exp(-nll).detach()).sum()


def trl(setup: Setup, watch: Watch) -> None:
    """TRL's SFTTrainer with its loss_type dft and its fused output layer, its defaults otherwise; the rows are prepared
    already, so that its own tokenising and decoding are left out.
    """
    import datasets
    from transformers import TrainerCallback
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):
        """A step begins where the last one ended, so that waiting for data is within it."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.open()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.around.__exit__(None, None, None)
            if watch.left:
                self.open()

        def open(self) -> None:
            self.around = watch.step()
            self.around.__enter__()

    recipe, setting = setup.recipe, setup.setting
    order = [int(index) for step in range(1, watch.left + 1) for index in setup.data.plan.examples(step)]
    config = json.loads((REPO / "ds_configs/zero3.json").read_text(encoding="utf-8"))
    narrow = recipe.model.dtype == "bfloat16"
    filled_in = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    arguments = SFTConfig(
        output_dir=str(setup.folder / "trl"),
        loss_type="dft",
        per_device_train_batch_size=setting.padded_rows,
        gradient_accumulation_steps=setting.batch_size // setting.padded_rows,
        max_steps=watch.left,
        learning_rate=recipe.optim.lr,
        bf16=narrow,
        use_cpu=setup.device.type == "cpu",
        deepspeed=config | dict.fromkeys(filled_in, "auto") | {"bf16": {"enabled": narrow}},
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=recipe.data.workers,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model = load_model(recipe.model.path, recipe.model.dtype)
    if recipe.model.freeze:
        freeze(model, setup.processing.family, recipe.model.freeze)
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_dict({"index": order}),
        data_collator=partial(collate, setup),
        processing_class=setup.processing.tokenizer,
        callbacks=[Steps()],
    )
    trainer.train()
    trainer.model_wrapped.destroy()
    unset_hf_deepspeed_config()


def collate(setup: Setup, rows: Sequence[dict[str, int]]) -> dict[str, Tensor]:
    return setup.padded([setup.data.train[row["index"]] for row in rows])


CONTESTANTS: dict[str, Contestant] = {
    OURS: partial(ours, stage=3),
    "ours, ZeRO-2": partial(ours, stage=2),
    "ours, stage 0": partial(ours, stage=0),
    ALONE: alone,
    PLAIN: plain,
    TRL: trl,
}
