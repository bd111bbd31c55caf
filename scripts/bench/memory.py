"""The memory that `dft-mm plan` predicts beside what two ranks on a CPU were seen to hold.

    python -m scripts.bench.memory                     # on an idle machine: a few minutes
    python -m scripts.bench.memory text-3 --out memory.json

Each case trains a model of some 70 million parameters for two steps through DeepSpeed's launcher. Measured is what the
kernel knows: the most resident memory of a rank in the last step, by when AdamW has its states and ZeRO-3 knows the
order of modules, less what was resident before the model was built, and less mapped files and shared memory. (torch's
profiler records allocations by thread and misses what the threads of collectives free.) malloc hands back at once what
is freed, and writes to what it hands out: else memory would be there only when it is used, which on a GPU it is when it
is asked for. Buckets are small, so that they do not hide the rest.

`others` is what a rank holds after the last step beside its tensors, and no GPU would: code that was loaded since, and
what oneDNN keeps for products of bfloat16, of every shape. `tensors off` leaves it out.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dft_mm import dist
from dft_mm.config import Recipe
from dft_mm.loss.family import Objective
from dft_mm.model.processing import load_processing
from dft_mm.study.launch import CPU_ENVIRONMENT
from dft_mm.study.memory import per_rank, shapes_of
from dft_mm.study.plan import heaviest
from dft_mm.study.rehearsal import rehearse, skeleton
from dft_mm.train.build import build_module
from dft_mm.train.deepspeed_config import deepspeed_config
from dft_mm.train.engine import build_engine
from dft_mm.train.feed import load_data
from dft_mm.train.step import train_step
from scripts.bench.step_setup import QWEN_1_5B, QWEN_VL_3B, REPO, Setting, write_model, write_rows

RANKS, STEPS = 2, 2
_TEXT = {
    "hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 12, "num_attention_heads": 5,
    "num_key_value_heads": 1,
}  # fmt: skip
_VISION = {
    "depth": 6, "hidden_size": 320, "intermediate_size": 960, "num_heads": 4, "out_hidden_size": 320,
    "fullatt_block_indexes": [2, 5],
}  # fmt: skip
_ZERO = {
    "contiguous_gradients": True, "reduce_bucket_size": 10_000_000, "allgather_bucket_size": 10_000_000,
    "stage3_prefetch_bucket_size": 2_000_000, "stage3_param_persistence_threshold": 10_000,
    "stage3_max_live_parameters": 30_000_000, "stage3_max_reuse_distance": 10_000_000,
}  # fmt: skip


class Case(NamedTuple):
    kind: str
    stage: int
    checkpointing: bool = True
    dtype: str = "float32"
    freeze: tuple[str, ...] = ()


CASES = {
    "text-3": Case("text", 3),
    "text-3-kept": Case("text", 3, checkpointing=False),
    "text-3-bfloat16": Case("text", 3, dtype="bfloat16"),
    "text-2": Case("text", 2),
    "text-2-bfloat16": Case("text", 2, dtype="bfloat16"),
    "vl-3": Case("vl", 3),
    "vl-3-frozen": Case("vl", 3, freeze=("vision", "projector")),
}


def recipe_of(case: Case, folder: Path) -> Recipe:
    """Rows, model and DeepSpeed config below `folder`, where they are not there yet."""
    setting = Setting("memory", case.kind, _config(case.kind), "float32", list(case.freeze), 1024, 2048, 8, shrink=2)
    if not (folder / "model").is_dir():
        write_rows(folder / "data", setting)
        write_model(folder / "model", setting, torch.device("cpu"))
        (folder / "zero.json").write_text(json.dumps({"zero_optimization": _ZERO | {"stage": case.stage}}))
    return Recipe.model_validate(
        {
            "name": "memory",
            "output": str(folder / "run"),
            "deepspeed": str(folder / "zero.json"),
            "model": {
                "path": str(folder / "model"), "dtype": case.dtype, "freeze": list(case.freeze),
                "gradient_checkpointing": case.checkpointing,
            },
            "data": {
                "train": [{"path": str(folder / "data/rows.jsonl"), "format": "messages", "limit": STEPS * 8}],
                "max_length": 1024, "workers": 0,
            },
            "optim": {"batch_size": 8}, "train": {"micro_tokens": 2048},
        }
    )  # fmt: skip


def _config(kind: str) -> dict[str, Any]:
    if kind == "text":
        return QWEN_1_5B | _TEXT
    text = QWEN_VL_3B["text_config"] | _TEXT
    text |= {"rope_parameters": text["rope_parameters"] | {"mrope_section": [8, 12, 12]}}
    return QWEN_VL_3B | {"text_config": text, "vision_config": QWEN_VL_3B["vision_config"] | _VISION}


def predicted(case: Case, folder: Path) -> dict[str, int]:
    recipe = recipe_of(case, folder)
    processing = load_processing(recipe.model.path)
    data = load_data(recipe, processing, RANKS)
    module = skeleton(recipe, processing, gpu=False)
    events = rehearse(module, heaviest(data), Objective(data.losses, 1))
    shapes = shapes_of(module, processing.family)
    return per_rank(shapes, events, deepspeed_config(recipe)["zero_optimization"], RANKS, gpu=False)[0]


def work(case: Case, folder: Path) -> None:
    """One rank of a run."""
    dist.init()
    recipe = recipe_of(case, folder)
    config = deepspeed_config(recipe)
    processing = load_processing(recipe.model.path)
    data = load_data(recipe, processing)
    start, tensors = _resident(), _bytes_of_tensors()
    module = build_module(recipe, processing.family, config)
    module.core.lm_head.checked = True
    engine = build_engine(module, processing.family, recipe, config)
    for step in range(1, STEPS + 1):
        groups = data.plan.micro_batches(step)[dist.rank()]
        batches = [data.collate([data.train[int(index)] for index in group]) for group in groups]
        tokens = int(data.train.supervised[data.plan.examples(step)].sum())
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc(5)
        train_step(engine, batches, len(batches), tokens, Objective(data.losses, step), data.end_id)
    end = _resident()
    peak = end["VmHWM"] - end["RssFile"] - end["RssShmem"] - start["RssAnon"]
    others = end["RssAnon"] - start["RssAnon"] - (_bytes_of_tensors() - tensors)
    (folder / f"rank{dist.rank()}.json").write_text(json.dumps({"peak": peak, "others": others}))


def _bytes_of_tensors() -> int:
    """Of all storages that tensors of Python hold; between steps there are no others."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and not each.is_meta]
    return sum(
        {storage.data_ptr(): storage.nbytes() for storage in map(torch.Tensor.untyped_storage, tensors)}.values()
    )


