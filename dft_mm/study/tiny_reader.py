"""A Qwen2.5-VL of about a million random weights with a 33-word tokenizer, written as an ordinary model folder."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<unk>",
)  # fmt: skip
_WORD = "<think>|</think>|<answer>|</answer>| ?[A-Za-z]+|\n|."
_WORDS = ("<think>", "</think>", "<answer>", "</answer>", "\n", "user", "assistant", "system", *"0123456789+-=?")
_QUESTION_WORDS = ("What", " is", " the", " result")  # of digits.QUESTION

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_tokenizer() -> Any:
    """Words of the demo's texts, one token each; decoding gives the text back exactly."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*_SPECIAL, *_WORDS, *_QUESTION_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=[word for word in _SPECIAL if word.startswith("<|")],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def write_tiny_reader(folder: Path, seed: int) -> int:
    """Write the model folder; returns the number of parameters."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = make_tokenizer()
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in _SPECIAL}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "initializer_range": 0.08, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 4, 8]},
    }  # fmt: skip
    # A window of one image token: each character is looked at by itself, and the text model puts them together.
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "out_hidden_size": 128,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28,
        "fullatt_block_indexes": [], "initializer_range": 0.08,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    processor = {
        "min_pixels": 784, "max_pixels": 28 * 28 * 8, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.9, 0.9, 0.9], "image_std": [0.3, 0.3, 0.3],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())
