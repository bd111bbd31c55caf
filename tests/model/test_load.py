"""Weights: what is not what it says is refused, never filled with noise."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dft_mm.errors import InputError
from dft_mm.model.load import load_model


def test_every_family_loads_with_the_weights_of_its_file(folder):
    model = load_model(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        live = {k.replace("model.language_model.", "model.").replace("model.visual.", "visual."): v
                for k, v in model.state_dict().items()}  # fmt: skip
        torch.testing.assert_close(live[name], tensor, rtol=0, atol=0)


def test_a_missing_weight_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="missing keys: 1"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"fit|loaded"):
        load_model(folder)
