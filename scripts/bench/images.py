"""Time and stored bytes of preparing pictures beside the image processor of transformers, and whether all bits agree.

    python -m scripts.bench.images --images ../shared/data/mathvision      # C7 of the targets
    python -m scripts.bench.images --sizes 640x480 2048x1536 --out images.json

All start from the same decoded pictures. `ours` is what data workers do and queues carry; `ours, normalised` adds the
float32 values that the training step makes on its device, here on the CPU; `resizing` is Pillow's alone, which none can
do without. Contestants take turns at each picture, so that a busy machine slows all of them alike; a picture's time is
the median of its turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dft_mm.batch import normalise
from dft_mm.data.images import ImageError, ImageSettings, image_grid, load_image
from dft_mm.data.patches import to_patches
from scripts.bench.measure import Found, Row, Target, machine, report, table

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
# The numbers of Qwen2.5-VL's preprocessor_config.json.
QWEN = {
    "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip

COLUMNS = {
    "name": "", "ms": "ms", "of_transformers": "of theirs", "of_transformers_a_picture": "median picture",
    "kept_mib": "kept MiB", "kept_of_transformers": "of theirs",
}  # fmt: skip

Contestant = Callable[[Image.Image], Any]


def contestants(min_pixels: int, max_pixels: int) -> dict[str, Contestant]:
    """Each makes one picture into what it would keep."""
    settings = ImageSettings.of({**QWEN, "min_pixels": min_pixels, "max_pixels": max_pixels})
    processor = Qwen2VLImageProcessorPil(**QWEN, size={"shortest_edge": min_pixels, "longest_edge": max_pixels})

    def ours(picture: Image.Image) -> torch.Tensor:
        return to_patches([picture], settings)[0]

    def normalised(picture: Image.Image) -> torch.Tensor:
        return normalise(ours(picture), settings.image_mean, settings.image_std, settings.temporal_patch_size)

    def theirs(picture: Image.Image) -> torch.Tensor:
        return processor(images=[picture], return_tensors="pt")["pixel_values"]

    def resizing(picture: Image.Image) -> Image.Image:
        _, rows, columns = image_grid(*picture.size, settings)
        return picture.resize((14 * columns, 14 * rows), Image.Resampling.BICUBIC)

    return {"ours": ours, "ours, normalised": normalised, "transformers": theirs, "resizing": resizing}


def load(folders: list[Path], limit: int) -> list[Image.Image]:
    """Pictures spread evenly over all that lie below the folders; what cannot be used is told and left out."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    pictures = []
    for path in files[:: max(1, len(files) // limit)][:limit]:
        try:
            pictures.append(load_image(path.name, path.parent))
        except ImageError as error:
            print(f"left out: {error}")
    return pictures


def noise(sizes: list[str]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [tuple(map(int, size.split("x"))) for size in sizes]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in shapes]


def spent(contestant: Contestant, picture: Image.Image) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    contestant(picture)
    return 1000 * (time.perf_counter() - start)


def measure(pictures: list[Image.Image], makers: dict[str, Contestant], repeats: int) -> list[Row]:
    """A row for each maker."""
    ours, normalised = makers["ours"], makers["ours, normalised"]
    kept = {"ours": sum(ours(picture).nbytes for picture in pictures)}
    kept["ours, normalised"] = kept["transformers"] = sum(normalised(picture).nbytes for picture in pictures)
    typical: dict[str, list[float]] = {name: [] for name in makers}  # ms of each picture
    for picture in pictures:
        turns = [[spent(maker, picture) for maker in makers.values()] for _ in range(repeats + 1)]
        for name, times in zip(makers, zip(*turns[1:])):  # the first turn warms up
            typical[name].append(statistics.median(times))
    return [
        {
            "name": name,
            "ms": sum(typical[name]),
            "of_transformers": sum(typical[name]) / sum(typical["transformers"]),
            "of_transformers_a_picture": statistics.median(map(truediv, typical[name], typical["transformers"])),
            "kept_mib": kept[name] / 2**20 if name in kept else None,
            "kept_of_transformers": kept[name] / kept["transformers"] if name in kept else None,
        }
        for name in makers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders of pictures")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes of pictures of noise, as 640x480")
    parser.add_argument("--limit", type=int, default=200, help="largest number of pictures from the folders")
    parser.add_argument("--min-pixels", type=int, default=3136)
    parser.add_argument("--max-pixels", type=int, default=1003520)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as in a data worker")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pictures = load(args.images, args.limit) + noise(args.sizes)
    if not pictures:
        parser.error("no pictures: give --images FOLDER or --sizes 640x480")
    makers = contestants(args.min_pixels, args.max_pixels)
    normalised, theirs = makers["ours, normalised"], makers["transformers"]
    equal = sum(torch.equal(normalised(picture), theirs(picture)) for picture in pictures)
    rows = measure(pictures, makers, args.repeats)
    megapixels = sum(picture.width * picture.height for picture in pictures) / 1e6
    print(f"{len(pictures)} pictures, {megapixels:.1f} megapixels; bitwise equal: {equal} of {len(pictures)}")
    print(table(rows, COLUMNS))
    ours, *_ = rows
    targets = [
        Target("C7", "pictures bitwise equal", 1.0, at_least=True).judged(equal / len(pictures)),
        Target("C7", "time over transformers'", 0.55).judged(ours["of_transformers"]),
        Target("C7", "stored bytes over transformers'", 0.13).judged(ours["kept_of_transformers"]),
    ]
    asked = {name: getattr(args, name) for name in ("sizes", "min_pixels", "max_pixels", "repeats")}
    setting = {**asked, "pictures": len(pictures), "megapixels": megapixels, "bitwise_equal": equal}
    setting["folders"] = [folder.name for folder in args.images]
    report(Found("images", setting, machine(torch.device("cpu")), COLUMNS, rows, targets, {}), args.out)


if __name__ == "__main__":
    main()
