"""Small models whose answers depend on what they are asked, unlike those of freshly initialised ones."""

import json
import shutil

import pytest
import torch
from PIL import Image

from dft_mm.model.load import load_model, resolve


def _lively(source: str, folder):
    """A copy of a built-in model with large random weights: every context has another likeliest token."""
    shutil.copytree(resolve(source), folder)
    model = load_model(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    return _lively("builtin:tiny-lm", tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(scope="session")
def picture_model(tmp_path_factory):
    return _lively("builtin:tiny-vl", tmp_path_factory.mktemp("models") / "vl")


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """gsm8k rows of different lengths."""
    path = tmp_path_factory.mktemp("sums") / "test.jsonl"
    rows = [
        {"question": f"What is {n} + {n}?" + " Think of apples." * (n % 3), "answer": f"{n} + {n}\n#### {2 * n}"}
        for n in range(1, 8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """digits rows with pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number, size in enumerate([(56, 56), (112, 56), (84, 140)]):
        image = Image.linear_gradient("L").resize(size).rotate(90 * number).convert("RGB")
        image.resize(size).save(folder / f"{number}.png")
        rows.append({"id": f"p{number}", "problem": "Which?", "answer": "7", "image_path": f"{number}.png"})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
