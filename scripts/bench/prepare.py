"""`dft-mm prepare` on many rows: time and memory of the first run, of a second one, and of one that is killed.

    python scripts/bench/prepare.py --rows 200000 --pictures 2000 --out prepare.json

The rows are synthetic: reasoning of 60 to 400 words about one of the pictures, which are drawn once. Each run is the
real command in a process of its own; its memory is the proportional share (PSS) of it and all its workers. The peer is
plain pre-tokenising: the chat template and the tokenizer of transformers over the same rows, in one process, no picture
read, no row checked.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dft_mm.model.processing import load_processing

_WORDS = ["the", "angle", "of", "triangle", "is", "equal", "to", "side", "length", "area", "so", "x", "12", "7", "y"]
RECIPE = """
name: bench
output: {folder}/run
model: {{path: "builtin:tiny-vl"}}
data:
  train: [{{path: {folder}/rows.jsonl, format: wethink, images: {folder}/images}}]
  max_length: 4096
"""


def write_data(folder: Path, rows: int, pictures: int) -> None:
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(pictures):
        height, width = draw.integers(200, 900, 2)
        noise = np.repeat(np.repeat(draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8), 8, 0), 8, 1)
        Image.fromarray(noise[:height, :width]).save(folder / "images" / f"{number}.jpg", quality=85)
    words = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            thought = " ".join(words.choices(_WORDS, k=words.randint(60, 400)))
            row = {"problem": f"Question {number}: what is the area?", "answer": str(number), "refined_cot": thought}
            file.write(json.dumps(row | {"image_path": f"{number % pictures}.jpg"}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), encoding="utf-8")


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "dft_mm", "prepare", str(folder / "recipe.yaml")]


def measured(folder: Path, kill_at: float | None = None) -> dict[str, float]:
    """Seconds and greatest memory of one run; `kill_at`: killed after so many seconds."""
    start, peak = time.perf_counter(), 0
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command(folder), stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, sum(pss(pid) for pid in tree(process.pid)))
            if kill_at is not None and time.perf_counter() - start > kill_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
    if kill_at is None and process.returncode:
        sys.exit((folder / "log").read_text())
    return {"seconds": time.perf_counter() - start, "memory_gib": peak / 2**20}


def tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in tree(int(child)))]


def pss(pid: int) -> int:
    """KiB"""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def pretokenise(folder: Path, rows: int) -> float:
    """Seconds of the peer."""
    processing = load_processing("builtin:tiny-vl")
    start = time.perf_counter()
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        for _, line in zip(range(rows), file):
            row = json.loads(line)
            answer = f"<think>\n{row['refined_cot']}\n</think>\n<answer>\n{row['answer']}\n</answer>"
            chat = [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["problem"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
            text = processing.tokenizer.apply_chat_template(
                chat, chat_template=processing.chat_template, tokenize=False
            )
            processing.tokenizer(text, add_special_tokens=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, args.rows, args.pictures)
        results = {"first": measured(folder), "second": measured(folder)}
        index = (folder / "run/data/index.arrow").read_bytes()
        shutil.rmtree(folder / "run")
        results["killed in the middle"] = measured(folder, kill_at=results["first"]["seconds"] / 2)
        results["and started again"] = measured(folder)
        same = (folder / "run/data/index.arrow").read_bytes() == index
        peer = pretokenise(folder, args.rows // 20) * 20
    first = results["first"]["seconds"]
    print(f"{args.rows} rows, {args.pictures} pictures, {len(os.sched_getaffinity(0))} cores")
    for title, row in results.items():
        share = row["seconds"] / first
        print(f"{title:22}{row['seconds']:9.1f} s{share:8.3f} of the first{row['memory_gib']:8.2f} GiB")
    print(f"{'plain pre-tokenising':22}{peer:9.1f} s{peer / first:8.3f} of the first   (one process, of a twentieth)")
    print(f"the index after the kill is {'the same' if same else 'ANOTHER ONE'}")
    if args.out:
        setting = {"rows": args.rows, "pictures": args.pictures, "cores": len(os.sched_getaffinity(0))}
        results["pretokenising"] = {"seconds": peer}
        args.out.write_text(json.dumps({"setting": setting, "same": same, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
