"""A whole optimizer step: ours beside plain transformers and TRL, through DeepSpeed, and ours without it.

    python -m scripts.bench.step --preset gpu              # G4 to G9 of the targets, on CUDA
    python -m scripts.bench.step --preset gpu --dry        # the same with tiny models, anywhere

All learn the same rows in the same steps: texts and pictures of the sizes of real ones, written to disk and prepared as
any data is. Ours plans and packs; the peers take rows as they come, so many a micro-batch, padded to the longest. Each
contestant is built, makes some steps and is taken apart, in turns.

MFU is the share of the peak (dense, bfloat16) that the operations of `dft_mm.study.work` take, for real tokens only.
`waits` are the times in a step that the host waits for the device: torch's own record on CUDA, elsewhere the operators
that would have to. `no data` is the share of the time in which the step had no micro-batch to work on.
"""

import argparse
import gc
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers

from dft_mm import dist
from dft_mm.errors import InputError
from dft_mm.study.work import peak, step_operations
from scripts.bench.measure import Found, Row, Target, machine, report, result_file, table
from scripts.bench.step_contestants import ALONE, CONTESTANTS, OURS, PLAIN, TRL
from scripts.bench.step_setup import QWEN_1_5B, QWEN_VL_3B, Setting, Setup, set_up
from scripts.bench.watch import Watch

VISION, TEXT = "Qwen2.5-VL-3B, vision frozen", "Qwen2.5-1.5B, text"
GPU = [
    Setting(VISION, "vl", QWEN_VL_3B, "bfloat16", ["vision", "projector"], 4096, 16384, 128),
    Setting(TEXT, "text", QWEN_1_5B, "bfloat16", [], 2048, 16384, 128),
]
TINY = {
    "config": None, "dtype": "float32", "max_length": 128, "micro_tokens": 256, "batch_size": 4, "padded_rows": 2,
    "shrink": 16,
}  # fmt: skip
COLUMNS = {
    "setting": "", "name": "", "step_s": "s a step", "tokens_per_s": "tokens / s", "of_ours": "ours / it", "mfu": "MFU",
    "product_tflops": "TFLOP/s of products", "no_data": "no data", "waits": "waits", "peak_gib": "peak GiB",
}  # fmt: skip


def measure(setup: Setup, rounds: int, warm: int, timed: int) -> tuple[list[Row], dict[str, str]]:
    """A row for each contestant that can run, and why the others cannot."""
    watches: dict[str, list[Watch]] = {}
    lacking: dict[str, list[float | None]] = {}
    peaks: dict[str, float] = {}
    absent: dict[str, str] = {}
    for name in list(CONTESTANTS) * rounds:
        watch = Watch(setup.device, warm, timed)
        try:
            waited = CONTESTANTS[name](setup, watch)
        except (InputError, ImportError) as error:
            absent[name] = str(error)
            continue
        watches.setdefault(name, []).append(watch)
        lacking.setdefault(name, []).append(waited)
        peaks[name] = max(peaks.get(name, 0.0), release(setup.device))
    shapes = [shape for step in range(warm + 1, warm + timed + 1) for shape in setup.shapes(step)]
    tokens = rounds * sum(shape.tokens for shape in shapes)
    operations = rounds * sum(step_operations(setup.model, shapes).values())
    best = peak(setup.device)
    rows = []
    for name, seen in watches.items():
        spent = sum(second for watch in seen for second in watch.seconds)
        rows.append(
            {
                "setting": setup.setting.name,
                "name": name,
                "step_s": spent / timed / rounds,
                "tokens_per_s": tokens / spent,
                "mfu": operations / spent / best if best else None,
                "product_tflops": max(watch.product_rate for watch in seen) / 1e12,
                "no_data": None if None in lacking[name] else sum(lacking[name]) / spent,
                "waits": len(seen[-1].waits),
                "waits_at": dict(Counter(seen[-1].waits)),
                "peak_gib": peaks[name] or None,
            }
        )
    for row in rows:
        row["of_ours"] = rows[0]["tokens_per_s"] / row["tokens_per_s"]
    return rows, absent


def release(device: torch.device) -> float:
    """Let go of what a contestant held; returns the greatest GiB that it did, 0 where no allocator tells."""
    gc.collect()
    if device.type != "cuda":
        return 0.0
    held = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return held


def judge(rows: list[Row]) -> list[Row]:
    """G4 to G9."""
    of = {(row["setting"], row["name"]): row for row in rows}

    def share(setting: str, peer: str) -> float | None:
        return of[setting, peer]["of_ours"] if (setting, peer) in of else None

    vision, text = of[VISION, OURS], of[TEXT, OURS]
    overhead = max(1 / share(setting, ALONE) for setting in (VISION, TEXT))
    return [
        Target("G4", "tokens a second over TRL's, padded", 1.8, at_least=True).judged(share(VISION, TRL)),
        Target("G4", "MFU", 0.35, at_least=True).judged(vision["mfu"]),
        Target("G5", "MFU", 0.38, at_least=True).judged(text["mfu"]),
        Target("G5", "TFLOP/s of matrix products", 400, at_least=True).judged(text["product_tflops"]),
        Target("G6", "tokens a second over plain, 3B", 1.5, at_least=True).judged(share(VISION, PLAIN)),
        Target("G6", "tokens a second over plain, 1.5B", 1.5, at_least=True).judged(share(TEXT, PLAIN)),
        Target("G7", "time under ZeRO-3 over time without DeepSpeed", 1.05).judged(overhead),
        Target("G8", "share of the time without data", 0.02).judged(max(vision["no_data"], text["no_data"])),
        Target("G9", "waits of the host a step", 3).judged(max(vision["waits"], text["waits"])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["gpu"], default="gpu", help="sizes for one large GPU")
    parser.add_argument("--dry", action="store_true", help="in tiny sizes, to see whether it runs")
    parser.add_argument("--rounds", type=int, default=1, help="times that each contestant is built")
    parser.add_argument("--warm", type=int, default=2, help="its first steps, which are not timed")
    parser.add_argument("--timed", type=int, default=4, help="its steps that are timed")
    parser.add_argument("--out", type=Path, help="JSON; default: among the results of the benches")
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    device = dist.init()
    if device.type != "cuda" and not args.dry:
        sys.exit("the preset gpu needs a CUDA device; --dry tries the same with tiny models on the CPU")
    settings = [replace(setting, **TINY) for setting in GPU] if args.dry else GPU
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            found, missing = measure(set_up(setting, Path(folder), device), args.rounds, args.warm, args.timed)
        rows, absent = rows + found, absent | missing
        print(f"\n{setting.name}{', in tiny sizes' if args.dry else ''}, {device}")
        print(table(found, {key: title for key, title in COLUMNS.items() if key != "setting"}), flush=True)
    asked = {name: getattr(args, name) for name in ("preset", "dry", "rounds", "warm", "timed")}
    setting = asked | {setting.name: {**asdict(setting), "config": None} for setting in settings}
    found = Found("step", setting, machine(device), COLUMNS, rows, judge(rows), absent)
    report(found, args.out or result_file("step", args.preset, args.dry))


if __name__ == "__main__":
    main()
