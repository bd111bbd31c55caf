"""Trained weights → a Hugging Face folder that plain transformers loads, with everything that decides its scores."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from dft_mm.model import card as model_card
from dft_mm.model.chat_template import FILE, own_template
from dft_mm.model.folder import read_family
from dft_mm.model.processing import load_processing

# Everything beside the weights is copied as it is, so tokenizer, template and processor equal the source's.
_COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", *model_card.LICENCES,
)  # fmt: skip


def gather_state(
    model: nn.Module, is_main: bool, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """All parameters whole and on the CPU, on rank 0; an empty dict elsewhere. Every rank calls it.

    One parameter at a time is gathered, so it works at every ZeRO stage and needs no room on the accelerator.
    """
    import deepspeed

    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if wanted(name):
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if is_main:
                    state[name] = parameter.detach().cpu().clone()
    return state


def write_model(
    state: Mapping[str, Tensor], source: Path, out: Path, dtype: str, provenance: Mapping[str, Any],
    end_id: int | None = None, card: str | None = None,
) -> None:  # fmt: skip
    """Write weights (live parameter names), config, tokenizer, processor and dft_mm.json.

    Args:
        end_id: a token at which generation is to stop, too.
        card: text of README.md.

    A model on the meta device takes the weights over and saves itself: a model that was loaded under ZeRO-3 would write
    wrong names (it reverses name conversions that were never applied).
    Raises RuntimeError when a weight is missing or unknown.
    """
    config = AutoConfig.from_pretrained(source)
    config.dtype = getattr(torch, dtype)
    with torch.device("meta"):
        skeleton = getattr(transformers, read_family(source).model_class)(config)
    cast = {name: tensor.to(config.dtype) for name, tensor in state.items()}
    report = skeleton.load_state_dict(cast, assign=True, strict=False)
    skeleton.tie_weights()
    missing = [name for name, parameter in skeleton.named_parameters() if parameter.is_meta]
    if missing or report.unexpected_keys:
        raise RuntimeError(f"export: missing {missing[:3]}, unknown {report.unexpected_keys[:3]}")
    _write(out, source, provenance, end_id, card, lambda folder: skeleton.save_pretrained(folder))


def write_adapter(
    state: Mapping[str, Tensor], peft_config: Any, source: Path, out: Path, provenance: Mapping[str, Any],
    end_id: int | None = None, card: str | None = None,
) -> None:  # fmt: skip
    """Write a LoRA adapter as peft does, with the tokenizer and processor of its base beside it. Without a config.json:
    only where there is none does transformers go on to the base, and load the model whole.
    """
    from safetensors.torch import save_file

    def save(folder: Path) -> None:
        peft_config.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors", {"format": "pt"})

    _write(out, source, provenance, end_id, card, save)


def _write(
    out: Path, source: Path, provenance: Mapping[str, Any], end_id: int | None, card: str | None,
    save: Callable[[Path], None],
) -> None:  # fmt: skip
    """Fill a folder beside `out` and rename it, so that `out` is never half an export."""
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(temporary)
    if card is not None:
        (temporary / model_card.FILE).write_text(card, encoding="utf-8")
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, temporary / name)
    if own_template(source) is None:  # the default that it was trained with travels along
        (temporary / FILE).write_text(load_processing(source).chat_template, encoding="utf-8")
    _stop_at(end_id, temporary / "generation_config.json")
    (temporary / "dft_mm.json").write_text(json.dumps(provenance, indent=2, ensure_ascii=False), encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)


def _stop_at(end_id: int | None, path: Path) -> None:
    """Add the token that ends an answer to those that end generation: a base model's own would run past it."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ends = settings.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if end_id is not None and end_id not in known:
        path.write_text(json.dumps(settings | {"eos_token_id": [end_id, *known]}, indent=2) + "\n", encoding="utf-8")
