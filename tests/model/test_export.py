"""Exported folders, read back by plain transformers in a process that cannot import this package."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dft_mm.__main__ import main
from dft_mm.config import LoraConfig
from dft_mm.errors import InputError
from dft_mm.model.export import _stop_at, gather_state, write_adapter, write_model
from dft_mm.model.folder import check_whole, read_family
from dft_mm.model.load import load_model
from dft_mm.model.lora import adapter_config, adapter_state, add_lora, load_with_adapter, merge
from dft_mm.model.processing import load_processing

READ = """
import sys
sys.modules["dft_mm"] = None
import torch, transformers
folder, out = sys.argv[1:]
model = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0]).from_pretrained(folder)
transformers.AutoTokenizer.from_pretrained(folder)
torch.save(model(input_ids=torch.arange(20)[None]).logits, out)
"""


def logits_by_plain_transformers(folder, tmp_path):
    out = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", READ, str(folder), str(out)], check=True)
    return torch.load(out)


@torch.no_grad()
def test_trained_weights_come_back_under_the_sources_names(folder, tmp_path):
    model = load_model(folder)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    out = tmp_path / "out"
    (folder / "LICENSE").write_text("terms")
    write_model(gather_state(model, True), folder, out, "float32", {"step": 3}, card="# about\n")
    assert set(load_file(out / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    expected = model(input_ids=torch.arange(20)[None]).logits
    error = (logits_by_plain_transformers(out, tmp_path) - expected).abs().max()
    assert error <= 1e-5
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((out / "dft_mm.json").read_text()) == {"step": 3}
    assert (out / "README.md").read_text() == "# about\n"


@pytest.mark.parametrize(
    ("own", "expected"), [(5, [7, 5]), ([5, 6], [7, 5, 6]), ([7, 5], [7, 5]), (7, 7), (None, [7]), ("no file", [7])]
)
def test_generation_stops_where_the_trained_answers_end(tmp_path, own, expected):
    path = tmp_path / "generation_config.json"
    if own != "no file":
        path.write_text(json.dumps({"eos_token_id": own, "temperature": 0.5}))
    _stop_at(7, path)
    settings = json.loads(path.read_text())
    assert settings["eos_token_id"] == expected
    assert settings.get("temperature") == (None if own == "no file" else 0.5)


def test_a_missing_or_unknown_weight_is_no_export(folder, tmp_path):
    state = gather_state(load_model(folder), True)
    name = next(name for name in state if name.endswith("q_proj.weight"))
    lost = {k: v for k, v in state.items() if k != name}
    for broken in (lost, state | {"model.extra.weight": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match="export"):
            write_model(broken, folder, tmp_path / "out", "float32", {})
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_an_adapter_comes_back_and_merges(folder, tmp_path):
    from peft import PeftModel

    lora = LoraConfig(rank=2, alpha=8)
    model = add_lora(load_model(folder), read_family(folder), lora)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.normal_(std=0.1)
    expected = model(input_ids=torch.arange(20)[None]).logits
    base = load_model(folder)(input_ids=torch.arange(20)[None]).logits
    assert (expected - base).abs().max() > 1e-3

    state = adapter_state(gather_state(model, True, lambda name: ".lora_" in name))
    out = tmp_path / "adapter"
    write_adapter(state, adapter_config(folder, str(folder), lora), folder, out, {})
    model.save_pretrained(tmp_path / "peft")  # the names that other tools expect
    assert set(load_file(out / "adapter_model.safetensors")) == set(
        load_file(tmp_path / "peft/adapter_model.safetensors")
    )
    again = PeftModel.from_pretrained(load_model(folder), out)
    assert (again(input_ids=torch.arange(20)[None]).logits - expected).abs().max() <= 1e-6
    by_transformers = transformers.AutoModelForImageTextToText if read_family(out).has_vision else AutoModelForCausalLM
    for whole in (load_with_adapter(out), by_transformers.from_pretrained(out)):
        assert (whole(input_ids=torch.arange(20)[None]).logits - expected).abs().max() <= 1e-5
    ours, theirs = load_processing(out), load_processing(folder)
    assert (ours.chat_template, ours.image_token) == (theirs.chat_template, theirs.image_token)
    assert type(ours.tokenizer) is type(theirs.tokenizer)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == theirs.tokenizer.get_vocab()

    write_model(merge(load_model(folder), out), folder, tmp_path / "merged", "float32", {})
    assert (logits_by_plain_transformers(tmp_path / "merged", tmp_path) - expected).abs().max() <= 1e-5


@pytest.fixture
def adapter(folder, tmp_path):
    """The folder of an adapter that changes nothing."""
    lora = LoraConfig(rank=2)
    state = adapter_state(add_lora(load_model(folder), read_family(folder), lora).state_dict())
    write_adapter(state, adapter_config(folder, str(folder), lora), folder, tmp_path / "adapter", {})
    return tmp_path / "adapter"


text_only = pytest.mark.parametrize("folder", [("llama", False)], indirect=True, ids=["llama"])


@text_only
@torch.no_grad()
def test_an_adapters_folder_with_the_config_of_its_base_is_read_as_ever(folder, adapter):
    shutil.copyfile(folder / "config.json", adapter / "config.json")  # as they once were written
    ids = torch.arange(20)[None]
    assert torch.equal(load_with_adapter(adapter)(input_ids=ids).logits, load_model(folder)(input_ids=ids).logits)
    assert load_processing(adapter).chat_template == load_processing(folder).chat_template
    with pytest.raises(InputError, match="--merge"):
        check_whole(adapter)


@text_only
def test_an_adapter_without_its_base_says_so(folder, adapter):
    folder.rename(folder.with_name("moved"))
    with pytest.raises(InputError, match=rf"{adapter}: the base of this adapter .*{folder}.* is neither a folder"):
        load_processing(adapter)


@text_only
def test_training_from_an_adapter_is_refused_before_any_row_is_read(adapter, tmp_path, capsys):
    recipe = {"name": "r", "output": str(tmp_path / "run"), "model": {"path": str(adapter)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": {"train": [{"path": "no/rows.jsonl"}]}}))
    assert main(["prepare", str(tmp_path / "recipe.yaml")]) == 2
    told = capsys.readouterr().err
    assert f"model.path: {adapter} is an adapter; `dft-mm export RUN --merge --out DIR`" in told
    with pytest.raises(InputError, match="--merge"):
        load_model(adapter)
