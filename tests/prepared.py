"""A small data folder and the tiny model's renderer, for tests of preparing and of reading what was prepared."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from dft_mm.config import DataConfig
from dft_mm.data.dataset import Dataset
from dft_mm.data.images import ImageSettings
from dft_mm.data.preparing.prepare import prepare
from dft_mm.data.render import Renderer
from dft_mm.model.processing import load_processing


@cache
def processing(name="builtin:tiny-vl"):
    return load_processing(name)


def settings(config):
    return ImageSettings.of(processing().image_config, config.min_pixels, config.max_pixels)


@cache  # making one takes half a second
def renderer(supervise="answers"):
    model = processing()
    return Renderer(model.tokenizer, model.chat_template, model.image_token, 2, supervise)


def run(folder, *sources, seed=0, supervise="answers", **more):
    """Prepare WeThink files of tmp_path into `folder`; returns the manifest."""
    config = DataConfig(**{"train": list(sources), "bad_rows": 1.0, "max_length": 512} | more)
    return prepare(config, renderer(supervise), settings(config), Path(folder), seed)


def rows(folder, *more, count=6, name="a.jsonl"):
    """A source of `count` good WeThink rows, the even ones with a picture, and `more` lines as they are."""
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        picture = None if number % 2 else f"{number}.png"
        if picture:
            noise = np.random.default_rng(number).integers(0, 256, (56 + 28 * number, 84, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "images" / picture)
        lines.append(good(number, picture))
    path = folder / name
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in as_lines(lines + [*more])))
    return source(path)


def as_lines(values):
    return [v if isinstance(v, str | bytes) else json.dumps(v) + "\n" for v in values]


def good(number, picture=None):
    steps = " ".join(["again"] * number) or "none"
    return {"problem": f"What is {number}?", "answer": str(number), "refined_cot": steps, "image_path": picture}


def source(path, **more):
    return {"path": str(path), "format": "wethink", "images": str(path.parent / "images"), **more}


def quarantine(folder):
    return [json.loads(line) for line in (Path(folder) / "quarantine.jsonl").read_text().splitlines()]


def ids_of(folder, split="train"):
    dataset = Dataset(folder, split, None)
    return [dataset.meta(index)["id"] for index in range(len(dataset))]
