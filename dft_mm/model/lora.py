"""Low-rank adapters (arXiv 2106.09685) through peft: put them in, take them out, merge them."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from dft_mm.config import LoraConfig
from dft_mm.errors import InputError
from dft_mm.families import Family, part_of
from dft_mm.model.folder import adapter_base, read_family, resolve
from dft_mm.model.freeze import check_parts
from dft_mm.model.load import load_model

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel  # takes as long to import as torch: only where there are adapters


def add_lora(model: PreTrainedModel, family: Family, config: LoraConfig) -> "PeftModel":
    """The model with adapters on linear layers of the configured parts; everything else is frozen.

    Raises InputError for a part that the family does not have, and when `targets` names a layer that is not there.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    check_parts(config.parts, family, "model.lora.parts")
    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(family, f"{name}.weight") in config.parts
    ]  # fmt: skip
    targets = [config.targets] if isinstance(config.targets, str) else config.targets
    if targets != ["all-linear"]:
        unknown = [target for target in targets if not any(_is_called(name, target) for name in layers)]
        if unknown:
            there = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise InputError(
                f"model.lora.targets: no linear layer {unknown[0]!r} in {', '.join(config.parts)}; there are "
                f"{', '.join(there)}"
            )
        layers = [name for name in layers if any(_is_called(name, target) for target in targets)]
    # Whole names, of which peft takes a pattern: the parts of a model share the names of their layers, and the vision
    # tower those of a layer that is none of them (its convolution is a `proj`, too).
    pattern = "|".join(sorted(set(map(_of_any_block, layers))))
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern
    )
    return get_peft_model(model, peft_config)


def _is_called(name: str, target: str) -> bool:
    """Whether the last words of a dotted name are these."""
    return f".{name}".endswith(f".{target}")


def _of_any_block(name: str) -> str:
    """A pattern of a layer's name in which the numbers on the way stand for all numbers: one for all blocks."""
    *way, last = (re.escape(word) for word in name.split("."))
    return r"\.".join([*(r"\d+" if word.isdigit() else word for word in way), last])


def adapter_config(folder: Path, name: str, config: LoraConfig) -> "PeftConfig":
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
    return _merged(model, adapter).state_dict()


def load_with_adapter(path: str | Path, dtype: str = "float32", **how: Any) -> PreTrainedModel:
    """The model of a folder, as load_model loads it; for the folder of an adapter its base, with the adapter added."""
    base = adapter_base(folder := resolve(str(path)))
    return load_model(path, dtype, **how) if base is None else _merged(load_model(base, dtype, **how), folder)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a model with adapters put in."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)
