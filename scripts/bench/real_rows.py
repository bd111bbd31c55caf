"""What becomes of published rows under `format: auto`: one line a file, and why each row that is not kept is not.

    python scripts/bench/real_rows.py --data FOLDER --out rows.json

FOLDER holds the sets under the names below, each as its authors publish it. Every file goes through the real `prepare`
with the recipe's own limits on pictures, for Qwen2.5-VL's template and tokenizer (builtin:tiny-vl).
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dft_mm.config import DataConfig
from dft_mm.data.images import ImageSettings
from dft_mm.data.preparing.manifest import read_manifest
from dft_mm.data.preparing.prepare import prepare
from dft_mm.data.render import Renderer
from dft_mm.errors import InputError
from dft_mm.model.processing import Processing, load_processing

PATTERNS = (
    "train_*/*.jsonl", "train_*/*.json", "wethink_layout/*.jsonl", "mathvision/*.jsonl", "mathverse/*.json",
    "wemath/data/testmini.json", "vlmevalkit_tsv/*.tsv", "text_math/*/*.jsonl",
)  # fmt: skip
ONE_ROW_EACH = (  # files of one row, beside their pictures
    "train_geometry3k/*/data.json", "train_iconqa/choose_img/*/data.json", "train_iconqa/choose_txt/*/data.json",
    "train_iconqa/fill_in_blank/*/data.json",
)  # fmt: skip
NUMBERS = ("rows", "kept", "not_chosen", "tokens", "supervised_tokens", "images")
MAX_LENGTH = 32768


def sources(folder: Path) -> list[str]:
    """Files and patterns, relative to `folder`; what is not there is said."""
    found = []
    for pattern in (*PATTERNS, *ONE_ROW_EACH):
        files = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
        if not files:
            print(f"{folder / pattern}: nothing there", file=sys.stderr)
        found += [pattern] if files and pattern in ONE_ROW_EACH else files
    return sorted(found)


def measure(folder: Path, name: str, model: Processing, renderer: Renderer) -> dict[str, Any]:
    """One line of the table."""
    config = DataConfig(train=[{"path": str(folder / name)}], max_length=MAX_LENGTH, bad_rows=1.0)
    images = ImageSettings.of(model.image_config, config.min_pixels, config.max_pixels)
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        try:
            manifest = prepare(config, renderer, images, Path(work), seed=0)
        except InputError:
            manifest = read_manifest(Path(work))
            if manifest is None:  # else the file has no row to learn from, and the manifest says why
                raise
        seconds = time.perf_counter() - start
    source = manifest["sources"][0]
    layout, _, why = source["layouts"][0].partition(": ")
    line = {"layout": layout, "file": name} | {key: source[key] for key in NUMBERS}
    line |= {"quarantined": source["quarantined"], "too_long": source["too_long"], "why": why, "seconds": seconds}
    return line | {"distinct_images": manifest["distinct_images"]}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["layout", "file", "rows", "kept", "not chosen", "quarantined", "tokens", "supervised", "pictures"]
    text = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * 3 + "---|" + "---:|" * 3]
    reasons = sum((Counter(line["quarantined"]) for line in lines), Counter())
    total = {"layout": "**all**", "file": f"{len(lines)} files or patterns", "quarantined": reasons}
    for line in [*lines, total | {key: sum(line[key] for line in lines) for key in NUMBERS}]:
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(line["quarantined"].items())) or "0"
        rows, kept, skipped, *sizes = (f"{line[key]:,}" for key in NUMBERS)
        text.append("| " + " | ".join([line["layout"], line["file"], rows, kept, skipped, refused, *sizes]) + " |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()

    model = load_processing("builtin:tiny-vl")
    renderer = Renderer(model.tokenizer, model.chat_template, model.image_token, model.image_config["merge_size"])
    names = sources(args.data)
    if not names:
        sys.exit(f"{args.data} holds none of the sets; give the folder that has train_text and the others in it")
    lines = [measure(args.data, name, model, renderer) for name in names]
    print(table(lines))
    for line in lines:
        if line["too_long"]:
            print(f"{line['file']}: left out {line['too_long']} rows of more than {MAX_LENGTH} tokens")
    if args.out:
        setting = {"model": "builtin:tiny-vl", "max_length": MAX_LENGTH}
        args.out.write_text(json.dumps({"setting": setting, "files": lines}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
