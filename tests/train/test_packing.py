"""A packed micro-batch against its samples alone, one call of plain transformers each: the same loss, the same
gradients, and nothing of one sample in another.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mixed_batches import IMAGES, LOSSES, PAD_ID, WINDOW, plain_loss
from tiny_models import IMAGE_ID, TEXT, tiny_llama, tiny_vl
from transformers import Qwen2Config, Qwen2ForCausalLM

from dft_mm.batch import Example
from dft_mm.data.collate import Collator
from dft_mm.families import family_of
from dft_mm.loss.family import Objective
from dft_mm.model import attention
from dft_mm.model.attention import PACKED, pack_tower
from dft_mm.train.engine import checkpoint_activations
from dft_mm.train.module import Trainable


def tiny_qwen2():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, initializer_range=0.2))


MODELS = {
    "qwen2.5-vl": lambda: tiny_vl(False, initializer_range=0.2),
    "qwen2.5-vl tied": lambda: tiny_vl(True, initializer_range=0.2),
    "qwen2": tiny_qwen2,
    "llama": lambda: tiny_llama(True),
}
START, END = 502, 503


def sample(name, seed, parts, learned, policy=0):
    """Parts are a text's length or a picture's grid; `learned` of the last tokens are."""
    generator = torch.Generator().manual_seed(seed)
    ids, grids = [], []
    for part in parts:
        if isinstance(part, tuple):
            grids.append(part)
            ids += [START, *[IMAGE_ID] * (part[1] * part[2] // 4), END]
        else:
            ids += torch.randint(2, 490, (part,), generator=generator).tolist()
    patches = grid = None
    if grids:
        grid = torch.tensor(grids)
        patches = torch.randint(256, (int(grid.prod(1).sum()), 588), dtype=torch.uint8, generator=generator)
    supervised = torch.arange(len(ids)) >= len(ids) - learned
    return Example(name, "test", torch.tensor(ids), supervised, patches, grid, policy)


def with_pictures(seed=0):
    """Several pictures in a sample, at its very beginning and end, samples of text between, one without a target."""
    shapes = [
        ([3, (1, 4, 6), (1, 18, 12), 9], 5), ([14], 6), ([(1, 2, 2), 7], 7), ([14], 0),
        ([6, (1, 10, 4), 2, (1, 4, 4)], 0), ([2, (1, 6, 20), 30], 11),
    ]  # fmt: skip
    return [sample(str(n), seed + n, *shape, policy=n % 2) for n, shape in enumerate(shapes)]


def of_text(seed=0):
    shapes = [([11], 4), ([1], 1), ([25], 25), ([11], 0), ([7], 3)]
    return [sample(str(n), seed + n, *shape, policy=n % 2) for n, shape in enumerate(shapes)]


CASES = [
    *((name, with_pictures) for name in MODELS if "vl" in name),
    *((name, of_text) for name in MODELS),
]


def sees(model):
    return hasattr(model.model, "visual")


def packed_model(name, checkpointing=False):
    model = MODELS[name]()
    model.set_attn_implementation(PACKED)
    if sees(model):
        pack_tower(model)
    if checkpointing:
        checkpoint_activations(model, family_of(model.config.model_type), {})
    return Trainable(model).train()


def packed_batch(module, samples):
    return Collator(PAD_ID, IMAGE_ID if sees(module.core) else None, IMAGES, WINDOW, pack=True)(samples)


def in_one_segment(batch):
    """What must not be done: the samples one behind the other, and nothing between them."""
    tokens = batch.input_ids.numel()
    return replace(batch, cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32), seqlens=(tokens,))


def loss_and_gradients(module, batch):
    module.zero_grad()
    total, *_ = module(
        batch.rows, batch.targets, Objective(LOSSES), batch.policy, batch.sequences, **batch.model_inputs
    )
    loss = total / max(1, len(batch.targets))
    loss.backward()
    return loss.detach(), {name.removeprefix("model."): p.grad for name, p in module.named_parameters()}


def plain_gradients(name, samples):
    model = MODELS[name]().train()
    loss = plain_loss(model, samples)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}


def difference(ours, theirs):
    """The largest over loss and parameters, each beside its own size; where nothing is to be had, nothing may be."""
    (loss, gradients), (plain, expected) = ours, theirs
    assert gradients.keys() == expected.keys()
    errors = {"loss": (loss - plain).abs() / plain.abs()}
    for name, gradient in expected.items():
        if gradient is None or not gradient.any():
            assert gradients[name] is None or not gradients[name].any(), name
        else:
            errors[name] = (gradients[name] - gradient).norm() / gradient.norm()
    return float(max(errors.values()))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("name", "samples"), CASES)
def test_loss_and_gradients_are_those_of_the_samples_alone(name, samples, checkpointing):
    module = packed_model(name, checkpointing)
    batch = packed_batch(module, samples())
    expected = plain_gradients(name, samples())
    assert difference(loss_and_gradients(module, batch), expected) <= 1e-5
    assert difference(loss_and_gradients(module, in_one_segment(batch)), expected) > 1e-2


def flash(query, key, value, attention_mask, *, is_causal, softmax_scale, **segments):
    """What transformers gives to the flash-attn package, which is not here: (1, T, H, D) and the segments."""
    assert attention_mask is None
    lengths = segments["cu_seq_lens_q"].diff().tolist()
    assert segments["cu_seq_lens_k"] is segments["cu_seq_lens_q"]
    assert segments["max_length_q"] == segments["max_length_k"] == max(lengths)
    shared, outs = {"enable_gqa": query.shape[2] != key.shape[2]}, []
    for parts in zip(*(tensor.transpose(1, 2).split(lengths, dim=2) for tensor in (query, key, value))):
        out = F.scaled_dot_product_attention(*parts, is_causal=is_causal, scale=softmax_scale, **shared)
        outs.append(out.transpose(1, 2))
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize(("name", "samples"), [("qwen2.5-vl", with_pictures), ("qwen2", of_text), ("llama", of_text)])
def test_flash_attention_is_told_of_the_segments(name, samples, monkeypatch):
    monkeypatch.setattr("transformers.integrations.flash_attention._flash_attention_forward", flash)
    model = MODELS[name]()
    model.config._attn_implementation = "flash_attention_2"
    if sees(model):
        pack_tower(model, None)
    module = Trainable(model).train()
    ours = loss_and_gradients(module, packed_batch(module, samples()))
    assert difference(ours, plain_gradients(name, samples())) <= 1e-5


def leaks(module, samples, others, spoil=lambda batch: batch):
    """Samples whose hidden states change by a bit when another is swapped for one of the same shape, and samples that,
    when they are, change the gradients of the others' loss.
    """
    changed_states, changed_gradients = set(), set()
    for number, other in enumerate(others):
        silent = replace(samples[number], supervised=torch.zeros_like(samples[number].supervised))
        pairs = []
        for shown in (silent, replace(silent, ids=other.ids, patches=other.patches)):
            batch = spoil(packed_batch(module, [*samples[:number], shown, *samples[number + 1 :]]))
            with torch.no_grad():
                hidden = module.core.model(**batch.model_inputs, use_cache=False).last_hidden_state[0]
            lengths = [*(len(one.ids) for one in samples), len(hidden) - sum(len(one.ids) for one in samples)]
            pairs.append((hidden.split(lengths), loss_and_gradients(module, batch)))
        (states, (loss, gradients)), (states_of_other, (loss_of_other, gradients_of_other)) = pairs
        moved = {n for n, pair in enumerate(zip(states, states_of_other)) if not torch.equal(*pair)}
        assert number in moved  # it really is another
        changed_states |= moved - {number}
        same = all(torch.equal(gradient, gradients_of_other[name]) for name, gradient in gradients.items())
        if loss != loss_of_other or not same:
            changed_gradients.add(number)
    return changed_states, changed_gradients


@pytest.mark.parametrize(("name", "samples"), CASES)
def test_nothing_of_one_sample_is_in_another(name, samples):
    module = packed_model(name)
    assert leaks(module, samples(), samples(seed=100)) == (set(), set())


@pytest.mark.parametrize(("name", "samples"), [("qwen2.5-vl", with_pictures), ("llama", of_text)])
def test_a_leak_would_be_found(name, samples):
    states, gradients = leaks(packed_model(name), samples(), samples(seed=100), in_one_segment)
    last = len(samples()) - 1
    assert states >= set(range(1, last + 1))
    assert gradients >= set(range(last))


def test_no_sample_sees_the_blank_picture():
    module = packed_model("qwen2.5-vl")
    batch = packed_batch(module, of_text())
    loss, gradients = loss_and_gradients(module, batch)
    other = replace(batch, patches=255 - batch.patches // 2)
    with torch.no_grad():
        states = [module.core.model(**b.model_inputs, use_cache=False).last_hidden_state[0] for b in (batch, other)]
    assert torch.equal(states[0][:-1], states[1][:-1])
    assert not torch.equal(states[0][-1], states[1][-1])
    again, others = loss_and_gradients(module, other)
    assert loss == again
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert not any(gradient.any() for name, gradient in gradients.items() if "visual" in name)


@pytest.mark.parametrize(("name", "samples"), CASES)
def test_a_step_asks_the_device_nothing(name, samples, monkeypatch):
    """Tensors without values stand for the device: whatever wanted one, a number or a length, would fail."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # as a run does
    monkeypatch.setattr(attention, "_kernel_refuses", lambda *_: None)
    module = packed_model(name, checkpointing=True)
    batch = packed_batch(module, samples())
    inputs = batch.to(torch.device("meta")).model_inputs
    hidden = module.to("meta").core.model(**inputs, use_cache=False).last_hidden_state
    assert hidden.shape[:2] == batch.input_ids.shape
    hidden.sum().backward()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen2"])
def test_an_empty_micro_batch_has_gradients_that_are_zero(name):
    module = packed_model(name, checkpointing=True)
    loss, gradients = loss_and_gradients(module, packed_batch(module, []))
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
