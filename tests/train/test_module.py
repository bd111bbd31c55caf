"""The module with its loss head: families whose logits are scaled or capped, telemetry, and what it refuses."""

import pytest
import torch
from tiny_models import TEXT, tiny_llama
from train.mixed_batches import example
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from dft_mm.data.collate import Collator
from dft_mm.loss.family import Objective
from dft_mm.loss.tokens import token_loss
from dft_mm.train.module import Trainable

SIZES = TEXT | {"initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
SPECIAL = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
}


def batch_of(*sizes):
    generator = torch.Generator().manual_seed(2)
    return Collator(0, None)([example(generator, f"{n}", *size, False) for n, size in enumerate(sizes)])


@pytest.mark.parametrize("name", SPECIAL)
def test_logits_are_scaled_and_capped_as_transformers_does(name):
    torch.manual_seed(0)
    model = SPECIAL[name]().train()
    batch = batch_of((9, 4), (9, 6))
    logits = model(**batch.model_inputs).logits
    right = token_loss(logits[:, :-1], batch.labels[:, 1:], "dft").loss.sum()
    expected = torch.autograd.grad(right, list(model.parameters()))
    loss = Trainable(model)(batch.rows, batch.targets, Objective("dft"), **batch.model_inputs)[0]
    torch.testing.assert_close(loss, right, rtol=1e-5, atol=1e-6)
    largest = max(float(g.abs().max()) for g in expected)
    for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected):
        assert float((mine - theirs).abs().max()) <= 1e-5 * largest


def test_entropy_and_skipped_rows_come_with_the_loss():
    batch = batch_of((20, 19), (20, 12))
    module = Trainable(tiny_llama(tied=False), entropy=True, skip_budget=1e-3)
    _, nll, weight, entropy, skipped = module(batch.rows, batch.targets, Objective("dft"), **batch.model_inputs)
    assert len(entropy) == len(nll) == len(weight) == batch.supervised_tokens
    assert ((entropy > 0) & (entropy <= torch.log(torch.tensor(512.0)))).all()
    assert int(skipped) >= 0


def test_without_rows_it_is_an_output_layer():
    module = Trainable(tiny_llama(tied=False))
    hidden = torch.randn(1, 3, 32)
    assert module.core.lm_head(hidden).shape == (1, 3, 512)


def test_a_loss_without_its_reference_is_refused():
    batch = batch_of((9, 4))
    module = Trainable(tiny_llama(tied=False))
    with pytest.raises(ValueError, match="compares with a reference model, and there is none"):
        module(batch.rows, batch.targets, Objective("asft"), **batch.model_inputs)


def test_the_head_is_checked_once_and_says_so(caplog):
    caplog.set_level("INFO", logger="dft_mm")
    batch = batch_of((9, 4))
    module = Trainable(tiny_llama(tied=False))
    for _ in range(2):
        module(batch.rows, batch.targets, Objective("chord"), **batch.model_inputs)
    (line,) = [record.message for record in caplog.records if "loss head" in record.message]
    assert line.startswith("loss head: tiles on cpu, float32, vocabulary 512; chord agrees with its formula to ")
