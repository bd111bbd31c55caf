"""A base held in 4 bits under adapters: gradients, whole runs, what is exported and merged, and where it is refused."""

import importlib.util
import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from mixed_batches import IMAGE_ID, IMAGES, PAD_ID, WINDOW, mixed_model, plain_loss, steps
from rows import write_wethink
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from dft_mm.config import LossConfig, Recipe
from dft_mm.data.collate import Collator
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.model.folder import read_family
from dft_mm.model.load import load_model
from dft_mm.train.build import build_module
from dft_mm.train.deepspeed_config import deepspeed_config
from dft_mm.train.export import export_checkpoint

bitsandbytes = pytest.importorskip("bitsandbytes")

RUN = """
import json, sys
import torch
import dft_mm.train.loop as loop
import dft_mm.train.run as run
from dft_mm.config import load_recipe
from dft_mm.errors import Stopped
build = loop.build_module

def watched(*arguments):
    global module, before
    module = build(*arguments)
    before = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    return module

loop.build_module = watched
changed, packed = [], 0
for name, stop_after in (("whole", None), ("resumed", 1), ("resumed", None)):
    try:
        run.train(load_recipe(sys.argv[1], [f"name={name}"]), stop_after)
    except Stopped:
        pass
    after = dict(module.named_parameters())
    changed += [name for name in before if not torch.equal(before[name], after[name])]
    packed = sum(p.dtype == torch.uint8 for p in before.values())
print("RESULT", json.dumps({"changed": changed, "packed": packed}))
"""


def recipe_of(path, **more):
    values = {"name": "q", "model": {"path": str(path), "dtype": "float32"}}
    values["data"] = {"train": [{"path": "none"}], "pack": False}
    lora = {"rank": 4, "alpha": 8, "quantize": "nf4"}
    return Recipe.model_validate(values | {"model": values["model"] | {"lora": lora}} | more)


def dequantised(module):
    """The plain model that the module was loaded from, with the weights that the packed ones stand for."""
    plain = AutoModelForImageTextToText.from_pretrained(module.core.config.name_or_path, dtype=torch.float32)
    changed = 0.0
    for name, layer in module.core.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit) and name.endswith(".base_layer"):
            weight = plain.get_parameter(name.replace(".base_layer", ".weight"))
            packed = layer.weight
            assert (packed.quant_state.quant_type, packed.quant_state.nested) == ("nf4", True)
            values = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
            changed = max(changed, float((values - weight.data).abs().max()))
            weight.data = values
    assert changed > 1e-2  # or nothing was shown
    return plain


def test_gradients_of_adapters_are_those_of_plain_torch_on_the_dequantised_weights(tmp_path):
    mixed_model(False).save_pretrained(tmp_path)
    module = build_module(recipe_of(tmp_path), read_family(tmp_path), {})
    adapters = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    torch.manual_seed(2)
    for name, parameter in adapters.items():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.1)
    rank0, rank1 = steps()[0]
    examples = [example for micro in (*rank0, rank1[0]) for example in micro]
    batch = Collator(PAD_ID, IMAGE_ID, IMAGES, WINDOW)(examples)
    objective = Objective((LossConfig(name="dft"), LossConfig(name="sft")), 1)

    def loss():
        outputs = module(batch.rows, batch.targets, objective, batch.policy, batch.sequences, **batch.model_inputs)
        return outputs[0] / len(batch.targets)

    with torch.no_grad():  # a held-out pass comes between steps, and must leave no trace
        module.eval()
        loss()
        module.train()
    ours = loss()
    ours.backward()

    plain = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*_proj")
    oracle = peft.get_peft_model(dequantised(module), plain)
    for name, parameter in oracle.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(adapters[name].data)
    theirs = plain_loss(oracle, examples)
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.requires_grad}
    assert expected.keys() == adapters.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4 * largest
        assert (adapters[name].grad - gradient).abs().max() <= 1e-5 * largest, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory, repo):
    """Two runs of three steps, one of them stopped on the way."""
    folder = tmp_path_factory.mktemp("qlora")
    rows = write_wethink(folder / "data", count=12)
    (folder / "recipe.yaml").write_text(
        f"""
name: unset
output: {folder}/{{name}}
deepspeed: {repo}/ds_configs/zero2.json
model: {{path: builtin:tiny-vl, dtype: float32, lora: {{rank: 4, parts: [language, projector], quantize: nf4}}}}
data: {{train: [{{path: {rows}, images: {folder}/data/images}}], max_length: 128, workers: 0}}
loss: {{name: sft}}
optim: {{lr: 3e-2, batch_size: 4, schedule: constant, warmup_ratio: 0}}
train: {{max_steps: 3, micro_tokens: 256}}
"""
    )
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "recipe.yaml")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    (folder / "result.json").write_text(told.removeprefix("RESULT "))
    return folder


def test_a_run_learns_and_leaves_its_base_as_it_was(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result == {"changed": [], "packed": 14}  # seven layers of two blocks
    ce = [json.loads(line)["ce"] for line in (folder / "whole/metrics.jsonl").read_text().splitlines()]
    assert ce[-1] < ce[0] - 0.1
    adapter = load_file(folder / "whole/export/adapter_model.safetensors")
    assert len(adapter) == 2 * (14 + 2)
    assert all(tensor.any() for tensor in adapter.values())


def test_a_run_that_was_stopped_ends_with_the_same_adapter_and_its_checkpoints_hold_no_base(folder):
    name = "export/adapter_model.safetensors"
    assert (folder / "resumed" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    files = (folder / "whole/checkpoints/step-00000003").rglob("*")
    assert sum(path.stat().st_size for path in files if path.is_file()) < 1e6  # the embedding alone has 39e6


def test_the_adapter_loads_on_the_plain_base_and_merges_into_it(folder, tmp_path):
    assert export_checkpoint(folder / "whole", tmp_path / "adapter") == 3
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (folder / "whole/export" / name).read_bytes()
    assert "quant" not in (tmp_path / "adapter/adapter_config.json").read_text().lower()
    export_checkpoint(folder / "whole", tmp_path / "merged", merge_adapter=True)
    ids = torch.arange(100, 120)[None]
    base = load_model("builtin:tiny-vl")
    merged = load_model(tmp_path / "merged")
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    embeddings = [model.get_input_embeddings().weight for model in (base, merged)]
    assert torch.equal(*embeddings)
    before = base(input_ids=ids).logits
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=ids).logits
    assert (plain - before).abs().max() > 1e-3
    torch.testing.assert_close(merged(input_ids=ids).logits, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stage", "world"), [(3, 1), (2, 2)])
def test_partitioned_weights_and_several_processes_are_refused(repo, monkeypatch, stage, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    recipe = recipe_of("m", deepspeed=str(repo / f"ds_configs/zero{stage}.json"))
    with pytest.raises(InputError, match=r"quantize: nf4 is for one process at ZeRO stage 0 or 2.*zero2\.json"):
        deepspeed_config(recipe)


def test_without_bitsandbytes_the_extra_is_named(repo, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes.*dft_mm\[qlora\]"):
        deepspeed_config(recipe_of("m", deepspeed=str(repo / "ds_configs/zero2.json")))
