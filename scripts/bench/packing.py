"""Packed rows beside padded ones: time, fill, memory of a pass over real rows, and the error against each row alone.

    python -m scripts.bench.packing --data ../shared/data      # C5 and C6 of the targets

Every contestant makes micro-batches of the same 400 rows, in advance, and runs forward and backward over all of them
with the same loss, ours; only how rows are put together differs. `in order, padded` is what trainers do that do not
sort: so many rows a micro-batch, padded to the longest. Models are a small Qwen2.5-VL and a small Qwen2 of the real
architectures; the tokenizer's ids are folded into a vocabulary whose output layer has the share of the work that it has
in models of some billion parameters.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dft_mm.batch import IGNORE_INDEX, Example
from dft_mm.config import Recipe
from dft_mm.data.collate import Collator
from dft_mm.data.images import ImageSettings
from dft_mm.data.plan import Load, Mixture, Plan, epoch_order
from dft_mm.loss.family import Objective
from dft_mm.model.attention import PACKED as PACKED_ATTENTION
from dft_mm.model.attention import pack_tower
from dft_mm.model.processing import load_processing
from dft_mm.train.feed import image_settings, load_data
from dft_mm.train.module import Trainable
from scripts.bench.measure import (
    REPO,
    Found,
    Row,
    Target,
    machine,
    peak_bytes,
    relative_error,
    report,
    result_file,
    table,
    take_turns,
)
from scripts.bench.step_setup import PaddedInputs

CPU = torch.device("cpu")
PACKED, BY_LENGTH, IN_ORDER = "packed", "by length, padded", "in order, padded"
MASKED, TRL = "packed, transformers' mask", "TRL padding-free"
MICRO_TOKENS = 8192
PARTS = 8
"""Contestants take turns in parts of a pass, which is minutes long."""
EXACT_ROWS = 3
"""Rows of each file that the errors are measured on."""

VOCABULARY = 512
IMAGE_ID, SPECIAL = 508, 500
"""Ids from SPECIAL on are control tokens; the others are folded below it."""
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 88, "num_heads": 2, "out_hidden_size": 128,
    "fullatt_block_indexes": [1],
}  # fmt: skip
WINDOW = 112
"""Pixels of a side of a window, as in Qwen2.5-VL."""


@dataclass(frozen=True)
class Mix:
    """Rows of several files of ../shared/data."""

    name: str
    model: str
    """builtin:tiny-vl or builtin:tiny-lm: whose tokenizer and template render the rows."""
    files: dict[str, int]
    """File or pattern → largest number of its rows."""
    heavy: bool = False
    """Short rows and a few long ones: mostly padding where rows are taken in order."""


MIXES = [
    Mix(
        "VL: short text, long text, pictures",
        "builtin:tiny-vl",
        {
            "train_llamafactory_demo/identity.json": 91,
            "train_llamafactory_demo/v1_sft_demo.jsonl": 150,
            "mathverse/testmini_text_only.json": 94,
            "text_math/aime24/test.jsonl": 30,
            "train_llamafactory_demo/reason_tool_use_demo.jsonl": 25,
            "mathvision/test_special.jsonl": 10,
        },
        heavy=True,
    ),
    Mix(
        "VL: pictures",
        "builtin:tiny-vl",
        {
            "train_tabmwp/problems.json": 200,
            "train_scienceqa/problems.json": 110,
            "mathvision/testmini.jsonl": 60,
            "train_iconqa/choose_img/*/data.json": 30,
        },
    ),
    Mix(
        "text: short, a few long",
        "builtin:tiny-lm",
        {
            "train_llamafactory_demo/identity.json": 91,
            "train_llamafactory_demo/v1_sft_demo.jsonl": 150,
            "mathverse/testmini_text_only.json": 104,
            "text_math/aime24/test.jsonl": 30,
            "train_llamafactory_demo/reason_tool_use_demo.jsonl": 25,
        },
        heavy=True,
    ),
    Mix(
        "text: mathematics",
        "builtin:tiny-lm",
        {
            "train_text/gsm8k_train.jsonl": 200,
            "train_text/math_solutions.jsonl": 100,
            "text_math/olympiadbench/test.jsonl": 100,
        },
    ),
]


class Pass(NamedTuple):
    """A micro-batch as a model takes it."""

    rows: Tensor
    """(M,): places of the flattened hidden states that predict a supervised token,"""
    targets: Tensor
    """(M,): and these tokens."""
    inputs: Callable[[], dict[str, Any]]
    """Makes the decoder's keyword arguments; pictures become floats in the step, wherever rows stand."""
    positions: int
    """Positions computed, padding included."""


