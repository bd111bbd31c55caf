"""Tiny models of every family, as folders that plain transformers wrote."""

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dft_mm.model.builtin import IMAGE_PROCESSOR, builtin_folder

TEXT = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip


def tiny_vl(tied):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=VISION, tie_word_embeddings=tied, **ids
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def tiny_llama(tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=tied))


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
