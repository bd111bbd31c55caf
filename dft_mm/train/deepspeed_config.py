"""Recipe + DeepSpeed JSON → DeepSpeed's config. Every setting has one owner; the JSON has what only DeepSpeed knows."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dft_mm import dist
from dft_mm.config import Recipe
from dft_mm.errors import InputError
from dft_mm.sections import read_json

# DeepSpeed key -> the recipe key that owns it
_OWNED = {
    "optimizer": "optim",
    "lr": "optim.lr",
    "scheduler": "optim.schedule",
    "train_batch_size": "optim.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_tokens",
    "gradient_accumulation_steps": "optim.batch_size",
    "gradient_clipping": "optim.clip",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "communication_data_type": "model.dtype",
}
_STAGES = (0, 2, 3)


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """The JSON with the recipe's values written in; raises InputError when it says what the recipe says, or "auto"."""
    path = Path(recipe.deepspeed)
    way_out = "the recipe's `deepspeed` names one, such as PATH/TO/dft_mm/ds_configs/zero3.json of the repository"
    config = read_json(path, "DeepSpeed config", way_out)
    if not isinstance(config, dict):
        raise InputError(f"{path}: a DeepSpeed config is a JSON object")
    # The innermost owner is named: of optimizer.params.lr it is optim.lr that the user has to set.
    owned = [(dotted, leaf) for dotted, leaf, _ in _walk(config) if leaf in _OWNED]
    if owned:
        dotted, leaf = max(owned, key=lambda entry: entry[0].count("."))
        raise InputError(f"{path}: {dotted!r} is set by the recipe, as {_OWNED[leaf]}; remove it from the JSON")
    for dotted, _, value in _walk(config):
        if value == "auto":
            raise InputError(f'{path}: {dotted!r} is "auto", which nothing here fills in; write a value or remove it')
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in _STAGES:
        raise InputError(f"{path}: zero_optimization.stage is {stage!r}; {', '.join(map(str, _STAGES))} are supported")
    bf16 = recipe.model.dtype == "bfloat16"
    if stage == 0 and bf16:
        raise InputError(
            f"{path}: DeepSpeed cannot accumulate bfloat16 gradients in float32 at stage 0; use stage 2 or 3"
        )
    _check_offloaded_activations(config, recipe, path)
    if recipe.model.lora and recipe.model.lora.quantize:
        _check_quantized(stage, path)
    return config | {
        # The step sets accumulation boundaries itself, so both are 1 here whatever a step holds.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optim.clip,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }


def _check_offloaded_activations(config: dict[str, Any], recipe: Recipe, path: Path) -> None:
    """What DeepSpeed can be asked about activations here is whether they wait on the CPU."""
    asked = config.get("activation_checkpointing")
    if asked is None:
        return
    if not isinstance(asked, dict):
        raise InputError(f'{path}: activation_checkpointing is {asked!r}, not a section: {{"cpu_checkpointing": true}}')
    others = [key for key, value in asked.items() if key != "cpu_checkpointing" and value]
    if others:
        raise InputError(
            f"{path}: activation_checkpointing.{others[0]} is not supported: activations are recomputed layer by layer "
            "and whole; of this section only cpu_checkpointing may be on"
        )
    if asked.get("cpu_checkpointing") and not recipe.model.gradient_checkpointing:
        raise InputError(
            f"{path}: activation_checkpointing.cpu_checkpointing has no effect without model.gradient_checkpointing; "
            "switch that on or this off"
        )


def _check_quantized(stage: int, path: Path) -> None:
    """A base in 4 bits cannot be partitioned, and is tried on one process only."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.lora.quantize: nf4 needs bitsandbytes; install the extra: pip install 'dft_mm[qlora]'")
    if stage == 3 or dist.world_size() > 1:
        raise InputError(
            f"model.lora.quantize: nf4 is for one process at ZeRO stage 0 or 2; this run has {dist.world_size()} and "
            f"stage {stage} ({path}). Use deepspeed: ds_configs/zero2.json and one GPU, or leave quantize out"
        )


def _walk(value: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, last key, value) of every entry of nested mappings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}", key, inner
            yield from _walk(inner, f"{prefix}{key}.")


def zero_stage(config: dict[str, Any]) -> int:
    return config.get("zero_optimization", {}).get("stage", 0)
