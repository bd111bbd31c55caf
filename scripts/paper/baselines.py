"""The baselines of Table 2 (section 4.2) through TRL: DPO on pairs, and online GRPO and RLOO on questions.

    pip install -e ".[rl]"
    python -m scripts.paper.baselines dpo RECIPE.yaml --data sampled/pairs.jsonl --out runs/paper/dpo
    deepspeed --num_gpus 8 --module scripts.paper.baselines grpo RECIPE.yaml --data questions.jsonl --out runs/grpo

Model, seed, length, adapters, decay, clipping and DeepSpeed's JSON are the recipe's; what the paper sets for a method
is in `SETTINGS`. OUT/export is a folder that `dft-mm eval` takes, OUT/metrics.jsonl has a line a step, and a run that
was stopped goes on from TRL's own checkpoint in OUT/checkpoints.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dft_mm.config import Recipe, load_recipe
from dft_mm.errors import InputError
from dft_mm.sections import read_text

if TYPE_CHECKING:
    from dft_mm.evaluate.task import Question


@dataclass(frozen=True)
class Setting:
    """Of one method. Batches count prompts or pairs of one optimizer step over all ranks."""

    lr: float
    batch: int
    warmup_ratio: float
    beta: float
    """Weight of staying near the model that it began as."""
    answers: int = 1
    """Sampled to each question, at temperature 1."""


# Section 4.2.1; beta is what ms-swift (DPO) and verl (GRPO) take unless told otherwise. The paper has no RLOO: it is
# set as GRPO is.
SETTINGS = {
    "dpo": Setting(lr=1e-6, batch=128, warmup_ratio=0.05, beta=0.1),
    "grpo": Setting(lr=1e-6, batch=256, warmup_ratio=0.1, beta=0.001, answers=4),
    "rloo": Setting(lr=1e-6, batch=256, warmup_ratio=0.1, beta=0.001, answers=4),
}


def main(words: Sequence[str] | None = None) -> int:
    from scripts.paper.experiment import script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=SETTINGS)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the recipe's")
    parser.add_argument("--data", type=Path, required=True, help="dpo: pairs.jsonl; grpo, rloo: questions.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, help="prompts or pairs of a step (default: the paper's)")
    parser.add_argument("--micro", type=int, default=4, help="answers, or pairs, of a micro-batch (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=2048, help="grpo, rloo: longest answer (default: 2048)")
    parser.add_argument("--steps", type=int, help="end after so many")
    parser.add_argument("--vllm", action="store_true", help="grpo, rloo: sample with vLLM, on the same GPUs")
    shown = sys.argv[1:] if words is None else words
    given = parser.parse_intermixed_args([word for word in shown if not word.startswith("--local_rank=")])
    return script(lambda: train(given))


def train(given: argparse.Namespace) -> None:
    """Train, or go on; then write OUT/export."""
    import trl
    from transformers.trainer_utils import get_last_checkpoint

    from dft_mm.model.load import load_model
    from dft_mm.model.lora import add_lora
    from dft_mm.model.processing import load_processing

    recipe = load_recipe(given.recipe, given.overrides)
    rows, reward = _DATA[given.method](given.data)
    processing = load_processing(recipe.model.path)
    tokenizer = processing.tokenizer
    tokenizer.chat_template = processing.chat_template
    model = load_model(recipe.model.path, "float32", recipe.model.attention, packed=False)
    if recipe.model.lora:
        model = add_lora(model, processing.family, recipe.model.lora)
    kind = {"dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO"}[given.method]
    arguments = getattr(trl, f"{kind}Config")(**_arguments(recipe, given))
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, **reward
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if _begun(arguments) else None)
    if trainer.is_world_process_zero():
        lines = [line for line in trainer.state.log_history if "loss" in line]
        (given.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _export(trainer, recipe, processing, given)


def _begun(arguments: Any) -> bool:
    return Path(arguments.output_dir).is_dir()


def _pairs(path: Path) -> tuple[Any, dict[str, Any]]:
    """Lines of pairs.jsonl, put as the model was asked when it gave these answers."""
    from datasets import Dataset

    rows = []
    for number, line in enumerate(read_text(path, "--data").splitlines(), 1):
        pair = json.loads(line)
        missing = [key for key in ("prompt", "chosen", "rejected") if not isinstance(pair.get(key), str)]
        if missing:
            raise InputError(f"{path}:{number}: no text {missing[0]!r}; dft-mm sample --pairs writes such a file")
        answers = {key: [{"role": "assistant", "content": pair[key]}] for key in ("chosen", "rejected")}
        rows.append({"prompt": rl_prompt(pair["prompt"]), **answers})
    if not rows:
        raise InputError(f"{path}: no pairs; of no question was one answer correct and one wrong")
    return Dataset.from_list(rows), {}


def _questions(path: Path) -> tuple[Any, dict[str, Any]]:
    """Questions whose answer can be graded, and the reward: 1 where math-verify finds the answer right, else 0."""
    from datasets import Dataset

    rows = [
        {"prompt": rl_prompt(question.about["problem"]), "gold": question.gold} for question in asked_questions(path)
    ]
    return Dataset.from_list(rows), {"reward_funcs": right}


def asked_questions(path: Path) -> "list[Question]":
    """Those whose gold answer can be graded; the others are counted in the log."""
    from dft_mm.evaluate.benchmark import BenchmarkConfig
    from dft_mm.study.questions import load_questions

    asked, _ = load_questions(BenchmarkConfig(task="sample", data=str(path)), None)
    return asked


def right(completions: Sequence[Any], gold: Sequence[str], **_: Any) -> list[float]:
    """TRL's form of the reward."""
    from scripts.paper.reward import compute_score

    texts = [completion[0]["content"] for completion in completions]
    return [compute_score("", text, answer) for text, answer in zip(texts, gold, strict=True)]


