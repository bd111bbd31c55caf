"""DFT inside TRL's SFTTrainer, which makes prompts and labels itself. TRL means to drop `compute_loss_func` in its 2.0,
and warns that with it each step holds the logits; `dft-mm train` does not.

    pip install -e ".[rl]"
    python examples/trl_sft.py --model Qwen/Qwen2.5-0.5B-Instruct --data rows.jsonl --steps 100
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from dft_mm.loss.hf import loss_func
from dft_mm.model.processing import load_processing

HERE = Path(__file__).parent


def main(words: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny-lm", help="hub id, folder, or a built-in tiny model")
    parser.add_argument("--data", type=Path, default=HERE / "sums.jsonl", help="lines with problem and solution")
    parser.add_argument("--loss", default="dft", help="any name of dft_mm/loss/family.py without a reference model")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", default="runs/trl_sft")
    given = parser.parse_args(words)

    processing = load_processing(given.model)
    tokenizer = processing.tokenizer
    tokenizer.chat_template = processing.chat_template
    rows = [json.loads(line) for line in given.data.read_text(encoding="utf-8").splitlines()]
    conversations = [
        {
            "prompt": [{"role": "user", "content": row["problem"]}],
            "completion": [{"role": "assistant", "content": row["solution"]}],
        }
        for row in rows
    ]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(processing.folder),
        SFTConfig(
            given.out, max_steps=given.steps, per_device_train_batch_size=4, learning_rate=5e-5, logging_steps=1,
            report_to=[], save_strategy="no", completion_only_loss=True, bf16=False,
        ),
        train_dataset=Dataset.from_list(conversations),
        processing_class=tokenizer,
        compute_loss_func=loss_func(given.loss),
    )  # fmt: skip
    return trainer.train().training_loss


if __name__ == "__main__":
    print(f"mean loss {main():.4f}")
