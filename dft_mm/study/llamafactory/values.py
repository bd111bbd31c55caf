"""What values of LLaMA-Factory's arguments are here. Each function takes theirs and raises Refused for what has no
counterpart.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from dft_mm.config import LogConfig
from dft_mm.families import Family, family_of
from dft_mm.sections import read_json
from dft_mm.study.llamafactory.refused import GPUS, LEFT_OUT, Refused


def name(run_name: str | None, output_dir: str | None) -> str:
    words = [run_name] if run_name else Path(output_dir or "imported").parts[-3:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words)).strip("-_.") or "imported"


def listed(key: str, value: Any) -> list[str]:
    """Words of a list, or with commas between them."""
    if not isinstance(value, str | list):
        raise Refused(f"{key}: {value!r} is neither a list nor words with commas between them")
    return [str(word).strip() for word in (value.split(",") if isinstance(value, str) else value)]


def dtype(bf16: bool, fp16: bool, pure_bf16: bool) -> str:
    if fp16:
        raise Refused("fp16 is not supported: set bf16: true")
    if pure_bf16:
        raise Refused("pure_bf16 keeps weights in bfloat16, and here master weights are float32: set bf16: true")
    return "bfloat16" if bf16 else "float32"


ATTENTION = {"auto": "sdpa", "sdpa": "sdpa", "fa2": "flash", "fa3": "flash", "disabled": "eager"}


def one_of(known: Mapping[str, Any], hint: str) -> Callable[[Any], Any]:
    def choose(value: Any) -> Any:
        if str(value) not in known:
            raise Refused(f"{value!r} is not among {', '.join(known)}: {hint}")
        return known[str(value)]

    return choose


_TEMPLATES = {"qwen2_vl": "qwen2_5_vl", "qwen": "qwen2", "llama3": "llama"}
"""Templates that write turns as the models' own chat templates do, and the family of these models."""
_NAMES = (("2[._]5-vl|tiny-vl", "qwen2_5_vl"), ("qwen2|tiny-lm", "qwen2"), ("llama", "llama"))


def _family(path: str | None, template: str | None) -> Family:
    """By the folder's config.json, the template, the name."""
    if not path:
        raise Refused("there is no model_name_or_path, the model to start from")
    config = Path(path) / "config.json"
    if config.is_file():
        model_type = _json(config).get("model_type", "")
    else:
        named = [model_type for pattern, model_type in _NAMES if re.search(pattern, path.lower())]
        model_type = _TEMPLATES.get(template or "") or next(iter(named), "")
    family = family_of(model_type)
    if family is None:
        raise Refused(
            f"model_name_or_path {path}: {model_type or 'its family'} is not "
            f"{'supported' if model_type else 'known from its name: give `template`, or a local folder'}; "
            "supported are Qwen2.5-VL, Qwen2, Qwen2.5, Llama"
        )
    return family


def _json(path: Path) -> dict[str, Any]:
    said = read_json(path, "file")
    return said if isinstance(said, dict) else {}


def model(path: str | None, template: str | None) -> str | None:
    if template not in (None, *_TEMPLATES):
        raise Refused(
            f"template {template}: here a model's own chat template is used, which is known to write the same as the "
            f"templates {', '.join(_TEMPLATES)}. For a supported model (Qwen2.5-VL, Qwen2, Qwen2.5, Llama) take "
            "`template` out, and look at what `dft-mm inspect` shows"
        )
    _family(path, template)
    return path


def _has_vision(path: str, template: str | None) -> bool:
    return _family(path, template).has_vision


def _method(finetuning_type: str) -> str:
    if finetuning_type not in ("full", "lora"):
        raise Refused(
            f"finetuning_type {finetuning_type} (some of the layers) has no counterpart: take full, where model.freeze "
            "keeps whole parts as they are, or lora"
        )
    return finetuning_type


def freeze(path: str, template: str, finetuning_type: str, tower: bool, projector: bool, language: bool) -> Any:
    if _method(finetuning_type) == "lora" or not _has_vision(path, template):
        return LEFT_OUT  # adapters alone learn; a text model has no such parts
    return ["vision"] * tower + ["projector"] * projector + ["language", "embeddings"] * language


