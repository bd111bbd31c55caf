"""What differs between model families, as data. A new family is one new entry."""

from dataclasses import dataclass

from dft_mm.config import Part


@dataclass(frozen=True)
class Family:
    """One architecture of transformers. Names are those of the live module, not of the hub's files."""

    name: str
    model_type: str
    """`model_type` in config.json."""
    model_class: str
    """Class in transformers."""
    parts: dict[Part, tuple[str, ...]]
    """Part -> prefixes of its parameter names; the longest prefix that fits decides."""
    has_vision: bool = False
    patch_cost: float = 0.0
    """Work of a picture patch beside that of a token, to balance ranks: parameters of the vision tower over those of
    the language model."""


FAMILIES: tuple[Family, ...] = (
    Family(
        name="Qwen2.5-VL",
        model_type="qwen2_5_vl",
        model_class="Qwen2_5_VLForConditionalGeneration",
        parts={
            "vision": ("model.visual.",),
            "projector": ("model.visual.merger.",),
            "language": ("model.language_model.",),
            "embeddings": ("model.language_model.embed_tokens.", "lm_head."),
        },
        has_vision=True,
        patch_cost=0.2,  # 0.67 B over 3.1 B in the 3B model
    ),
    Family(
        name="Qwen2 / Qwen2.5",
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        parts={"language": ("model.",), "embeddings": ("model.embed_tokens.", "lm_head.")},
    ),
    Family(
        name="Llama",
        model_type="llama",
        model_class="LlamaForCausalLM",
        parts={"language": ("model.",), "embeddings": ("model.embed_tokens.", "lm_head.")},
    ),
)


def family_of(model_type: str) -> Family | None:
    """The family with this `model_type`, or None."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def part_of(family: Family, parameter: str) -> Part:
    """The part that a parameter belongs to; raises KeyError for a name that no part covers."""
    fits = [
        (len(prefix), part)
        for part, prefixes in family.parts.items()
        for prefix in prefixes
        if parameter.startswith(prefix)
    ]
    if not fits:
        raise KeyError(f"{parameter} belongs to no part of {family.name}")
    return max(fits)[1]
