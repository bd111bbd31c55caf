"""The DeepSpeed JSON has one owner for each setting."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mixed_batches import mixed_model, plain_loss, steps
from rows import write_wethink
from safetensors.torch import load_file

from dft_mm.config import LoraConfig, Recipe
from dft_mm.errors import InputError
from dft_mm.families import family_of
from dft_mm.model.builtin import builtin_folder
from dft_mm.model.freeze import freeze
from dft_mm.model.lora import add_lora
from dft_mm.train import engine
from dft_mm.train.engine import checkpoint_activations, deepspeed_config, zero_stage


@pytest.fixture
def config_of(tmp_path):
    def build(content, dtype="float32", **model):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        recipe = Recipe.model_validate(
            {
                "name": "t",
                "deepspeed": str(path),
                "model": {"path": "m", "dtype": dtype, **model},
                "data": {"train": [{"path": "x", "format": "messages"}]},
            }
        )
        return deepspeed_config(recipe)

    return build


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_shipped_configs_are_accepted(repo, config_of, name):
    config = config_of((repo / f"ds_configs/{name}.json").read_text(), "bfloat16")
    assert zero_stage(config) == int(name[4])
    assert config["gradient_clipping"] == 1.0
    assert config["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("content", "named", "owner"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, "optimizer.params.lr", "optim.lr"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "optim.schedule"),
        ({"train_batch_size": 8}, "train_batch_size", "optim.batch_size"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "optim.clip"),
        ({"bf16": {"enabled": True}}, "bf16", "model.dtype"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types", "model.dtype"),
    ],
)
def test_what_the_recipe_says_is_refused_in_the_json(config_of, content, named, owner):
    with pytest.raises(InputError, match=rf"'{named}' is set by the recipe, as {owner}"):
        config_of(content)


def test_auto_bad_json_and_unsupported_stages_are_refused(config_of):
    with pytest.raises(InputError, match='"auto"'):
        config_of({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}})
    with pytest.raises(InputError, match="not valid JSON"):
        config_of("{")
    with pytest.raises(InputError, match="stage is 1"):
        config_of({"zero_optimization": {"stage": 1}})
    with pytest.raises(InputError, match="stage 0"):
        config_of({}, "bfloat16")


def test_a_missing_file_is_named():
    recipe = {"name": "t", "deepspeed": "no/such.json", "model": {"path": "m"}}
    recipe["data"] = {"train": [{"path": "x", "format": "messages"}]}
    with pytest.raises(InputError, match=r"no/such\.json"):
        deepspeed_config(Recipe.model_validate(recipe))


def test_of_activation_checkpointing_only_what_has_an_effect_is_taken(config_of):
    on_cpu = {"cpu_checkpointing": True, "partition_activations": False}
    assert config_of({"activation_checkpointing": on_cpu})["activation_checkpointing"] == on_cpu
    with pytest.raises(InputError, match=r"activation_checkpointing\.partition_activations is not supported"):
        config_of({"activation_checkpointing": {"cpu_checkpointing": True, "partition_activations": True}})
    with pytest.raises(InputError, match=r"activation_checkpointing is True, not a section"):
        config_of({"activation_checkpointing": True})
    with pytest.raises(InputError, match=r"no effect without model\.gradient_checkpointing"):
        config_of({"activation_checkpointing": on_cpu}, gradient_checkpointing=False)


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
