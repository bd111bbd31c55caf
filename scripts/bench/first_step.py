"""How long the first step of a run whose index is already made waits for its data, beside tokenising everything first.

    python scripts/bench/first_step.py --rows 20000 --out first_step.json

Ours: the manifest is checked, the index mapped, the plan made (timed here), and the first micro-batch taken, its
picture decoded, as the real command tells it (`data_wait_s` of its first step): its worker processes start while it
loads the model. The peer: what a trainer without an index does, the chat template and the tokenizer of transformers
over all rows, in one process, no picture read. Importing and the model are left out of both.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepare import command, pretokenise, write_data

from dft_mm.config import load_recipe
from dft_mm.model.processing import load_processing
from dft_mm.train.feed import load_data

REPO = Path(__file__).parents[2]


def first_batch(folder: Path, workers: int) -> float:
    """Seconds."""
    recipe = load_recipe(folder / "recipe.yaml")
    processing = load_processing(recipe.model.path)
    start = time.perf_counter()
    load_data(recipe, processing)
    seconds = time.perf_counter() - start
    run = folder / f"run-{workers}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(recipe.run_dir / "data", run / "data")
    words = [f"output={run}", f"data.workers={workers}", "optim.batch_size=1", "train.max_steps=1"]
    words.append(f"deepspeed={REPO / 'ds_configs/zero3.json'}")
    train = [sys.executable, "-m", "dft_mm", "train", str(folder / "recipe.yaml"), *words]
    subprocess.run(train, check=True, capture_output=True)
    return seconds + json.loads((run / "metrics.jsonl").read_text(encoding="utf-8"))["data_wait_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, args.rows, args.pictures)
        subprocess.run(command(folder), check=True, stdout=subprocess.DEVNULL)
        contestants = {
            "two worker processes": lambda: first_batch(folder, 2),
            "no worker processes": lambda: first_batch(folder, 0),
            "tokenising first": lambda: pretokenise(folder, args.rows),
        }
        spent: dict[str, list[float]] = {title: [] for title in contestants}
        for _ in range(args.repeats):  # taking turns, so that a busy machine slows all alike
            for title, run in contestants.items():
                spent[title].append(run())
    best = {title: min(seconds) for title, seconds in spent.items()}
    print(f"{args.rows} rows, {args.pictures} pictures, least of {args.repeats}")
    for title, seconds in best.items():
        ratio = best["tokenising first"] / seconds
        print(f"{title:22}{seconds:8.3f} s   1/{ratio:.0f} of tokenising first")
    if args.out:
        setting = {"rows": args.rows, "pictures": args.pictures, "repeats": args.repeats, "python": sys.version}
        args.out.write_text(json.dumps({"setting": setting, "seconds": best}, indent=2) + "\n")


if __name__ == "__main__":
    main()