_DATA: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "dpo": _pairs, "grpo": _questions, "rloo": _questions,
}  # fmt: skip


def rl_prompt(problem: str) -> list[dict[str, str]]:
    """A question as the models of Table 2 are asked, in training and in evaluation."""
    from dft_mm.evaluate.tasks.mathematics import MATH_SYSTEM

    return [{"role": "system", "content": MATH_SYSTEM}, {"role": "user", "content": problem}]


def _arguments(recipe: Recipe, given: argparse.Namespace) -> dict[str, Any]:
    """Settings of a TRL trainer."""
    import torch

    from dft_mm import dist

    setting = SETTINGS[given.method]
    world = dist.world_size()
    answers = (given.batch or setting.batch) * setting.answers
    if answers % (given.micro * world):
        raise InputError(
            f"--micro {given.micro}: {answers} answers of a step do not part into micro-batches of {given.micro} on "
            f"{world} ranks; take a divisor"
        )
    bf16 = recipe.model.dtype == "bfloat16"
    own: dict[str, Any] = {"beta": setting.beta}
    if given.method == "dpo":
        own |= {"max_length": recipe.data.max_length}
    else:
        own |= {
            "num_generations": setting.answers, "max_completion_length": given.max_tokens, "temperature": 1.0,
            "use_vllm": given.vllm, **({"vllm_mode": "colocate"} if given.vllm else {}),
        }  # fmt: skip
    return own | {
        "output_dir": str(given.out / "checkpoints"), "seed": recipe.seed, "learning_rate": setting.lr,
        "lr_scheduler_type": recipe.optim.schedule, "warmup_steps": setting.warmup_ratio, "bf16": bf16,
        "per_device_train_batch_size": given.micro, "gradient_accumulation_steps": answers // (given.micro * world),
        "num_train_epochs": recipe.train.epochs, "max_steps": given.steps or recipe.train.max_steps or -1,
        "adam_beta1": recipe.optim.betas[0], "adam_beta2": recipe.optim.betas[1], "adam_epsilon": recipe.optim.eps,
        "weight_decay": recipe.optim.weight_decay, "max_grad_norm": recipe.optim.clip, "logging_steps": 1,
        "save_steps": recipe.train.save_every, "save_total_limit": recipe.train.keep, "report_to": [],
        "gradient_checkpointing": recipe.model.gradient_checkpointing, "use_cpu": not torch.cuda.is_available(),
        **({"deepspeed": _deepspeed(recipe)} if world > 1 else {}),
    }  # fmt: skip


def _deepspeed(recipe: Recipe) -> dict[str, Any]:
    """The recipe's DeepSpeed settings, of which transformers fills in what it decides itself."""
    from dft_mm.train.deepspeed_config import deepspeed_config

    decided = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    told = {key: value for key, value in deepspeed_config(recipe).items() if value is not None}
    return told | dict.fromkeys(decided, "auto")


def _export(trainer: Any, recipe: Recipe, processing: Any, given: argparse.Namespace) -> None:
    from dft_mm.model.export import gather_state, write_adapter, write_model
    from dft_mm.model.lora import adapter_config, adapter_state
    from dft_mm.train.run_folder import provenance

    main_rank, lora = trainer.is_world_process_zero(), recipe.model.lora
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = gather_state(model, main_rank, lambda name: not lora or ".lora_" in name)
    if not main_rank:
        return
    about = {"method": given.method, "step": trainer.state.global_step, "recipe": recipe.model_dump(mode="json")}
    about |= {"provenance": provenance()}
    end_id, out = processing.tokenizer.eos_token_id, given.out / "export"
    if lora:
        peft_config = adapter_config(processing.folder, recipe.model.path, lora)
        write_adapter(adapter_state(state), peft_config, processing.folder, out, about, end_id)
    else:
        write_model(state, processing.folder, out, recipe.model.dtype, about, end_id)


if __name__ == "__main__":
    raise SystemExit(main())
