"""Small models whose answers depend on what they are asked, unlike those of freshly initialised ones."""

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoTokenizer

from dft_mm.evaluate.tasks.mathematics import MATH_SYSTEM
from dft_mm.model.folder import read_family, resolve


def _lively(source, folder):
    """A model of a built-in one's shape with large random weights and a small vocabulary: quick, and every context has
    another likeliest token."""
    original = resolve(source)
    folder.mkdir()
    for name in ("chat_template.jinja", "preprocessor_config.json"):
        if (original / name).is_file():
            shutil.copyfile(original / name, folder / name)
    corpus = [MATH_SYSTEM, "You are a helpful assistant. What is 1 + 2? Think of apples.", *map(str, range(100))]
    tokenizer = AutoTokenizer.from_pretrained(original).train_new_from_iterator(corpus, 500)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(original)
    config.get_text_config().vocab_size = len(tokenizer)
    config.get_text_config().eos_token_id = tokenizer.eos_token_id
    for name in ("image", "video", "vision_start", "vision_end"):
        if hasattr(config, f"{name}_token_id"):
            token = f"<|{name}_pad|>" if name in ("image", "video") else f"<|{name}|>"
            setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    model = getattr(transformers, read_family(original).model_class)(config)
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
