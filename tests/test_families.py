"""Families against the classes of transformers themselves, built without memory."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaConfig, Qwen2_5_VLConfig, Qwen2Config

from dft_mm.config import Part
from dft_mm.families import FAMILIES, family_of, part_of

TEXT = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**TEXT),
    "llama": LlamaConfig(**TEXT),
    "qwen2_5_vl": Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16},
    ),
}


def parameters(config, tied: bool) -> dict[str, int]:
    config.tie_word_embeddings = tied
    if hasattr(config, "text_config"):
        config.text_config.tie_word_embeddings = tied
    model_class = getattr(transformers, family_of(config.model_type).model_class)
    with torch.device("meta"):
        model = model_class(config)
    return {name: value.numel() for name, value in model.named_parameters()}


def counts(config, tied: bool) -> Counter[Part]:
    family = family_of(config.model_type)
    sizes = Counter()
    for name, size in parameters(config, tied).items():
        sizes[part_of(family, name)] += size
    return sizes


def test_every_family_is_tested_here():
    assert {family.model_type for family in FAMILIES} == CONFIGS.keys()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_parameter_has_one_part_and_every_part_has_parameters(model_type, tied):
    sizes = counts(CONFIGS[model_type], tied)
    assert set(sizes) == set(family_of(model_type).parts)
    assert sum(sizes.values()) == sum(parameters(CONFIGS[model_type], tied).values())
    vocabulary, width = TEXT["vocab_size"], TEXT["hidden_size"]
    if model_type == "qwen2_5_vl":
        vocabulary = CONFIGS[model_type].text_config.vocab_size
    assert sizes["embeddings"] == vocabulary * width * (1 if tied else 2)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_parts_hold_what_their_names_say(model_type):
    family = family_of(model_type)
    of = {name: part_of(family, name) for name in parameters(CONFIGS[model_type], tied=False)}
    for name, part in of.items():
        if "visual" in name:
            assert part == ("projector" if "merger" in name else "vision"), name
        else:
            assert part == ("embeddings" if "embed_tokens" in name or "lm_head" in name else "language"), name
    assert family.has_vision == any("visual" in name for name in of)


def test_the_published_3b_model_adds_up(shared: Path):
    """3.75 billion parameters: hub model card of Qwen2.5-VL-3B-Instruct, whose head is tied to its embedding."""
    raw = json.loads((shared / "models/qwen2.5-vl/config_3b.json").read_text())
    sizes = counts(Qwen2_5_VLConfig.from_dict(raw), tied=True)
    assert sum(sizes.values()) == 3_754_622_976
    assert sizes["embeddings"] == 151_936 * 2048


def test_an_unknown_model_or_parameter_has_no_family_or_part():
    assert family_of("gpt2") is None
    with pytest.raises(KeyError, match=r"encoder\.weight belongs to no part of Llama"):
        part_of(family_of("llama"), "encoder.weight")
