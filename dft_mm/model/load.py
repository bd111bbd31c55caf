"""A model folder → its weights; partitioned while loading under ZeRO-3."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.families import Family
from dft_mm.model.attention import PACKED, TOWER, pack_tower
from dft_mm.model.folder import check_whole, read_family, resolve

# Name in the recipe, whether rows are packed -> name in transformers.
_ATTENTION = {
    ("sdpa", False): "sdpa",
    ("sdpa", True): PACKED,
    ("flash", False): "flash_attention_2",
    ("flash", True): "flash_attention_2",
    ("eager", False): "eager",
}


def load_model(
    path: str | Path,
    dtype: str = "float32",
    attention: str = "sdpa",
    deepspeed_config: Mapping[str, Any] | None = None,
    quantize: Literal["nf4"] | None = None,
    packed: bool = False,
) -> PreTrainedModel:
    """The weights, on the CPU; with a ZeRO-3 `deepspeed_config` each rank holds only its share from the start, and with
    `quantize` they are put where they stay, in 4 bits. A model that is loaded `packed` takes packed batches, and no
    others.

    Raises InputError when the folder's weights do not fit its config: transformers would fill the rest with noise.
    """
    if (attention, packed) not in _ATTENTION:
        raise InputError(f"model.attention: {attention} mixes packed samples; take sdpa or flash, or data.pack: false")
    folder = resolve(str(path))
    check_whole(folder)
    family = read_family(folder)
    arguments = {"dtype": getattr(torch, dtype), "attn_implementation": _ATTENTION[attention, packed]}
    if quantize:
        arguments["quantization_config"] = _nf4(family, arguments["dtype"])
    # While this object lives, every from_pretrained partitions; it must not outlive this load.
    partitioning = HfDeepSpeedConfig(dict(deepspeed_config)) if deepspeed_config else None
    try:
        model, report = getattr(transformers, family.model_class).from_pretrained(
            folder, output_loading_info=True, **arguments
        )
    except (OSError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded as {family.model_class}: {error}") from error
    finally:
        del partitioning
    absent = {kind: sorted(report[f"{kind}_keys"]) for kind in ("missing", "mismatched") if report[f"{kind}_keys"]}
    if absent:
        shown = "; ".join(f"{kind} keys: {len(keys)}, such as {keys[0]}" for kind, keys in absent.items())
        raise InputError(f"{folder}: its weights do not fit its config.json ({shown})")
    if report["unexpected_keys"]:
        keys = sorted(report["unexpected_keys"])
        log.warning("%s holds %d weights that %s does not have, such as %s", folder, len(keys), family.name, keys[0])
    if quantize:
        _keep_layout(model)
    if family.has_vision:
        pack_tower(model, TOWER if attention == "sdpa" else None)
    return model.eval()


def _nf4(family: Family, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314) of linear layers, computed in `dtype`.

    Embeddings, output head and norms stay as they are, as in the paper. So do vision tower and projector: in 4 bits
    they cost Qwen2-VL its sight (unsloth issue 1347), and they are few: 0.7 of the 7B model's 8.3 billion weights.
    """
    others = [prefix.removesuffix(".") for part in family.parts if part != "language" for prefix in family.parts[part]]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=others,
    )


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing weights anew at the first pass in evaluation mode on CPUs with AVX512-BF16.

    That layout is for inference: computed in bfloat16 whatever the compute type is, and without a gradient, so that
    a run would learn nothing after its first held-out pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
