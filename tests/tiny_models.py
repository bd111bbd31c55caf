"""Models small enough to be trained in a test, of the architectures that are trained for real."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE_ID = 500
TEXT = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip


def tiny_vl(tied, initializer_range=0.02):
    """The same weights each time."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": IMAGE_ID, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=VISION, tie_word_embeddings=tied, **ids
    )
    config.text_config.initializer_range = config.initializer_range = initializer_range
    return Qwen2_5_VLForConditionalGeneration(config)


def tiny_llama(tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=tied))