class Contestant(NamedTuple):
    model: Trainable
    passes: list[Pass]

    def run(self, passes: Sequence[Pass] | None = None) -> float:
        """Forward and backward over all micro-batches, or those given: the summed loss. Gradients stay in the model."""
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for one in self.passes if passes is None else passes:
            loss, *_ = self.model(one.rows, one.targets, OBJECTIVE, **one.inputs())
            loss.backward()
            total += loss.item()
        return total


OBJECTIVE = Objective("dft")


@dataclass(frozen=True)
class Rows:
    """The rows of a mix, in the small vocabulary and in the order in which they are learned from."""

    vision: bool
    examples: list[Example]
    load: Load
    images: ImageSettings | None

    def collator(self, pack: bool) -> Collator:
        if not self.vision:
            return Collator(0, None, pack=pack)
        return Collator(0, IMAGE_ID, self.images, WINDOW, pack)

    def alone(self) -> PaddedInputs:
        return PaddedInputs(0, IMAGE_ID if self.vision else None, self.images)

    def planned(self, pack: bool, micro_tokens: int) -> list[np.ndarray]:
        """Micro-batches of all rows in one step."""
        count = len(self.examples)
        mixture = Mixture(np.zeros(count, dtype=int), [1.0], seed=0)
        plan = Plan(mixture, self.load, count, epochs=1, world_size=1, micro_tokens=micro_tokens, pack=pack)
        return plan.micro_batches(1)[0]


def read_rows(mix: Mix, data: Path, limit: int | None) -> Rows:
    """Rows of the real files, prepared as for training; `limit`: a few of each file."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.model_validate(
            {
                "name": "packing",
                "output": folder,
                "model": {"path": mix.model},
                "data": {
                    "train": [
                        {"path": str(data / file), "limit": min(count, limit or count)}
                        for file, count in mix.files.items()
                    ],
                    "bad_rows": 1.0,
                    "max_length": MICRO_TOKENS,
                },
                "train": {"micro_tokens": MICRO_TOKENS},
            }
        )
        processing = load_processing(mix.model)
        train = load_data(recipe, processing).train
        order = epoch_order(len(train), 0, 0)
        examples = [fold(train[int(index)], processing.image_token_id) for index in order]
        load = Load(train.lengths[order], train.patches[order] * processing.family.patch_cost)
        return Rows(processing.family.has_vision, examples, load, image_settings(recipe, processing))


def fold(example: Example, image_id: int | None) -> Example:
    """The same row in the small vocabulary."""
    folded = example.ids % SPECIAL
    return replace(example, ids=folded if image_id is None else folded.where(example.ids != image_id, IMAGE_ID))


def small_model(vision: bool, attention: str) -> PreTrainedModel:
    """The same random weights each time."""
    torch.manual_seed(0)
    if not vision:
        return Qwen2ForCausalLM._from_config(Qwen2Config(**TEXT), attn_implementation=attention)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=VISION,
        tie_word_embeddings=True,
        **dict(zip(ids, range(IMAGE_ID, VOCABULARY))),
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    pack_tower(model)
    return model


def contestants(rows: Rows, padded_rows: int) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run here, and why the others do not."""
    segments, masked = (Trainable(small_model(rows.vision, name)) for name in (PACKED_ATTENTION, "sdpa"))
    together, apart = (partial(passes, rows, rows.collator(pack)) for pack in (True, False))
    in_order = np.split(np.arange(len(rows.examples)), range(padded_rows, len(rows.examples), padded_rows))
    packed = together(rows.planned(True, MICRO_TOKENS))
    found = {
        PACKED: Contestant(segments, packed),
        BY_LENGTH: Contestant(masked, apart(rows.planned(False, MICRO_TOKENS))),
        IN_ORDER: Contestant(masked, apart(in_order)),
        MASKED: Contestant(masked, [one._replace(inputs=partial(without_lengths, one.inputs)) for one in packed]),
    }
    absent = {}
    if rows.vision:
        absent[f"{TRL}, pictures"] = "TRL refuses padding_free and packing for rows with pictures"
    elif importlib.util.find_spec("trl") is None:
        absent[TRL] = "trl is not installed"
    else:
        found[TRL] = Contestant(masked, trl_passes(rows, in_order))
    return found, absent


