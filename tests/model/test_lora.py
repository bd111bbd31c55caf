"""Which layers get adapters, and that what they learned comes back in plain peft and merged."""

import pytest
import torch
from peft import PeftModel
from tiny_models import IMAGE_ID

from dft_mm.config import LoraConfig, ModelConfig
from dft_mm.errors import InputError
from dft_mm.model.export import gather_state, write_adapter, write_model
from dft_mm.model.folder import read_family
from dft_mm.model.load import load_model
from dft_mm.model.lora import adapter_config, adapter_state, add_lora, merge

# Linear layers by the class's own source; two blocks each.
LAYERS = {
    "vision": [
        f"model.visual.blocks.{block}.{layer}" for block in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ],
    "projector": ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"],
    "language": [
        f"model.language_model.layers.{block}.{layer}" for block in range(2)
        for layer in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    ],
}  # fmt: skip
vl_only = pytest.mark.parametrize("folder", [("vl", True)], indirect=True, ids=["vl-tied"])


def adapted(model):
    """Names of the layers with adapters, which must be all that learns."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in learning)
    return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in learning}


def picture():
    """A question with one picture of 4 x 6 patches for the tiny model."""
    torch.manual_seed(1)
    ids = torch.tensor([[5, 502, *[IMAGE_ID] * 6, 503, 7, 8, 9]])
    return {
        "input_ids": ids, "pixel_values": torch.randn(24, 1176), "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "mm_token_type_ids": (ids == IMAGE_ID).int(),
    }  # fmt: skip


def test_by_default_adapters_sit_in_the_language_model_only(folder):
    family = read_family(folder)
    found = adapted(add_lora(load_model(folder), family, LoraConfig(rank=2)))
    language = [name if family.has_vision else name.replace("language_model.", "") for name in LAYERS["language"]]
    assert found == set(language)
    some = adapted(add_lora(load_model(folder), family, LoraConfig(rank=2, targets=["q_proj", "up_proj"])))
    assert some == {name for name in language if name.endswith(("q_proj", "up_proj"))}


@vl_only
@pytest.mark.parametrize("parts", [["vision"], ["projector"], ["projector", "vision"], ["language", "projector"]])
def test_adapters_sit_on_all_linear_layers_of_their_parts(folder, parts):
    found = adapted(add_lora(load_model(folder), read_family(folder), LoraConfig(rank=2, parts=parts)))
    assert found == {name for part in parts for name in LAYERS[part]}


@vl_only
def test_names_of_layers_are_looked_for_in_the_parts_only(folder):
    family = read_family(folder)
    config = LoraConfig(rank=2, parts=["vision"], targets=["attn.proj", "up_proj"])
    found = adapted(add_lora(load_model(folder), family, config))
    assert found == {name for name in LAYERS["vision"] if name.endswith(("attn.proj", "up_proj"))}
    # a convolution of the tower is called `proj`, too
    found = adapted(add_lora(load_model(folder), family, LoraConfig(rank=2, parts=["vision"], targets="proj")))
    assert found == {name for name in LAYERS["vision"] if name.endswith(".proj")}
    with pytest.raises(InputError, match=r"no linear layer 'q_proj' in vision; there are down_proj, gate_proj, proj"):
        add_lora(load_model(folder), family, LoraConfig(parts=["vision"], targets=["qkv", "q_proj"]))


@pytest.mark.parametrize("folder", [("llama", False)], indirect=True, ids=["llama"])
def test_a_part_that_the_family_does_not_have_is_refused(folder):
    with pytest.raises(InputError, match=r"model\.lora\.parts: Llama has no part 'vision'; it has language"):
        add_lora(load_model(folder), read_family(folder), LoraConfig(parts=["language", "vision"]))


def test_a_part_cannot_be_frozen_and_learn():
    ModelConfig(path="m", freeze=["vision", "embeddings"], lora={"parts": ["language", "projector"]})
    with pytest.raises(ValueError, match=r"freeze and lora\.parts both name vision"):
        ModelConfig(path="m", freeze=["projector", "vision"], lora={"parts": ["language", "vision"]})


@vl_only
@torch.no_grad()
def test_adapters_of_all_parts_come_back_in_plain_peft_and_merged(folder, tmp_path):
    config = LoraConfig(rank=2, alpha=8, parts=["vision", "projector", "language"])
    model = add_lora(load_model(folder), read_family(folder), config)
    base = model(**picture()).logits
    for part in ("visual.blocks", "visual.merger", "language_model"):  # each of them tells in the logits
        before = model(**picture()).logits
        for name, parameter in model.named_parameters():
            if ".lora_" in name and part in name:
                parameter.normal_(std=0.1)
        assert (model(**picture()).logits - before).abs().max() > 1e-3
    expected = model(**picture()).logits

    out = tmp_path / "adapter"
    state = adapter_state(gather_state(model, True, lambda name: ".lora_" in name))
    write_adapter(state, adapter_config(folder, str(folder), config), folder, out, {})
    plain = load_model(folder)
    torch.testing.assert_close(plain(**picture()).logits, base)
    again = PeftModel.from_pretrained(plain, out)
    torch.testing.assert_close(again(**picture()).logits, expected, rtol=0, atol=1e-6)

    write_model(merge(load_model(folder), out), folder, tmp_path / "merged", "float32", {})
    merged = load_model(tmp_path / "merged")
    torch.testing.assert_close(merged(**picture()).logits, expected, rtol=0, atol=1e-5)