def lora(
    path: str, template: str, finetuning_type: str, tower: bool, projector: bool, language: bool, rank: int,
    alpha: int | None, dropout: float, target: str | list[str], bits: int | None, method: str, kind: str, double: bool,
) -> Any:  # fmt: skip
    if _method(finetuning_type) == "full":
        if bits:
            raise Refused("quantization_bit is for finetuning_type: lora")
        return LEFT_OUT
    targets = listed("lora_target", target)
    every = targets == ["all"]
    vision = _has_vision(path, template)
    # Their `all` never takes the projector; names are looked for in every part that is not frozen.
    parts = ["language"] * (not (vision and language)) + ["vision"] * (vision and not tower)
    parts += ["projector"] * (vision and not projector and not every)
    if not parts:
        raise Refused("every part is frozen, and no adapter is left to learn")
    made: dict[str, Any] = {"rank": rank, "alpha": alpha or 2 * rank, "dropout": dropout, "parts": parts}
    made["targets"] = "all-linear" if every else targets
    if bits:
        if (bits, str(method), kind, double) != (4, "bnb", "nf4", True):
            raise Refused(
                f"{bits} bits ({method}, {kind}): 4-bit NF4 with double quantization by bitsandbytes is what there is: "
                "quantization_bit: 4, quantization_method: bnb, quantization_type: nf4, double_quantization: true"
            )
        made["quantize"] = "nf4"
    return made


def deepspeed(path: str | None, bits: int | None) -> str:
    if bits:
        return "ds_configs/zero2.json"  # four bits cannot be cut into shards
    if path is None:
        return "ds_configs/zero3.json"
    named = re.search(r"z(?:ero)?_?(?:stage)?_?(\d)", path)
    stage, offload = int(named[1]) if named else None, "offload" in path
    if Path(path).is_file():
        said = _json(Path(path)).get("zero_optimization") or {}
        stage, offload = said.get("stage", 0), "offload_optimizer" in said or "offload_param" in said
    if stage is None:
        raise Refused(f"{path} is not there and its name says no ZeRO stage: name a file that is there")
    return f"ds_configs/zero3{'_offload' if offload else ''}.json" if stage == 3 or offload else "ds_configs/zero2.json"


def pixels(path: str, template: str | None, pixels: int) -> Any:
    return pixels if _has_vision(path, template) else LEFT_OUT


def heldout_fraction(val_size: float) -> Any:
    if val_size >= 1:
        raise Refused(f"val_size {val_size:g} counts rows, and here it is a share of them: give one below 1")
    return val_size or LEFT_OUT


def loss(dft: bool, eaft: bool, eaft_alpha: float, asft: bool, asft_alpha: float) -> dict[str, Any]:
    if dft:
        return {"name": "dft"}
    if eaft:
        return {"name": "eaft", "alpha": eaft_alpha, "top_k": 20}
    return {"name": "asft", "kl": asft_alpha} if asft else {"name": "sft"}


SCHEDULES = {
    "cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant",
}  # fmt: skip


def warmup(ratio: float, steps: float, schedule: str, max_steps: int) -> float:
    if schedule == "constant":
        return 0.0  # its warm-up is not looked at
    if 0 < steps < 1:
        return float(steps)
    if not steps:
        return float(ratio or 0.0)
    if max_steps <= 0:
        raise Refused(
            f"warmup_steps {steps:g}: here it is a share of all steps; give warmup_ratio instead (`dft-mm plan` counts "
            "the steps), or max_steps"
        )
    share = min(steps / max_steps, 1.0)
    return share if math.ceil(share * max_steps) == steps else (steps - 0.5) / max_steps


def batch_size(per_device: int, accumulation: int, gpus: int | None) -> int:
    if gpus is None:
        raise Refused(
            f"a step has per_device_train_batch_size {per_device} × gradient_accumulation_steps {accumulation} "
            f"examples a GPU, and here they are counted over all: say how many GPUs it was written for, {GPUS} N"
        )
    return per_device * accumulation * gpus


def epochs(epochs: float, max_steps: int) -> int:
    if max_steps > 0:
        return max_steps  # an epoch has a step at least, so that max_steps decides
    if epochs != int(epochs):
        raise Refused(f"num_train_epochs {epochs:g} is not whole: give max_steps (`dft-mm plan` counts the steps)")
    return int(epochs)


def trackers(report_to: str | list[str] | None, swanlab: bool) -> Any:
    known = get_args(get_args(LogConfig.model_fields["trackers"].annotation)[0])
    given = listed("report_to", report_to or [])
    named = [name for name in given if name != "none"] + ["swanlab"] * swanlab
    unknown = [name for name in named if name not in known]
    if unknown:
        raise Refused(f"report_to {', '.join(unknown)}: trackers are {', '.join(known)}; take it out")
    return list(dict.fromkeys(named)) or LEFT_OUT