def passes(rows: Rows, collate: Collator, groups: Iterable[np.ndarray]) -> list[Pass]:
    batches = (collate([rows.examples[int(index)] for index in group]) for group in groups)
    return [Pass(b.rows, b.targets, partial(getattr, b, "model_inputs"), b.input_ids.numel()) for b in batches]


def without_lengths(inputs: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Packed inputs of which transformers finds the segments itself, by positions that begin anew."""
    return {name: value for name, value in inputs().items() if not name.startswith(("cu_seq", "max_length"))}


def trl_passes(rows: Rows, groups: Iterable[np.ndarray]) -> list[Pass]:
    """TRL's own padding-free collator: the rows as they come, so many a micro-batch, one behind the other."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    found = []
    for group in groups:
        examples = [rows.examples[int(index)] for index in group]
        labels = [example.ids.masked_fill(~example.supervised, IGNORE_INDEX).tolist() for example in examples]
        batch = collate([{"input_ids": e.ids.tolist(), "labels": of} for e, of in zip(examples, labels)])
        learned = (batch.pop("labels")[0] != IGNORE_INDEX).nonzero()[:, 0]
        targets = batch["input_ids"][0, learned]
        found.append(Pass(learned - 1, targets, partial(dict, batch), batch["input_ids"].numel()))
    return found


def exact(rows: Rows) -> tuple[float, dict[str, Tensor]]:
    """Summed loss and gradients of transformers' own model, each row alone, by its logits, in float64."""
    model, total = small_model(rows.vision, "sdpa").double(), 0.0
    for example in rows.examples:
        inputs = rows.alone()([example])
        targets = inputs.pop("labels")[0, 1:]
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        logits = model(**inputs, use_cache=False).logits[0, :-1]
        nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
        loss = (nll * torch.exp(-nll).detach()).sum()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def errors(contestant: Contestant, total: float, true: dict[str, Tensor]) -> Row:
    """Relative errors of the loss, and of the gradient of all parameters as one vector."""
    loss = contestant.run()
    gradients = {name.removeprefix("model."): p.grad for name, p in contestant.model.named_parameters()}
    found = torch.cat([gradients[name].flatten() for name in true])
    return {
        "error_loss": abs(loss - total) / abs(total),
        "error_gradient": relative_error(found, torch.cat([gradient.flatten() for gradient in true.values()])),
    }


def timed(runners: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant's pass over all rows in each round, in small turns of a part of the micro-batches."""
    for one in runners.values():
        one.run(one.passes[-1:])  # warms up
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        turns = []
        for part in range(PARTS):
            runs = {name: partial(one.run, one.passes[part::PARTS]) for name, one in runners.items()}
            turns.append(take_turns(runs, 1, CPU, warm_up=False))
        for name in runners:
            spent[name].append(sum(turn[name][0] for turn in turns))
    return spent


def measure(mix: Mix, data: Path, rounds: int, padded_rows: int, limit: int | None) -> tuple[list[Row], dict[str, str]]:
    """A row for each contestant; the errors are those of the mix's first rows, some of every file."""
    rows = read_rows(mix, data, limit)
    runners, absent = contestants(rows, padded_rows)
    spent = timed(runners, rounds)
    few = read_rows(mix, data, EXACT_ROWS)
    sample, _ = contestants(few, padded_rows)
    true = exact(few)
    tokens = int(rows.load.tokens.sum())
    found = []
    for name, one in runners.items():
        positions = sum(each.positions for each in one.passes)
        largest = max(one.passes, key=lambda each: each.positions)
        seconds = statistics.median(spent[name])
        row = {"mix": mix.name, "name": name, "rows": len(rows.examples), "seconds": seconds}
        row |= {"micro_batches": len(one.passes), "positions": positions, "fill": tokens / positions}
        row["ours_of_it"] = statistics.median(spent[PACKED]) / seconds
        one.model.zero_grad(set_to_none=True)
        row["peak_mib"] = peak_bytes(partial(one.run, [largest]), CPU) / 2**20
        found.append(row | errors(sample[name], *true))
    return found, absent


COLUMNS = {
    "mix": "", "name": "", "rows": "rows", "seconds": "s", "ours_of_it": "ours / it", "fill": "fill",
    "micro_batches": "micro-batches", "peak_mib": "peak MiB", "error_loss": "error: loss",
    "error_gradient": "of the gradient",
}  # fmt: skip


def judge(rows: list[Row], mixes: Sequence[Mix]) -> list[Row]:
    """C5 and C6."""
    largest = max(row[key] for row in rows if row["name"] == PACKED for key in ("error_loss", "error_gradient"))
    shares = {row["mix"]: row["ours_of_it"] for row in rows if row["name"] == IN_ORDER}
    return [
        Target("C5", "error of loss and gradient, packed", 1e-5).judged(largest),
        *(
            Target("C6", f"time over padding in order, {mix.name}", 0.15 if mix.heavy else 1.0).judged(shares[mix.name])
            for mix in mixes
        ),
    ]


def row_shapes(data: Path) -> dict[str, list[Any]]:
    """What `step` makes rows of: sizes of the rows of the mixes that are not heavy, by kind."""
    found = {}
    for mix in (mix for mix in MIXES if not mix.heavy):
        rows = read_rows(mix, data, None)
        shapes = []
        for example in rows.examples:
            grids = [] if example.image_grid_thw is None else example.image_grid_thw[:, 1:].tolist()
            answer = int(example.supervised.sum())
            shapes.append([len(example.ids) - answer - int((example.ids == IMAGE_ID).sum()), answer, grids])
        found["vl" if rows.vision else "text"] = shapes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data", help="the folder of the real sets")
    parser.add_argument("--padded-rows", type=int, default=8, help="rows of a micro-batch that is padded in order")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; 1 on a busy machine")
    parser.add_argument("--dry", action="store_true", help="a few rows of each file, to see whether it runs")
    parser.add_argument("--shapes", type=Path, help="only write the sizes of the rows here, for `step`")
    parser.add_argument("--out", type=Path, help="JSON; default: among the results of the benches")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    missing = sorted({file.split("/")[0] for mix in MIXES for file in mix.files if not list(args.data.glob(file))})
    if missing:
        print(f"skipped: {args.data} has no {', '.join(missing)}; --data names the folder of the real sets")
        return
    if args.shapes:
        args.shapes.write_text(json.dumps(row_shapes(args.data)) + "\n", encoding="utf-8")
        return
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for mix in MIXES:
        found, missing_ones = measure(mix, args.data, args.rounds, args.padded_rows, 3 if args.dry else None)
        rows, absent = rows + found, absent | missing_ones
        print(f"\n{mix.name}")
        print(table(found, {key: title for key, title in COLUMNS.items() if key != "mix"}), flush=True)
    setting = {"rounds": args.rounds, "padded_rows": args.padded_rows, "micro_tokens": MICRO_TOKENS, "dry": args.dry}
    setting |= {"text": TEXT, "vision": VISION, "mixes": {mix.name: mix.files for mix in MIXES}}
    out = args.out or result_file("packing", "cpu", args.dry)
    report(Found("packing", setting, machine(CPU), COLUMNS, rows, judge(rows, MIXES), absent), out)


if __name__ == "__main__":
    main()
