"""Low-rank adapters (arXiv 2106.09685) through peft: put them in, take them out, merge them."""

import re
from pathlib import Path

import torch
import transformers
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from dft_mm.config import LoraConfig
from dft_mm.errors import InputError
from dft_mm.families import Family
from dft_mm.model.load import read_family


def add_lora(model: PreTrainedModel, family: Family, config: LoraConfig) -> PeftModel:
    """The model with adapters on the linear layers of its language part; everything else is frozen.

    Raises InputError when `targets` names a layer that is not there.
    """
    inside = [
        name for name, module in model.named_modules()
        if name.startswith(family.lora_scope) and isinstance(module, nn.Linear)
    ]  # fmt: skip
    leaves = sorted({name.rsplit(".", 1)[-1] for name in inside})
    targets = (
        leaves
        if config.targets == "all-linear"
        else [config.targets]
        if isinstance(config.targets, str)
        else config.targets
    )
    unknown = sorted(set(targets) - set(leaves))
    if unknown:
        raise InputError(
            f"model.lora.targets: no linear layer {unknown[0]!r} in the language model; there are {', '.join(leaves)}"
        )
    pattern = re.escape(family.lora_scope) + r".*\.(" + "|".join(map(re.escape, targets)) + ")"
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern
    )
    return get_peft_model(model, peft_config)


def adapter_config(folder: Path, name: str, config: LoraConfig) -> PeftConfig:
    """What peft writes beside the adapter of the model in `folder`, without loading its weights.

    `name` is how the base model is called in it: the recipe's model.path.
    """
    family = read_family(folder)
    with torch.device("meta"):
        skeleton = getattr(transformers, family.model_class)(AutoConfig.from_pretrained(folder))
    described = add_lora(skeleton, family, config).peft_config["default"]
    described.base_model_name_or_path = name
    described.inference_mode = True
    return described


def adapter_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's own tensors out of a model's, under the names that peft writes."""
    return {name.replace(".default.", "."): tensor for name, tensor in state.items() if ".lora_" in name}


def merge(model: PreTrainedModel, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of a plainly loaded base model with the saved adapter added to them."""
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
