"""DFT in a loop of one's own, with the head that never holds the logits.

    python examples/plain_loop.py --model Qwen/Qwen2.5-0.5B-Instruct --steps 100

The batches are those of `transformers_trainer.py`; what a step does is five lines.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from dft_mm.batch import IGNORE_INDEX
from dft_mm.loss.head import linear_token_loss
from dft_mm.model.processing import load_processing

HERE = Path(__file__).parent


def main(words: list[str] | None = None) -> list[tuple[float, float]]:
    """(loss, cross-entropy) of each step, both per supervised token."""
    from transformers_trainer import tokens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny-lm", help="hub id, folder, or a built-in tiny model")
    parser.add_argument("--data", type=Path, default=HERE / "sums.jsonl", help="lines with problem and solution")
    parser.add_argument("--loss", default="dft", help="any name of dft_mm/loss/family.py without a reference model")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    given = parser.parse_args(words)

    processing = load_processing(given.model)
    tokenizer = processing.tokenizer
    tokenizer.chat_template = processing.chat_template
    rows = [json.loads(line) for line in given.data.read_text(encoding="utf-8").splitlines()]
    loader = torch.utils.data.DataLoader(
        [tokens(tokenizer, row) for row in rows], batch_size=4, shuffle=True,
        collate_fn=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(processing.folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)

    told = []
    while len(told) < given.steps:
        for batch in loader:
            targets = batch.pop("labels")[:, 1:]  # position t predicts token t + 1
            hidden = model.model(**batch).last_hidden_state[:, :-1]  # (B, T - 1, D)
            learned = targets != IGNORE_INDEX
            out = linear_token_loss(hidden[learned], model.lm_head.weight, targets[learned], given.loss)
            (out.loss / out.tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            told.append((float(out.loss.detach() / out.tokens), float(out.nll / out.tokens)))
            print(f"step {len(told)}  loss {told[-1][0]:.4f}  ce {told[-1][1]:.4f}")
            if len(told) == given.steps:
                break
    return told


if __name__ == "__main__":
    main()
