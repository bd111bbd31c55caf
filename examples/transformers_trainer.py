"""DFT inside transformers' Trainer: one argument, `compute_loss_func`.

    python examples/transformers_trainer.py --model Qwen/Qwen2.5-0.5B-Instruct --data rows.jsonl --steps 100
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from dft_mm.loss.hf import loss_func
from dft_mm.model.processing import load_processing

HERE = Path(__file__).parent


def main(words: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny-lm", help="hub id, folder, or a built-in tiny model")
    parser.add_argument("--data", type=Path, default=HERE / "sums.jsonl", help="lines with problem and solution")
    parser.add_argument("--loss", default="dft", help="any name of dft_mm/loss/family.py without a reference model")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", default="runs/transformers_trainer")
    given = parser.parse_args(words)

    processing = load_processing(given.model)
    tokenizer = processing.tokenizer
    tokenizer.chat_template = processing.chat_template
    rows = [json.loads(line) for line in given.data.read_text(encoding="utf-8").splitlines()]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(processing.folder),
        TrainingArguments(
            given.out, max_steps=given.steps, per_device_train_batch_size=4, learning_rate=5e-5, logging_steps=1,
            report_to=[], save_strategy="no",
        ),
        train_dataset=[tokens(tokenizer, row) for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads labels by -100
        compute_loss_func=loss_func(given.loss),
    )  # fmt: skip
    return trainer.train().training_loss


def tokens(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """The conversation, of which the answer is learned."""
    question = [{"role": "user", "content": row["problem"]}]
    asked = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [*question, {"role": "assistant", "content": row["solution"]}], tokenize=False
    ).rstrip("\n")  # the answer ends with the token that ends the turn
    prompt = tokenizer(asked, add_special_tokens=False).input_ids
    answer = tokenizer(whole.removeprefix(asked), add_special_tokens=False).input_ids
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


if __name__ == "__main__":
    print(f"mean loss {main():.4f}")
