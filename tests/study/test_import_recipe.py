"""Training files of LLaMA-Factory as recipes: every key converted, refused with a way out, or named with a reason."""

import dataclasses
import json

import pytest
import yaml
from rows import write_wethink
from started import done
from transformers import Seq2SeqTrainingArguments

from dft_mm.__main__ import main
from dft_mm.config import Recipe, load_recipe
from dft_mm.errors import InputError
from dft_mm.study.import_recipe import KNOWN, import_recipe
from dft_mm.study.llamafactory.keys import CONVERTED, NOTED, REFUSED

PICTURES = {
    "model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "template": "qwen2_vl", "stage": "sft", "do_train": True,
    "finetuning_type": "full", "deepspeed": "examples/deepspeed/ds_z3_config.json", "dataset": "pictures",
    "cutoff_len": 4096, "output_dir": "saves/qwen2_5vl-7b/full/sft", "bf16": True, "learning_rate": 1.0e-5,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "image_max_pixels": 262144, "plot_loss": True,
}  # fmt: skip
TEXT = PICTURES | {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "template": "qwen", "dataset": "text"}
INFO = {
    "pictures": {
        "file_name": "pictures.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "text": {"file_name": "text.json"},
    "hub": {"hf_hub_url": "org/rows", "subset": "main", "split": "test"},
    "pairs": {"file_name": "pairs.json", "ranking": True},
    "drawn": {"file_name": "text.json", "num_samples": 5},
    "scripted": {"script_url": "loader"},
    "elsewhere": {"ms_hub_url": "org/rows"},
    "no_columns": {"file_name": "text.json", "columns": None},
}  # fmt: skip


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """A function that converts a file of some keys; returns the recipe and its text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(INFO))

    def convert(keys=PICTURES, gpus=4, without=(), **more):
        keys = {key: value for key, value in (keys | more).items() if key not in without}
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(keys))
        text = import_recipe(tmp_path / "theirs.yaml", gpus=gpus)
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml"), text

    return convert


def test_a_full_run_with_pictures(convert):
    recipe, text = convert()
    assert recipe.name == "qwen2_5vl-7b_full_sft"
    assert recipe.deepspeed == "ds_configs/zero3.json"
    assert (recipe.model.path, recipe.model.dtype) == ("Qwen/Qwen2.5-VL-7B-Instruct", "bfloat16")
    assert (recipe.model.freeze, recipe.model.lora) == (["vision", "projector"], None)
    (source,) = recipe.data.train
    assert (source.path, source.images) == ("data/pictures.json", "data")
    assert source.dataset_info == "data/dataset_info.json#pictures"
    assert (recipe.data.max_length, recipe.data.max_pixels, recipe.data.min_pixels) == (4096, 262144, 3136)
    assert recipe.loss.name == "sft"
    assert (recipe.optim.batch_size, recipe.optim.lr, recipe.optim.schedule) == (8, 1e-5, "cosine")
    assert "batch_size: 8  # per_device_train_batch_size, gradient_accumulation_steps, --gpus" in text
    assert "plot_loss: true: `dft-mm report` draws the curves" in text


def test_a_recipe_with_their_keys_is_told_what_the_conversion_makes_of_them():
    for theirs, ours in Recipe.elsewhere.items():
        made = {each.ours for each in CONVERTED if theirs in each.theirs}
        # Its last folders become the name of a converted run, which lies where ours do.
        assert not made or ours in made or theirs == "output_dir", theirs


def test_a_note_about_a_loss_stands_with_that_loss_alone(convert):
    assert "ln 20" in convert(use_eaft_loss=True)[1]
    assert "ln 20" not in convert(use_dft_loss=True)[1]


def test_what_their_file_does_not_say_is_their_default_and_not_ours(convert):
    # Of hparams/ and of transformers' TrainingArguments.
    recipe, _ = convert({"model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct", "dataset": "pictures"}, gpus=1)
    assert recipe.model.dtype == "float32"
    assert recipe.model.lora.model_dump() == {
        "rank": 8, "alpha": 16, "dropout": 0.0, "parts": ["language"], "targets": "all-linear", "quantize": None,
    }  # fmt: skip
    assert (recipe.data.max_length, recipe.data.max_pixels, recipe.seed) == (2048, 589824, 42)
    optim = recipe.optim
    assert (optim.lr, optim.schedule, optim.warmup_ratio, optim.batch_size) == (5e-5, "linear", 0.0, 8)
    assert (optim.betas, optim.eps, optim.weight_decay, optim.clip) == ((0.9, 0.999), 1e-8, 0.0, 1.0)
    assert (recipe.train.epochs, recipe.train.max_steps, recipe.train.save_every) == (3, None, 500)


CHANGED = [
    ({"run_name": "my run"}, "name", "my-run"),
    ({"seed": 7}, "seed", 7),
    ({"deepspeed": "examples/deepspeed/ds_z2_config.json"}, "deepspeed", "ds_configs/zero2.json"),
    ({"deepspeed": "examples/deepspeed/ds_z0_config.json"}, "deepspeed", "ds_configs/zero2.json"),
    ({"deepspeed": "examples/deepspeed/ds_z3_offload_config.json"}, "deepspeed", "ds_configs/zero3_offload.json"),
    ({"flash_attn": "fa2"}, "model.attention", "flash"),
    ({"flash_attn": "disabled"}, "model.attention", "eager"),
    ({"flash_attn": "disabled"}, "data.pack", False),
    ({"disable_gradient_checkpointing": True}, "model.gradient_checkpointing", False),
    ({"freeze_vision_tower": False}, "model.freeze", ["projector"]),
    ({"freeze_multi_modal_projector": False}, "model.freeze", ["vision"]),
    ({"freeze_multi_modal_projector": False, "freeze_language_model": True}, "model.freeze",
     ["vision", "language", "embeddings"]),
    (TEXT | {"freeze_vision_tower": True}, "model.freeze", []),
    ({"finetuning_type": "lora"}, "model.freeze", []),
    ({"finetuning_type": "lora", "lora_rank": 4}, "model.lora.rank", 4),
    ({"finetuning_type": "lora", "lora_rank": 4}, "model.lora.alpha", 8),
    ({"finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 4}, "model.lora.alpha", 4),
    ({"finetuning_type": "lora", "lora_dropout": 0.1}, "model.lora.dropout", 0.1),
    ({"finetuning_type": "lora", "lora_target": "q_proj, v_proj"}, "model.lora.targets", ["q_proj", "v_proj"]),
    ({"finetuning_type": "lora", "freeze_vision_tower": False}, "model.lora.parts", ["language", "vision"]),
    ({"finetuning_type": "lora", "freeze_multi_modal_projector": False}, "model.lora.parts", ["language"]),
    ({"finetuning_type": "lora", "lora_target": "qkv", "freeze_vision_tower": False, "freeze_language_model": True},
     "model.lora.parts", ["vision"]),
    ({"finetuning_type": "lora", "quantization_bit": 4}, "model.lora.quantize", "nf4"),
    ({"finetuning_type": "lora", "quantization_bit": 4}, "deepspeed", "ds_configs/zero2.json"),
    ({"max_samples": 1000}, "data.train.0.limit", 1000),
    ({"media_dir": "photos"}, "data.train.0.images", "photos"),
    ({"dataset": "hub"}, "data.train.0.path", "org/rows"),
    ({"dataset": "hub"}, "data.train.0.split", "test"),
    ({"dataset": "hub"}, "data.train.0.subset", "main"),
    ({"dataset": "pictures,text"}, "data.train.1.path", "data/text.json"),
    ({"dataset": "org/rows", "dataset_dir": "ONLINE"}, "data.train.0.format", "alpaca"),
    ({"eval_dataset": "text"}, "data.heldout.0.path", "data/text.json"),
    ({"val_size": 0.1}, "data.heldout_fraction", 0.1),
    ({"cutoff_len": 10000}, "train.micro_tokens", 10000),
    ({"image_min_pixels": 10000}, "data.min_pixels", 10000),
    ({"mask_history": True}, "data.supervise", "last_answer"),
    ({"dataloader_num_workers": 4}, "data.workers", 4),
    ({"use_dft_loss": True}, "loss.name", "dft"),
    ({"use_asft_loss": True, "asft_alpha": 0.05}, "loss.kl", 0.05),
    ({"use_eaft_loss": True, "eaft_alpha": 2.0}, "loss.alpha", 2.0),
    ({"lr_scheduler_type": "constant"}, "optim.warmup_ratio", 0.0),
    ({"lr_scheduler_type": "constant_with_warmup"}, "optim.warmup_ratio", 0.1),
    ({"warmup_steps": 0.25}, "optim.warmup_ratio", 0.25),
    ({"warmup_steps": 25, "max_steps": 100}, "optim.warmup_ratio", 0.25),
    ({"adam_beta1": 0.8}, "optim.betas", (0.8, 0.999)),
    ({"adam_beta2": 0.95}, "optim.betas", (0.9, 0.95)),
    ({"adam_epsilon": 1e-6}, "optim.eps", 1e-6),
    ({"weight_decay": 0.1}, "optim.weight_decay", 0.1),
    ({"max_grad_norm": 0.5}, "optim.clip", 0.5),
    ({"max_steps": 70}, "train.max_steps", 70),
    ({"max_steps": 70}, "train.epochs", 70),
    ({"save_steps": 50}, "train.save_every", 50),
    ({"save_strategy": "epoch"}, "train.save_every", 100),
    ({"save_total_limit": 1}, "train.keep", 2),
    ({"save_total_limit": 5}, "train.keep", 5),
    ({"eval_steps": 30}, "train.heldout_every", 30),
    ({"report_to": "none"}, "log.trackers", []),
    ({"report_to": "wandb"}, "log.trackers", ["wandb"]),
    ({"report_to": ["tensorboard", "swanlab"], "use_swanlab": True}, "log.trackers", ["tensorboard", "swanlab"]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "ours", "value"), CHANGED)
def test_a_value_is_converted(convert, keys, ours, value):
    recipe, _ = convert(**keys)
    for key in ours.split("."):
        recipe = recipe[int(key)] if key.isdigit() else getattr(recipe, key)
    assert recipe == value


def test_every_key_that_is_converted_is_tried():
    tried = {key for keys, *_ in CHANGED for key in keys} | PICTURES.keys()
    wanted = {key for each in CONVERTED for key in each.theirs if not key.startswith("--")}
    assert wanted - tried == {
        "fp16", "pure_bf16", "quantization_method", "quantization_type", "double_quantization",  # refused below
    }  # fmt: skip


@pytest.mark.parametrize("steps", [7, 13, 100, 333])
def test_a_number_of_warmup_steps_stays_what_it_is(convert, steps):
    from dft_mm.train.schedule import lr_factor

    recipe, _ = convert(warmup_steps=steps, max_steps=1000)
    rates = [lr_factor(step, 1000, recipe.optim.warmup_ratio, "constant") for step in range(1, 1001)]
    assert sum(rate < 1 for rate in rates) == steps - 1


WRONG = [
    ({"stage": "dpo"}, ["stage: dpo", "TRL"]),
    ({"finetuning_type": "freeze"}, ["finetuning_type freeze", "full", "lora"]),
    ({"fp16": True}, ["fp16", "bf16: true"]),
    ({"pure_bf16": True}, ["pure_bf16", "bf16: true"]),
    ({"template": "gemma"}, ["template gemma", "qwen2_vl", "dft-mm inspect"]),
    ({"model_name_or_path": "org/some-model", "template": None}, ["org/some-model", "template"]),
    ({"model_name_or_path": None}, ["no model_name_or_path"]),
    ({"finetuning_type": "lora", "quantization_bit": 8}, ["8 bits", "quantization_bit: 4"]),
    ({"finetuning_type": "lora", "quantization_bit": 4, "quantization_method": "hqq"}, ["hqq"]),
    ({"finetuning_type": "lora", "quantization_bit": 4, "quantization_type": "fp4"}, ["fp4"]),
    ({"finetuning_type": "lora", "quantization_bit": 4, "double_quantization": False}, ["double_quantization: true"]),
    ({"quantization_bit": 4}, ["finetuning_type: lora"]),
    ({"dataset": None}, ["no dataset"]),
    ({"dataset": "picture"}, ["dataset_info.json", "'picture'", "did you mean 'pictures'"]),
    ({"dataset": "pairs"}, ["preferences"]),
    ({"dataset": "drawn"}, ["num_samples", "max_samples"]),
    ({"dataset": "scripted"}, ["script_url"]),
    ({"dataset": "elsewhere"}, ["neither file_name nor hf_hub_url"]),
    ({"dataset": "no_columns"}, ["'no_columns': columns maps names to names; this is None"]),
    ({"dataset": 5}, ["dataset: 5 is neither a list nor words"]),
    ({"finetuning_type": "lora", "lora_target": 5}, ["lora_target: 5 is neither a list nor words"]),
    ({"report_to": True}, ["report_to: True is neither a list nor words"]),
    ({"max_steps": "many"}, ["'max_steps': 'many'", "train.max_steps"]),
    ({"image_max_pixels": None, "image_min_pixels": "few"}, ["'image_min_pixels': 'few'", "data.min_pixels"]),
    ({"dataset_dir": "nowhere"}, ["nowhere/dataset_info.json is not there", "--dataset-info"]),
    ({"dataset_dir": "REMOTE:org/x"}, ["REMOTE:org/x", "--dataset-info"]),
    ({"val_size": 100}, ["val_size 100", "below 1"]),
    ({"deepspeed": "my.json"}, ["my.json", "ZeRO stage"]),
    ({"lr_scheduler_type": "polynomial"}, ["polynomial", "cosine"]),
    ({"warmup_steps": 100}, ["warmup_steps 100", "warmup_ratio"]),
    ({"num_train_epochs": 0.5}, ["num_train_epochs 0.5", "max_steps"]),
    ({"flash_attn": "fa9"}, ["fa9"]),
    ({"learning_rate": "fast"}, ["'learning_rate': 'fast'", "optim.lr"]),
    ({"learning_rate": -1.0}, ["optim.lr (learning_rate)", "greater than 0"]),
    ({"learning_rat": 1.0}, ["unknown key 'learning_rat'", "did you mean 'learning_rate'"]),
    ({"report_to": "trackio"}, ["report_to trackio", "tensorboard"]),
    ({"packing": True}, ["packing: true", "per_device_train_batch_size"]),
]  # fmt: skip


PYTHONS_WORDS = ("NoneType", "object", "argument", "not supported between", "could not convert")


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_what_would_change_the_result_is_refused_with_a_way_out(convert, keys, words):
    with pytest.raises(InputError) as caught:
        convert(**keys)
    for word in ["theirs.yaml", *words] if "dataset" not in keys else words:
        assert word in str(caught.value)
    assert not [word for word in PYTHONS_WORDS if word in str(caught.value)]


def test_a_model_that_is_not_named_is_asked_for_once(convert):
    with pytest.raises(InputError) as caught:
        convert(without=["model_name_or_path"])
    assert str(caught.value).splitlines()[1:] == ["  there is no model_name_or_path, the model to start from"]


def test_a_value_of_several_lines_stays_in_its_comment(convert):
    also, text = convert(default_system_prompt="Be brief.\nlr: 3", project="a\n\nb")
    assert also == convert()[0]
    assert "#   default_system_prompt: 'Be brief. lr: 3': " in text


def test_the_number_of_gpus_is_asked_for(convert):
    with pytest.raises(InputError, match=r"per_device_train_batch_size 1 .* --gpus N"):
        convert(gpus=None)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_without_counterpart_is_refused_where_it_is_on_and_named_where_it_is_off(convert, key):
    with pytest.raises(InputError) as caught:
        convert(**{key: "something"})
    assert f"{key}: something: {REFUSED[key].instead}" in str(caught.value)
    off = REFUSED[key].values[-1]
    assert f"#   {key}: " in convert(**{key: off})[1]


def test_keys_that_change_nothing_are_named_with_the_reason(convert):
    recipe, _ = convert()
    also, text = convert(**dict.fromkeys(NOTED, "something"))
    assert also == recipe
    for key, reason in NOTED.items():
        assert f"#   {key}: " in text, key
        assert text.count(reason) >= 1


def test_secrets_are_not_repeated(convert):
    for key in ("hf_hub_token", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url"):
        assert "sesame" not in convert(**{key: "sesame"})[1]


def test_every_argument_of_training_is_known():
    assert {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)} <= KNOWN


def test_keys_are_in_one_table_and_ours_are_keys_of_the_recipe():
    converted = {key for each in CONVERTED for key in each.theirs}
    assert not converted & REFUSED.keys()
    assert not converted & NOTED.keys()
    assert not REFUSED.keys() & NOTED.keys()
    for each in CONVERTED:
        section = Recipe
        for key in each.ours.split("."):
            assert key in section.model_fields, each.ours
            section = section.model_fields[key].annotation


def test_a_local_model_says_what_it_is_itself(convert, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text('{"model_type": "qwen2"}')
    assert convert(model_name_or_path="mine", without=["template"])[0].model.freeze == []
    (tmp_path / "mine/config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(InputError, match="gemma3 is not supported"):
        convert(model_name_or_path="mine", without=["template"])


def test_a_stage_is_read_from_the_file_that_is_there(convert, tmp_path):
    (tmp_path / "my.json").write_text('{"zero_optimization": null}')
    assert convert(deepspeed="my.json")[0].deepspeed == "ds_configs/zero2.json"
    (tmp_path / "my.json").write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    assert convert(deepspeed="my.json")[0].deepspeed == "ds_configs/zero3_offload.json"


def test_a_recipe_that_is_there_is_not_written_over(convert, tmp_path, capsys):
    convert()
    words = ["import-recipe", "theirs.yaml", "--gpus", "4", "--out", "recipe.yaml"]
    assert main(words) == 2
    assert "recipe.yaml is there already" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").unlink()
    assert main(words) == 0


TRAINED = {
    "model_name_or_path": "builtin:tiny-vl", "template": "qwen2_vl", "stage": "sft", "do_train": True,
    "finetuning_type": "full", "use_dft_loss": True, "cutoff_len": 512, "image_max_pixels": 50176, "max_steps": 2,
    "per_device_train_batch_size": 2, "output_dir": "saves/demo", "disable_gradient_checkpointing": True,
    "learning_rate": 1.0e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
}  # fmt: skip


def trained(tmp_path, repo, keys, info):
    """Converted and trained for two steps: refused rows of each source, examples to learn from."""
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(keys))
    said = ["--dataset-info", str(info), "--gpus", "1", "--out", str(tmp_path / "recipe.yaml")]
    assert main(["import-recipe", str(tmp_path / "theirs.yaml"), *said]) == 0
    overrides = [f"output={tmp_path}/run", f"deepspeed={repo}/ds_configs/zero2.json"]
    code, output = done(["train", tmp_path / "recipe.yaml", *overrides], tmp_path, {"DS_ACCELERATOR": "cpu"})
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["examples"] == 2 for line in lines)
    manifest = json.loads((tmp_path / "run/data/manifest.json").read_text())
    return [sum(source["quarantined"].values()) for source in manifest["sources"]], manifest["examples"]["train"]


def test_a_converted_recipe_trains(tmp_path, repo):
    write_wethink(tmp_path / "pictures", count=4)
    entry = {"file_name": "pictures/rows.jsonl", "columns": {"prompt": "problem", "response": "refined_cot"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"bars": entry}))
    keys = TRAINED | {"dataset": "bars"}
    assert trained(tmp_path, repo, keys, tmp_path / "dataset_info.json") == ([0], 4)


def test_a_converted_recipe_trains_on_their_own_demo_data(tmp_path, repo, shared):
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    demo = shared / "data/train_llamafactory_demo"
    columns = {"messages": "messages", "images": "images"}
    entries = {
        "mllm_demo": {"file_name": str(demo / "mllm_demo.json"), "formatting": "sharegpt", "columns": columns,
                      "tags": tags},
        "identity": {"file_name": str(demo / "identity.json")},
        "alpaca_en_demo": {"file_name": str(demo / "alpaca_en_demo.json")},
    }  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    keys = TRAINED | {"dataset": "mllm_demo,identity,alpaca_en_demo", "media_dir": str(demo), "max_samples": 20}
    assert trained(tmp_path, repo, keys, tmp_path / "dataset_info.json") == ([0, 0, 0], 6 + 20 + 20)
