"""Tiny models of every family, as folders that plain transformers wrote."""

import json
import shutil

import pytest
from tiny_models import tiny_llama, tiny_vl

from dft_mm.model.builtin import IMAGE_PROCESSOR, builtin_folder


@pytest.fixture(params=[("vl", True), ("vl", False), ("llama", False)], ids=["vl-tied", "vl-untied", "llama"])
def folder(request, tmp_path):
    """A model folder with weights and (Qwen's) tokenizer files."""
    kind, tied = request.param
    out = tmp_path / "source"
    (tiny_vl if kind == "vl" else tiny_llama)(tied).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(builtin_folder("tiny-vl") / name, out / name)
    if kind == "vl":
        (out / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
    return out
