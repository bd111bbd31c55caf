"""A model folder → its tokenizer, chat template, image numbers and weights; partitioned while loading under ZeRO-3."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import HfDeepSpeedConfig

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.families import FAMILIES, Family, family_of
from dft_mm.model.attention import PACKED, TOWER, pack_tower
from dft_mm.model.builtin import BUILTIN, builtin_folder
from dft_mm.model.chat_template import chat_template
from dft_mm.sections import read_json

_BUILTIN, _ADAPTER = "builtin:", "adapter_config.json"
# Name in the recipe, whether rows are packed -> name in transformers.
_ATTENTION = {
    ("sdpa", False): "sdpa",
    ("sdpa", True): PACKED,
    ("flash", False): "flash_attention_2",
    ("flash", True): "flash_attention_2",
    ("eager", False): "eager",
}
# What a hub folder may hold that is needed here: never code, never pickled weights.
_HUB_FILES_BESIDE_WEIGHTS = [
    "*.json", "*.jinja", "merges.txt", "tokenizer.model", "README.md", "LICENSE*", "NOTICE",
]  # fmt: skip
_HUB_FILES = [*_HUB_FILES_BESIDE_WEIGHTS, "*.safetensors"]


@dataclass(frozen=True)
class Processing:
    """All that turns conversations into model inputs."""

    folder: Path
    family: Family
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    """Jinja source: the model's own, or a default for a base text model without one."""
    image_token: str | None
    """The placeholder that stands for one merged patch; None for text models."""
    image_token_id: int | None
    image_config: dict[str, Any] | None
    """preprocessor_config.json; None for text models."""
    window_size: int | None
    """Side of a window of the vision tower's attention, in pixels; None for text models."""


def resolve(path: str, weights: bool = True) -> Path:
    """The local folder of `builtin:NAME`, of a local path, or of a hub id (fetched when it is not in the cache, without
    its weights where they are not wanted).
    """
    if path.startswith(_BUILTIN):
        name = path.removeprefix(_BUILTIN)
        if name not in BUILTIN:
            raise InputError(
                f"model.path: no built-in model {name!r}; there are {', '.join(_BUILTIN + b for b in BUILTIN)}"
            )
        return builtin_folder(name)
    local = Path(path)
    if is_model_folder(local):
        return local
    if local.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(f"model.path: {path!r} is neither a folder with a config.json nor a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=_HUB_FILES if weights else _HUB_FILES_BESIDE_WEIGHTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise InputError(
            f"model.path: {path!r} is no local folder and cannot be fetched from the hub: {error}"
        ) from error


def is_model_folder(folder: Path) -> bool:
    """Whether a model is there, or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", _ADAPTER))


def adapter_base(folder: Path) -> str | None:
    """The model that the adapter in a folder belongs to, as `model.path` calls it; None where there is no adapter."""
    path = folder / _ADAPTER
    return read_json(path, "adapter config").get("base_model_name_or_path") if path.is_file() else None


def check_whole(folder: Path, where: str = "model.path") -> None:
    """Raises InputError for the folder of an adapter, where a model with all its weights is needed."""
    if (folder / _ADAPTER).is_file():
        raise InputError(
            f"{where}: {folder} is an adapter; `dft-mm export RUN --merge --out DIR` makes it a model with all weights"
        )


def _config_folder(folder: Path) -> Path:
    """Where a model's config.json lies: that of an adapter beside its base's weights."""
    base = None if (folder / "config.json").is_file() else adapter_base(folder)
    if base is None:
        return folder
    try:
        return resolve(base, weights=False)
    except InputError as error:
        told = str(error).removeprefix("model.path: ")
        raise InputError(f"{folder}: the base of this adapter is not to be had: {told}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a model folder, or of an adapter's base."""
    return AutoConfig.from_pretrained(_config_folder(folder))


def read_family(folder: Path) -> Family:
    """The family of a model folder, or of an adapter's base; raises InputError for one that is not supported."""
    path = _config_folder(folder) / "config.json"
    try:
        model_type = read_json(path, "model config")["model_type"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a model config with a model_type ({error!r})") from error
    family = family_of(model_type)
    if family is None:
        known = ", ".join(f"{f.model_type} ({f.name})" for f in FAMILIES)
        raise InputError(f"{path}: model_type {model_type!r} is not supported; there are {known}")
    return family


def load_processing(path: str | Path, weights: bool = True) -> Processing:
    """Tokenizer, chat template and image numbers; of a hub id the weights are fetched along unless told otherwise."""
    folder = resolve(str(path), weights)
    family = read_family(folder)
    # transformers makes an empty tokenizer of a folder without one, and says nothing.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InputError(f"{folder}: has no tokenizer (tokenizer.json); copy the base model's tokenizer files there")
    config = read_config(folder)
    try:
        # With the config of its base, an adapter's tokenizer is of the class that the base's is.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: needs a tokenizer.json (a fast tokenizer)")
    image_token_id = image_token = image_config = window_size = None
    if family.has_vision:
        image_config = read_json(folder / "preprocessor_config.json", "model file")
        image_token_id, window_size = config.image_token_id, config.vision_config.window_size
        image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    template = chat_template(folder, family, tokenizer)
    return Processing(folder, family, tokenizer, template, image_token, image_token_id, image_config, window_size)


def fingerprint(folder: Path) -> str:
    """Of a folder's weights, without reading all of them: one page of each 16 MiB tells one training from another."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, 16 * 2**20):
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()


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