def _resident() -> dict[str, int]:
    """Bytes: VmHWM, RssAnon, RssFile, RssShmem."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: 1024 * int(value.split()[0]) for key, value in lines.items() if key.startswith(("VmHWM", "Rss"))}


def measured(case: Case, name: str, folder: Path) -> dict[str, int]:
    launcher = str(Path(sys.executable).parent / "deepspeed")
    port = str(29600 + os.getpid() % 300)
    command = [launcher, "--num_gpus", str(RANKS), "--master_port", port, "--module", "scripts.bench.memory"]
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_PERTURB_": "255"}
    environment = os.environ | CPU_ENVIRONMENT | {"PYTHONPATH": str(REPO)} | malloc
    done = subprocess.run(
        [*command, name, "--rank-of", str(folder)], cwd=REPO, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-3000:]}")
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return max(ranks, key=lambda rank: rank["peak"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        work(CASES[args.cases[0]], args.rank_of)
        return
    rows = []
    titles = ("measured MiB", "predicted", "off", "others", "tensors off")
    print(f"{'case':<17}" + "".join(f"{title:>13}" for title in titles))
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            case = CASES[name]
            parts = predicted(case, Path(folder))
            seen = measured(case, name, Path(folder))
        total = sum(parts.values())
        off, tensors_off = total / seen["peak"] - 1, total / (seen["peak"] - seen["others"]) - 1
        peak, foretold, others = (number / 2**20 for number in (seen["peak"], total, seen["others"]))
        print(f"{name:<17}{peak:>13.1f}{foretold:>13.1f}{off:>13.1%}{others:>13.1f}{tensors_off:>13.1%}", flush=True)
        rows.append({"case": name, "measured": seen, "predicted": parts, "off": off, "tensors_off": tensors_off})
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
