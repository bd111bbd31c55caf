"""Loss × {naive, head} × {packed, padded} × {float32, bfloat16} × {full, LoRA, frozen head}: values and gradients
against float64, each example alone, by the papers' formulas. A few times the naive padded version's error is allowed.
"""

import functools
from typing import get_args

import pytest
import torch
from loss.oracle import paper_loss
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import TEXT
from train.mixed_batches import example
from transformers import Qwen2Config, Qwen2ForCausalLM

from dft_mm.config import LossName
from dft_mm.data.collate import Collator
from dft_mm.loss.family import Objective
from dft_mm.loss.tokens import token_loss
from dft_mm.model.attention import PACKED
from dft_mm.train.module import Trainable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model(seed, mode, pack=False):
    torch.manual_seed(seed)
    config = Qwen2Config(**TEXT, initializer_range=0.2, tie_word_embeddings=False)
    config._attn_implementation = PACKED if pack else "sdpa"
    made = Qwen2ForCausalLM(config)
    with torch.no_grad():
        made.lm_head.weight.mul_(4)  # so that some tokens are likely
    if mode == "frozen_head":
        made.lm_head.requires_grad_(False)
    if mode == "lora":
        made = get_peft_model(made, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
        for name, p in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.2)
    return made.train()


@functools.cache
def rows():
    """Every second learned token is the one that the model finds most likely."""
    generator = torch.Generator().manual_seed(7)
    made = [example(generator, f"{n}", *sizes, False) for n, sizes in enumerate([(9, 4), (14, 13), (5, 0), (17, 6)])]
    for e in made:
        for at in range(1, len(e.ids), 2):
            e.ids[at] = plain_logits(model(0, "full"), e)[at - 1].argmax()
    return made


def learning(module):
    return {n.removeprefix("model."): p for n, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def plain_logits(model, e):
    return model(input_ids=e.ids[None]).logits[0, :-1]


def truth(name, mode, dtype):
    """Loss and gradients in float64, from weights that were rounded to `dtype`."""
    trained = model(0, mode).to(dtype).double()
    reference = model(1, "full").to(dtype).double()
    total = torch.zeros((), dtype=torch.float64)
    for e in rows():
        keep = e.supervised[1:]
        if not keep.any():
            continue
        logits = trained(input_ids=e.ids[None]).logits[0, :-1][keep]
        if mode == "lora":
            with trained.disable_adapter():
                ref_logits = plain_logits(trained, e)[keep]
        else:
            ref_logits = plain_logits(reference, e)[keep]
        total = total + paper_loss(name, logits, e.ids[1:][keep], ref_logits, torch.zeros(int(keep.sum())))
    parameters = {n: p for n, p in trained.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return total.detach(), dict(zip(parameters, gradients))


def head(name, mode, dtype, pack):
    module = Trainable(
        model(0, mode, pack).to(dtype), None if mode == "lora" else model(1, "full", pack).to(dtype)
    )
    batch = Collator(0, None, pack=pack)(rows())
    loss = module(batch.rows, batch.targets, Objective(name), None, batch.sequences, **batch.model_inputs)[0]
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in learning(module).items()}


def naive(name, mode, dtype, pack):
    """Whole logits through the readable definition."""
    trained = model(0, mode, pack).to(dtype)
    reference = trained if mode == "lora" else model(1, "full", pack).to(dtype)
    batch = Collator(0, None, pack=pack)(rows())

    def logits(of_model):
        core = of_model.base_model.model if isinstance(of_model, PeftModel) else of_model
        hidden = core.model(**batch.model_inputs, use_cache=False).last_hidden_state
        return core.lm_head(hidden).flatten(0, 1)[batch.rows]

    with torch.no_grad():
        if mode == "lora":
            with trained.disable_adapter():
                ref_logits = logits(trained)
        else:
            ref_logits = logits(reference)
    loss = token_loss(logits(trained), batch.targets, name, ref_logits, batch.sequences).loss.sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in trained.named_parameters() if p.requires_grad}


def error(result, right):
    """Relative error of the loss, and of the whole gradient."""
    (loss, gradients), (right_loss, right_gradients) = result, right
    assert set(gradients) == set(right_gradients)
    apart = sum(float((gradients[n].double() - g).square().sum()) for n, g in right_gradients.items()) ** 0.5
    norm = sum(float(g.square().sum()) for g in right_gradients.values()) ** 0.5
    return float((loss.double() - right_loss).abs() / right_loss.abs()), apart / norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["full", "lora", "frozen_head"])
@pytest.mark.parametrize("name", get_args(LossName))
def test_every_path_gives_the_formulas_numbers(name, mode, dtype):
    right = truth(name, mode, DTYPES[dtype])
    own = error(naive(name, mode, DTYPES[dtype], pack=False), right)
    # An answer's weight, the exponential of a sum over its tokens, has the sum of their errors.
    sane = {"float32": 1e-5, "bfloat16": 0.1}[dtype] * (10 if name == "dft_sequence" else 1)
    for made in (head, naive):
        for pack in (True, False):
            errors = error(made(name, mode, DTYPES[dtype], pack), right)
            for apart, of_naive in zip(errors, own):
                assert apart <= min(sane, 3 * of_naive + sane / 10), (made.__name__, "packed" if pack else "padded")
