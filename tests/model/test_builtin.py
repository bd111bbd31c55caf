"""The built-in models: Qwen2.5's tokenizer rebuilt from its vocabulary, and ordinary folders."""

import hashlib
import json

import pytest

from dft_mm.model import builtin


@pytest.fixture(scope="module")
def tokenizer():
    return builtin.qwen_tokenizer()


def test_vocabulary_merges_and_added_tokens_are_qwens(tokenizer):
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    assert len(content["model"]["merges"]) == 151387
    added = tokenizer.convert_ids_to_tokens(list(range(151643, 151665)))
    assert added[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert added[9:14] == ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    assert added[-1] == "<|file_sep|>"
    assert len(tokenizer) == 151665


def test_ids_equal_qwens_published_ones(tokenizer):
    # from the model card and transformers' own tests of Qwen2
    assert tokenizer.encode("<|im_start|>user\nHello 123<|im_end|>") == [
        151644, 872, 198, 9707, 220, 16, 17, 18, 151645,
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("Ünïcode ∑ 你好\n\n x")) == "Ünïcode ∑ 你好\n\n x"


def test_folders_are_the_same_each_time(tmp_path, monkeypatch):
    digests = []
    for cache in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        folder = builtin.builtin_folder("tiny-lm")
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert digests[0] == digests[1]
    assert set(digests[0]) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert builtin.builtin_folder("tiny-lm") == folder


def test_the_vl_template_is_the_official_one(shared):
    official = (shared / "models/qwen2.5-vl/chat_template.jinja").read_text()
    assert (builtin.builtin_folder("tiny-vl") / "chat_template.jinja").read_text() == official
