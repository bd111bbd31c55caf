"""The plan of an epoch: time, fill and balance over ranks, beside batches in the order of the sampler.

    python scripts/bench/plan.py --examples 20000 --ranks 8 --out plan.json

The lengths are those of `--lengths FILE` (a prepared data folder) drawn again and again, or a long-tailed mixture of
rows with and without pictures. The peer is what padding trainers do: the shuffled examples cut into micro-batches of
equal number, each padded to its longest.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from dft_mm.data.dataset import Dataset
from dft_mm.data.plan import Load, Mixture, Plan

PATCH_COST = 0.2


def lengths(args: argparse.Namespace) -> Load:
    draw = np.random.default_rng(0)
    if args.lengths:
        data = Dataset(args.lengths, "train", None)
        chosen = draw.integers(0, len(data), args.examples)
        return Load(data.lengths[chosen], data.patches[chosen] * PATCH_COST)
    tokens = np.clip(draw.lognormal(6.4, 0.6, args.examples).astype(int), 30, 4096)
    patches = np.where(draw.random(args.examples) < 0.3, 0, draw.uniform(0.1, 0.8, args.examples) * tokens * 4)
    return Load(tokens, patches * PATCH_COST)


def in_order(plan: Plan, load: Load, ranks: int, micro_tokens: int, steps: int) -> dict[str, float]:
    """The peer: each rank takes every so manieth example; a micro-batch has as many as the longest row allows."""
    size = max(1, micro_tokens // int(load.tokens.max()))
    real = computed = 0
    balance = []
    for step in range(1, steps + 1):
        costs = []
        for rank in range(ranks):
            mine = plan.examples(step)[rank::ranks]
            groups = [mine[start : start + size] for start in range(0, len(mine), size)]
            padded = [len(group) * load.tokens[group].max() for group in groups]
            costs.append(sum(padded) + load.vision[mine].sum())
            real, computed = real + load.tokens[mine].sum(), computed + sum(padded)
        balance.append(min(costs) / max(costs))
    return {"fill": float(real / computed), "utilisation": statistics.mean(balance)}


def measure(load: Load, args: argparse.Namespace, pack: bool) -> tuple[Plan, dict[str, float]]:
    start = time.perf_counter()
    plan = Plan(
        Mixture(np.zeros(len(load.tokens), dtype=int), [1.0], 0), load, batch_size=args.batch_size, epochs=1,
        world_size=args.ranks, micro_tokens=args.micro_tokens, pack=pack,
    )  # fmt: skip
    dealt = [plan.micro_batches(step) for step in range(1, plan.steps + 1)]
    seconds = time.perf_counter() - start
    shapes = [plan.shape(step) for step in range(1, plan.steps + 1) if len(plan.examples(step)) == args.batch_size]
    capacity = sum(len(ranks) * len(ranks[0]) for ranks in dealt) * args.micro_tokens
    resume = time.perf_counter()
    Plan(
        Mixture(np.zeros(len(load.tokens), dtype=int), [1.0], 0), load, batch_size=args.batch_size, epochs=1,
        world_size=args.ranks, micro_tokens=args.micro_tokens, pack=pack,
    ).micro_batches(plan.steps)  # fmt: skip
    return plan, {
        "seconds": seconds,
        "steps": plan.steps,
        "fill": statistics.mean(shape["fill"] for shape in shapes),
        "utilisation": statistics.mean(shape["utilisation"] for shape in shapes),
        "least_utilisation": min(shape["utilisation"] for shape in shapes),
        "capacity_used": float(load.tokens.sum() / capacity),
        "resume_seconds": time.perf_counter() - resume,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--micro-tokens", type=int, default=8192)
    parser.add_argument("--lengths", type=Path, help="RUN/data of a prepared run whose lengths are used")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()

    load = lengths(args)
    plan, packed = measure(load, args, pack=True)
    _, padded = measure(load, args, pack=False)
    peer = in_order(plan, load, args.ranks, args.micro_tokens, min(plan.steps, 200))
    results = {"packed": packed, "padded": padded, "in order, padded": peer}
    print(f"{args.examples} examples, {args.ranks} ranks, {args.batch_size} a step, {args.micro_tokens} tokens")
    print(f"{'':20}{'seconds':>10}{'fill':>8}{'utilisation':>13}{'least':>8}{'capacity':>10}{'resume s':>10}")
    keys = ("seconds", "fill", "utilisation", "least_utilisation", "capacity_used", "resume_seconds")
    for name, row in results.items():
        cells = [f"{row[key]:.4f}" if key in row else "" for key in keys]
        print(f"{name:20}" + "".join(cell.rjust(width) for cell, width in zip(cells, (10, 8, 13, 8, 10, 10))))
    if args.out:
        setting = {name: str(value) for name, value in vars(args).items() if name != "out"}
        args.out.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
