"""Recomputed layers, and what waits on the CPU."""

import os
import subprocess
import sys

import pytest
import torch
from mixed_batches import mixed_model, plain_loss, steps
from rows import write_wethink
from safetensors.torch import load_file

from dft_mm.config import LoraConfig
from dft_mm.families import family_of
from dft_mm.model.builtin import builtin_folder
from dft_mm.model.freeze import freeze
from dft_mm.model.lora import add_lora
from dft_mm.train import engine
from dft_mm.train.engine import checkpoint_activations

LAYERS = {"learns": 4, "adapted": 4, "frozen vision": 2}  # two of the vision tower, two of the language model


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """In the place of torch's save_on_cpu, which does nothing to what is on the CPU: copies, and writes down what."""

    shapes: list[tuple[int, ...]] = []  # noqa: RUF012 - emptied by each test

    def __init__(self, pin_memory):
        super().__init__(lambda tensor: self.shapes.append(tuple(tensor.shape)) or tensor.clone(), torch.clone)


@pytest.mark.parametrize("on_cpu", [False, True], ids=["kept", "on the CPU"])
@pytest.mark.parametrize("what", LAYERS)
def test_recomputed_layers_have_the_same_gradients_and_keep_their_input_only(monkeypatch, what, on_cpu):
    monkeypatch.setattr(engine, "save_on_cpu", Kept)
    family, examples = family_of("qwen2_5_vl"), [e for micro in steps()[0][0] for e in micro]

    def gradients(config):
        model = mixed_model(True).train()
        if what == "adapted":
            wrapped = add_lora(model, family, LoraConfig(rank=2, parts=["vision", "language"]))
            torch.manual_seed(2)
            for name, parameter in wrapped.named_parameters():
                if ".lora_" in name:
                    parameter.data.normal_(std=0.1)
        elif what == "frozen vision":
            freeze(model, family, ["vision"])
        calls = []
        for layer in (*model.model.visual.blocks, *model.model.language_model.layers):
            layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        if config is not None:
            checkpoint_activations(model, family, config)
        Kept.shapes.clear()
        plain_loss(model, examples).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, len(calls)

    plain, calls = gradients(None)
    assert not Kept.shapes
    recomputed, again = gradients({"activation_checkpointing": {"cpu_checkpointing": True}} if on_cpu else {})
    pictured, alone = 2, 1  # two examples with a picture, one without
    assert again - calls == (pictured + alone) * 2 + pictured * (LAYERS[what] - 2)
    assert len(Kept.shapes) == on_cpu * (again - calls)
    assert {shape[-1] for shape in Kept.shapes} <= {32}  # hidden states
    assert plain.keys() == recomputed.keys()
    assert all(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=0)


@pytest.mark.long  # DeepSpeed compiles its Adam for CPUs first
def test_an_optimizer_and_weights_that_wait_on_the_cpu_take_the_same_steps(repo, tmp_path):
    rows = write_wethink(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: unset
output: {tmp_path}/{{name}}
model: {{path: builtin:tiny-vl, dtype: float32}}
data: {{train: [{{path: {rows}, images: {tmp_path}/data/images}}], max_length: 256, workers: 0}}
loss: {{name: sft}}
optim: {{lr: 1e-3, batch_size: 7}}
train: {{max_steps: 4, epochs: 2, micro_tokens: 512}}
"""
    )
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    start = load_file(builtin_folder("tiny-vl") / "model.safetensors")
    ends = []
    for name in ("zero3", "zero3_offload"):
        words = [str(tmp_path / "recipe.yaml"), f"name={name}", f"deepspeed={repo}/ds_configs/{name}.json"]
        subprocess.run([sys.executable, "-m", "dft_mm", "train", *words], env=env, check=True, capture_output=True)
        ends.append(load_file(tmp_path / name / "export/model.safetensors"))
    for name, end in ends[0].items():
        assert (end - start[name]).abs().max() > 1e-4, name  # it moved
        torch.testing.assert_close(ends[1][name], end, rtol=0, atol=1e-6)
