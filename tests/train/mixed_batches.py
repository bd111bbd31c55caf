"""Twenty steps of mixed image and text examples for a tiny Qwen2.5-VL, split over two ranks in the awkward ways: some
learned by SFT among the others' DFT, and some whose picture was lost.

Shared by the worker that DeepSpeed starts and by the test that computes the same steps with plain torch.
"""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny_models import IMAGE_ID, tiny_vl

from dft_mm.batch import Example
from dft_mm.config import LossConfig
from dft_mm.data.images import ImageSettings

PAD_ID, END_ID, STEPS, WINDOW = 0, 1, 20, 112
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
LOSSES = (LossConfig(name="dft"), LossConfig(name="sft"))
ANCHORED = (LossConfig(name="asft"), LossConfig(name="sft"))
IMAGES = ImageSettings(14, 2, 2, MEAN, STD, 3136, 100352)


def mixed_model(tied):
    """Its weights are larger than the usual 0.02, so that probabilities, and DFT's weights, differ between tokens."""
    return tiny_vl(tied, initializer_range=0.2)


def lr(kind):
    """As much as moves the weights, and not so much that rounding grows."""
    return 0.01 if kind == "adapters" else 0.1


def reference_model():
    """What the anchored losses compare with: the model, a little off."""
    model = mixed_model(False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return model


def with_adapters(model):
    """Adapters that already say something, on the language model; everything else is frozen."""
    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    model, generator = get_peft_model(model, config), torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def example(generator, name, length, supervised, picture, policy=0, lost=False):
    """`supervised` of the last tokens are learned; a picture of 4 x 6 patches makes 6 tokens after the first."""
    ids = torch.randint(2, 490, (length,), generator=generator)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[length - supervised :] = not lost
    patches = grid = None
    if picture:
        ids = torch.cat([torch.tensor([5, 502]), torch.full((6,), IMAGE_ID), torch.tensor([503]), ids])
        mask = torch.cat([torch.zeros(9, dtype=torch.bool), mask])
        patches = torch.randint(256, (24, 588), dtype=torch.uint8, generator=generator)
        grid = torch.tensor([[1, 4, 6]])
    gone = ("gone", supervised) if lost else (None, 0)
    return Example(name, "test", ids, mask, patches, grid, policy, *gone)


def pixel_values(patches):
    """(P, 588) bytes → (P, 1176) float32 by the formula alone."""
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
    return ((patches.reshape(-1, 3, 1, 196) / 255 - mean) / std).repeat(1, 1, 2, 1).reshape(-1, 1176)


def plain_loss(model, examples, reference=None):
    """Mean loss of a step without a line of the package: each example alone, full logits. With a reference the first
    loss is ASFT: 0.1 KL(reference || model) more a token.
    """
    total, tokens = torch.zeros((), dtype=model.dtype), 0
    for e in examples:
        if not e.supervised.any():
            continue
        pictures = {} if e.patches is None else {
            "pixel_values": pixel_values(e.patches).to(model.dtype), "image_grid_thw": e.image_grid_thw,
            "mm_token_type_ids": (e.ids == IMAGE_ID).int()[None],
        }  # fmt: skip
        log_p = F.log_softmax(model(input_ids=e.ids[None], **pictures).logits[0, :-1], -1)
        picked = log_p.gather(1, e.ids[1:, None])[:, 0][e.supervised[1:]]
        weight = picked.exp().detach() if e.policy == 0 else 1.0
        total = total - (weight * picked).sum()
        if reference is not None and e.policy == 0:
            with torch.no_grad():
                log_q = F.log_softmax(reference(input_ids=e.ids[None], **pictures).logits[0, :-1], -1)
            kl = (log_q.exp() * (log_q - log_p)).sum(-1)
            total = total + 0.1 * kl[e.supervised[1:]].sum()
        tokens += len(picked)
    return total / tokens


def steps():
    """[step][rank][micro-batch] -> examples. Rank 1 never has a picture, and in its last micro-batch nothing at all."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for step in range(STEPS):

        def new(kind, length, supervised, picture, step=step, **more):
            return example(generator, f"{step}-{kind}", length, supervised, picture, **more)

        rank0 = [[new("a", 14, 3, True), new("b", 9, 5, False, policy=1)], [new("c", 21, 11, True, lost=step % 3 == 2)]]
        rank1 = [[new("d", 17, 1, False), new("e", 30, 21, False, policy=step % 4 // 2)], []]
        if step % 2:
            rank1[1] = [new("f", 12, 0, False)]  # real tokens, none of them supervised
        made.append([rank0, rank1])
    return made
