"""Online RL of Table 2 (section 4.2) at its own scale: PPO, GRPO or RLOO by verl, which the paper used, as files.

    python -m scripts.paper.verl ppo RECIPE.yaml --data data/numinamath/questions_100k.jsonl --out runs/paper/table2/ppo
    sh runs/paper/table2/ppo/run.sh

The first command writes OUT/train.parquet (the questions as `dft-mm sample` puts them, with their gold answers) and
OUT/run.sh, which trains and then writes OUT/export, a folder that `dft-mm eval` and Table 2 take. verl pins other
versions than dft_mm: give it an environment of its own, and there, for the reward,

    pip install verl vllm "math-verify[antlr4_9_3]" pydantic pyyaml && pip install --no-deps -e .

Model, seed, epochs, betas, decay, clipping and schedule are the recipe's; what the paper sets for a method is in
`METHODS`. Checked against the settings of verl 0.9.1.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dft_mm import arguments
from dft_mm.atomic import write_atomically
from dft_mm.config import Recipe, load_recipe
from dft_mm.errors import InputError
from scripts.paper.baselines import SETTINGS, Setting, asked_questions, rl_prompt

METHODS: dict[str, tuple[str, Setting]] = {
    "ppo": ("gae", replace(SETTINGS["grpo"], answers=1, beta=0.0)),  # verl's PPO has no KL unless told otherwise
    "grpo": ("grpo", SETTINGS["grpo"]),
    "rloo": ("rloo", SETTINGS["rloo"]),
}
"""Method → verl's advantage estimator, and the paper's setting."""
LONGEST_PROMPT = 1024
"""Tokens; longer ones are left out."""


def main(words: Sequence[str] | None = None) -> int:
    from scripts.paper.experiment import script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the recipe's")
    parser.add_argument("--data", type=Path, required=True, help="questions.jsonl with id, problem and answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=arguments.positive, default=8, help="of a node (default: 8)")
    parser.add_argument("--nodes", type=arguments.positive, default=1, help="default: 1")
    parser.add_argument(
        "--max-tokens", type=arguments.positive, default=2048, help="longest answer (default: 2048)"
    )
    given = parser.parse_intermixed_args(words)

    def work() -> str:
        recipe = load_recipe(given.recipe, given.overrides)
        return export(given.method, recipe, given.data, given.out, given.gpus, given.nodes, given.max_tokens)

    return script(work)


def export(
    method: str, recipe: Recipe, questions: Path, out: Path, gpus: int = 8, nodes: int = 1, max_tokens: int = 2048
) -> str:
    """Write OUT/train.parquet and OUT/run.sh; returns what to do next.

    Raises InputError for what verl is not told here: adapters, and schedules that it does not have.
    """
    if recipe.model.lora:
        raise InputError("model.lora: verl's runs of Table 2 train the whole model; say model.lora=null")
    if recipe.optim.schedule not in ("cosine", "constant"):
        raise InputError(f"optim.schedule {recipe.optim.schedule}: verl has cosine and constant")
    count = write_rows(questions, out / "train.parquet")
    settings = verl_settings(method, recipe, out.resolve(), gpus, nodes, max_tokens)
    write_atomically(out / "run.sh", run_script(method, settings, out.resolve()))
    return f"{count} questions for {method} by verl; train with  sh {out / 'run.sh'}"


def write_rows(questions: Path, file: Path) -> int:
    """verl's rows: chat messages, the gold answer, and where a row came from."""
    from datasets import Dataset

    rows = [
        {
            "data_source": questions.stem, "prompt": rl_prompt(question.about["problem"]), "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": question.gold}, "extra_info": {"index": question.id},
        }
        for question in asked_questions(questions)
    ]  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(str(file))
    return len(rows)


def verl_settings(
    method: str, recipe: Recipe, out: Path, gpus: int, nodes: int, max_tokens: int
) -> dict[str, object]:
    """verl's settings, by their path in its configuration."""
    estimator, setting = METHODS[method]
    optimizer = {
        "betas": list(recipe.optim.betas), "weight_decay": recipe.optim.weight_decay,
        "clip_grad": recipe.optim.clip, "lr_scheduler_type": recipe.optim.schedule,
        "lr_warmup_steps_ratio": setting.warmup_ratio,
    }  # fmt: skip
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    told: dict[str, object] = {
        "algorithm.adv_estimator": estimator,
        "data.train_files": out / "train.parquet", "data.val_files": out / "train.parquet",  # which it has to have
        "data.train_batch_size": setting.batch, "data.max_prompt_length": LONGEST_PROMPT,
        "data.max_response_length": max_tokens, "data.filter_overlong_prompts": True, "data.seed": recipe.seed,
        "actor_rollout_ref.model.path": recipe.model.path,
        f"{actor}.optim.lr": setting.lr, **{f"{actor}.optim.{key}": value for key, value in optimizer.items()},
        f"{actor}.ppo_mini_batch_size": setting.batch, f"{actor}.use_dynamic_bsz": True,
        f"{actor}.use_kl_loss": setting.beta > 0, f"{actor}.kl_loss_coef": setting.beta,
        f"{rollout}.name": "vllm", f"{rollout}.n": setting.answers, f"{rollout}.temperature": 1.0,
        f"{rollout}.tensor_model_parallel_size": 1, f"{rollout}.log_prob_use_dynamic_bsz": True,
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": True,
        "reward.custom_reward_function.path": Path(__file__).with_name("reward.py").resolve(),
        "reward.custom_reward_function.name": "compute_score",
        "trainer.n_gpus_per_node": gpus, "trainer.nnodes": nodes, "trainer.total_epochs": recipe.train.epochs,
        "trainer.save_freq": recipe.train.save_every, "trainer.max_actor_ckpt_to_keep": recipe.train.keep,
        "trainer.max_critic_ckpt_to_keep": recipe.train.keep, "trainer.val_before_train": False,
        "trainer.test_freq": -1, "trainer.logger": ["console"], "trainer.default_local_dir": out / "checkpoints",
        "trainer.project_name": "dft_mm", "trainer.experiment_name": f"{recipe.name}_{method}",
    }  # fmt: skip
    if estimator == "gae":  # the only one with a critic
        told |= {"critic.model.path": recipe.model.path, "critic.use_dynamic_bsz": True}
    if recipe.train.max_steps:
        told["trainer.total_training_steps"] = recipe.train.max_steps
    return told


def run_script(method: str, settings: dict[str, object], out: Path) -> str:
    """A shell script that trains, goes on where it stopped, and writes the model folder."""
    words = [f"{key}={value if isinstance(value, Path) else json.dumps(value)}" for key, value in settings.items()]
    lines = " \\\n    ".join(shlex.quote(word.replace('"', "")) for word in words)
    saved = shlex.quote(str(out / "checkpoints"))
    return f"""#!/bin/sh
# {method} by verl, which goes on from its own newest checkpoint when this is run again; settings may follow.
set -e
python3 -m verl.trainer.main_ppo \\
    {lines} "$@"
step=$(cat {saved}/latest_checkpointed_iteration.txt)
python3 -m verl.model_merger merge --backend fsdp --local_dir {saved}/global_step_"$step"/actor \\
    --target_dir {shlex.quote(str(out / "export"))}
"""


if __name__ == "__main__":
    raise SystemExit(main())
