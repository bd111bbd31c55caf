"""Online RL as files for verl: rows, settings, the script, and the reward that it loads."""

import importlib.util
import json
import subprocess

import pytest
from datasets import Dataset

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from scripts.paper import verl
from scripts.paper.experiment import REPO

RECIPE = REPO / "scripts/recipes/qwen2_5_math_1_5b_numinamath_dft.yaml"


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"id": "a", "problem": "What is 2 + 3?", "answer": "5"},
        {"id": "b", "problem": "Half of one?", "answer": r"so #### \frac{1}{2}"},
        {"id": "c", "problem": "Why?", "answer": "\\frac{"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(method, out, *changes, **more):
    told = verl.verl_settings(method, load_recipe(RECIPE, changes), out, 8, 2, 2048, **more)
    return {key: str(value) for key, value in told.items()}


def test_rows_have_what_verl_reads_and_only_questions_that_can_be_graded(questions, tmp_path):
    assert verl.write_rows(questions, tmp_path / "train.parquet") == 2
    rows = Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache")).to_list()
    assert [row["reward_model"] for row in rows] == [
        {"style": "rule", "ground_truth": "5"}, {"style": "rule", "ground_truth": r"\frac{1}{2}"},
    ]  # fmt: skip
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user"]
    assert rows[0]["prompt"][-1]["content"] == "What is 2 + 3?"
    assert [row["extra_info"]["index"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("method", "estimator", "answers", "penalised"),
    [("ppo", "gae", "1", "False"), ("grpo", "grpo", "4", "True"), ("rloo", "rloo", "4", "True")],
)
def test_settings_are_those_of_the_paper(tmp_path, method, estimator, answers, penalised):
    told = settings(method, tmp_path)
    actor = "actor_rollout_ref.actor"
    assert told["algorithm.adv_estimator"] == estimator
    assert (told["data.train_batch_size"], told[f"{actor}.ppo_mini_batch_size"]) == ("256", "256")
    assert (told[f"{actor}.optim.lr"], told[f"{actor}.optim.lr_warmup_steps_ratio"]) == ("1e-06", "0.1")
    assert (told["actor_rollout_ref.rollout.n"], told[f"{actor}.use_kl_loss"]) == (answers, penalised)
    assert (told["trainer.nnodes"], told["trainer.n_gpus_per_node"]) == ("2", "8")
    assert ("critic.model.path" in told) == (method == "ppo")


def test_the_script_says_each_setting_once_and_quotes_what_a_shell_would_read(questions, tmp_path):
    out = tmp_path / "a folder"
    told = verl.export("ppo", load_recipe(RECIPE, ["seed=3"]), questions, out)
    assert "2 questions for ppo" in told
    script = (out / "run.sh").read_text()
    seen = script.replace("python3 -m verl.trainer.main_ppo", "printf '%s\\n'").split("step=$(cat")[0]
    words = subprocess.run(["sh", "-c", seen, "run.sh", "data.seed=4"], capture_output=True, text=True, check=True)
    lines = words.stdout.splitlines()
    assert lines[-1] == "data.seed=4"  # what is said behind the script comes last and so holds
    keys = [line.partition("=")[0] for line in lines[:-1]]
    assert len(set(keys)) == len(keys)
    assert f"data.train_files={out}/train.parquet" in lines
    assert "actor_rollout_ref.actor.optim.betas=[0.9, 0.95]" in lines
    assert "data.seed=3" in lines
    subprocess.run(["sh", "-n", str(out / "run.sh")], check=True)


def test_the_reward_is_found_by_path_and_called_as_verl_does(tmp_path):
    told = settings("ppo", tmp_path)
    path, name = (told[f"reward.custom_reward_function.{key}"] for key in ("path", "name"))
    spec = importlib.util.spec_from_file_location("custom_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reward = getattr(module, name)
    texts = [r"\boxed{5}", r"\boxed{\frac{10}{2}}", r"\boxed{6}", "five?", ""]
    scores = [
        reward(data_source="q", solution_str=text, ground_truth="5", extra_info={"index": "a"}) for text in texts
    ]
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [("model.lora={rank: 8}", "model.lora=null"), ("optim.schedule=linear", "verl has cosine and constant")],
)
def test_what_verl_is_not_told_is_refused(questions, tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        verl.export("grpo", load_recipe(RECIPE, [change]), questions, tmp_path)
