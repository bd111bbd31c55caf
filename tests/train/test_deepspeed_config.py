"""The DeepSpeed JSON has one owner for each setting."""

import json

import pytest

from dft_mm.config import Recipe
from dft_mm.errors import InputError
from dft_mm.train.deepspeed_config import deepspeed_config, zero_stage


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
