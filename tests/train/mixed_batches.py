"""Ten steps of mixed image and text examples for a tiny Qwen2.5-VL, split over two ranks in the awkward ways.

Shared by the worker that DeepSpeed starts and by the test that computes the same steps with plain torch.
"""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dft_mm.batch import Example

IMAGE_ID, PAD_ID, END_ID, STEPS = 500, 0, 1, 10
TEXT = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}  # fmt: skip


def tiny_vl(tied):
    """The same weights in every process."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": IMAGE_ID, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=VISION, tie_word_embeddings=tied, **ids
    )
    # Larger than the usual 0.02, so that probabilities, and with them DFT's weights, differ between tokens.
    config.text_config.initializer_range = config.initializer_range = 0.2
    return Qwen2_5_VLForConditionalGeneration(config)


def example(generator, name, length, supervised, picture):
    """`supervised` of the last tokens are learned; a picture of 4 x 6 patches makes 6 tokens after the first."""
    ids = torch.randint(2, 490, (length,), generator=generator)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[length - supervised :] = True
    pixels = grid = None
    if picture:
        ids = torch.cat([torch.tensor([5, 502]), torch.full((6,), IMAGE_ID), torch.tensor([503]), ids])
        mask = torch.cat([torch.zeros(9, dtype=torch.bool), mask])
        pixels, grid = torch.randn(24, 1176, generator=generator), torch.tensor([[1, 4, 6]])
    return Example(name, "test", ids, mask, pixels, grid)


def steps():
    """[step][rank][micro-batch] -> examples. Rank 1 never has a picture, and in its last micro-batch nothing at all."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for step in range(STEPS):

        def new(kind, length, supervised, picture, step=step):
            return example(generator, f"{step}-{kind}", length, supervised, picture)

        rank0 = [[new("a", 14, 3, True), new("b", 9, 5, False)], [new("c", 21, 11, True)]]
        rank1 = [[new("d", 17, 1, False), new("e", 30, 21, False)], []]
        if step % 2:
            rank1[1] = [new("f", 12, 0, False)]  # real tokens, none of them supervised
        made.append([rank0, rank1])
    return made
