import inspect
import logging
import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_models import TEXT, tiny_llama, tiny_vl
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dft_mm.errors import InputError
from dft_mm.model import attention
from dft_mm.model.attention import PACKED, TOWER, pack_tower, segment_attention
from dft_mm.model.load import load_model

LENGTHS = (3, 8, 8, 1, 5, 5, 5, 1, 13, 8)


class Layer(nn.Module):
    """What an attention function looks at."""

    def __init__(self, causal, shared=1):
        super().__init__()
        self.is_causal, self.num_key_value_groups = causal, shared


def row(heads=4, shared=1, lengths=LENGTHS, dtype=torch.float64):
    """Queries, keys and values (1, H, T, 8), and where the segments begin and end."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, n, sum(lengths), 8, generator=generator).to(dtype).requires_grad_()
        for n in (heads, heads // shared, heads // shared)
    ]
    return *tensors, torch.tensor([0, *lengths]).cumsum(0).int()


def by_formula(query, key, value, lengths, causal, scaling):
    """softmax(q·k) v of a whole row (1, H, T, D) under a block mask → (1, T, H, D)."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = of[:, None] == of
    if causal:
        seen = seen.tril()
    scores = (scaling * query @ key.mT).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def packed(layer, query, key, value, cu_seqlens, **more):
    arguments = {"cu_seq_lens_q": cu_seqlens, "max_length_q": max(LENGTHS), "scaling": 0.3} | more
    return segment_attention(layer, query, key, value, None, **arguments)[0]


def agrees_with_the_formula(causal, shared):
    query, key, value, cu_seqlens = row(shared=shared)
    out = packed(Layer(causal, shared), query, key, value, cu_seqlens)
    expected = by_formula(query, key, value, LENGTHS, causal, 0.3)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    towards = torch.randn(out.shape, dtype=out.dtype)
    ours = torch.autograd.grad(out, (query, key, value), towards)
    for gradient, of_formula in zip(ours, torch.autograd.grad(expected, (query, key, value), towards)):
        torch.testing.assert_close(gradient, of_formula, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [1, 2])
def test_segments_do_not_see_each_other(causal, shared):
    agrees_with_the_formula(causal, shared)


def test_what_the_call_says_of_causality_goes_before_what_the_layer_says():
    query, key, value, cu_seqlens = row()
    full = packed(Layer(False), query, key, value, cu_seqlens)
    assert torch.equal(packed(Layer(True), query, key, value, cu_seqlens, is_causal=False), full)
    assert not torch.equal(packed(Layer(True), query, key, value, cu_seqlens), full)


def test_dropout_takes_place():
    query, key, value, cu_seqlens = row()
    torch.manual_seed(0)
    many = torch.stack([packed(Layer(True), query, key, value, cu_seqlens, dropout=0.5) for _ in range(400)])
    without = packed(Layer(True), query, key, value, cu_seqlens)
    assert (many[0] - without).abs().max() > 0.1
    torch.testing.assert_close(many.mean(0), without, atol=0.3, rtol=0)


def test_neighbours_of_one_length_share_a_call(monkeypatch):
    shapes = []

    def counted(module, query, *others, **arguments):
        shapes.append(tuple(query.shape))
        return sdpa_attention_forward(module, query, *others, **arguments)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    packed(Layer(True), *row())
    assert [(n, length) for n, _, length, _ in shapes] == [(1, 3), (2, 8), (1, 1), (3, 5), (1, 1), (1, 13), (1, 8)]


REFUSED = {
    "no segments": ({"cu_seq_lens_q": None}, ValueError, "needs cu_seq_lens_q"),
    "a window": ({"sliding_window": 12}, InputError, "reaches back 12 tokens, a sample has 13.*data.max_length"),
    "a cap": ({"softcap": 30.0}, InputError, "caps its attention scores at 30.0.*data.pack: false"),
}


@pytest.mark.parametrize(("more", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_compute_is_refused(more, error, message):
    with pytest.raises(error, match=message):
        packed(Layer(True), *row(), **more)


def test_anything_but_one_row_without_mask_and_cache_is_refused():
    query, key, value, cu_seqlens = row()
    segments = {"cu_seq_lens_q": cu_seqlens, "max_length_q": 13}
    with pytest.raises(ValueError, match="a mask"):
        segment_attention(Layer(True), query, key, value, torch.ones(1, 1, 57, 57, dtype=torch.bool), **segments)
    with pytest.raises(ValueError, match="one row"):
        segment_attention(Layer(True), *(t.expand(2, -1, -1, -1) for t in (query, key, value)), None, **segments)
    with pytest.raises(ValueError, match="one row"):
        segment_attention(Layer(True), query[:, :, -1:], key, value, None, **segments)


def test_a_window_no_shorter_than_the_samples_changes_nothing():
    query, key, value, cu_seqlens = row()
    windowed = packed(Layer(True), query, key, value, cu_seqlens, sliding_window=13)
    assert torch.equal(windowed, packed(Layer(True), query, key, value, cu_seqlens))


def stand_in(share_keys):
    """torch's kernel in plain torch, with the arguments that the installed one takes."""

    def kernel(*arguments, **named):
        named = inspect.signature(varlen_attn).bind(*arguments, **named).arguments
        query, key, value = (named[name] for name in ("query", "key", "value"))
        assert query.stride(2) == 1
        assert (query.shape[1] == key.shape[1]) or named["enable_gqa"]
        assert share_keys or "enable_gqa" not in named
        assert named["cu_seq_q"].dtype == torch.int32
        lengths = named["cu_seq_q"].diff().tolist()
        assert (named["max_q"], named["max_k"]) == (max(lengths), max(lengths))
        assert named["window_size"] in ((-1, 0), (-1, -1))
        one_row = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        return by_formula(*one_row, lengths, named["window_size"] == (-1, 0), named["scale"])[0]

    return kernel


@pytest.mark.parametrize("share_keys", [True, False], ids=["kernel shares keys", "torch 2.11"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_is_given_what_it_takes(monkeypatch, causal, share_keys):
    monkeypatch.setattr(attention, "_kernel_refuses", lambda *_: None)
    monkeypatch.setattr(attention, "_KERNEL_SHARES_KEYS", share_keys)
    monkeypatch.setattr(attention, "varlen_attn", stand_in(share_keys))
    for shared in (1, 2):
        agrees_with_the_formula(causal, shared)


def test_the_kernel_of_the_installed_torch_takes_the_call():
    """Without values: torch knows the shapes that its kernel gives, and those of its gradients."""
    tensors = [torch.empty(1, n, 57, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for n in (4, 2, 2)]
    cu_seqlens = torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="meta")
    out = attention._one_call(*tensors, cu_seqlens, 13, 0.3, True)
    assert out.shape == (1, 57, 4, 8)
    out.sum().backward()
    assert [tensor.grad.shape for tensor in tensors] == [tensor.shape for tensor in tensors]


def on_a_gpu(dtype=torch.bfloat16, head=128):
    return SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 4, 57, head), device="cuda")


@pytest.mark.parametrize(
    ("query", "dropout", "capability", "reason"),
    [
        (on_a_gpu(), 0.0, (9, 0), None),
        (on_a_gpu(torch.float16, 80), 0.0, (8, 0), None),
        (torch.empty(1), 0.0, None, "needs CUDA"),
        (on_a_gpu(torch.float32), 0.0, (9, 0), "16 bits, not torch.float32"),
        (on_a_gpu(), 0.1, (9, 0), "no dropout, the model asks for 0.1"),
        (on_a_gpu(head=100), 0.0, (9, 0), "not 100"),
        (on_a_gpu(head=256), 0.0, (9, 0), "not 256"),
        (on_a_gpu(), 0.0, (7, 5), r"8.0, this GPU has \(7, 5\)"),
    ],
)
def test_where_the_kernel_cannot_be_had_is_known(monkeypatch, query, dropout, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    told = attention._kernel_refuses(query, dropout)
    assert told is None if reason is None else re.search(reason, told)


def test_a_gpu_that_goes_without_the_kernel_is_told_once(caplog):
    attention._say.cache_clear()
    with caplog.at_level(logging.INFO, "dft_mm"):
        for _ in range(3):
            attention._say("it takes 16 bits")
            attention._say(None)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def grids_of(kind):
    return torch.tensor({"one": [[1, 4, 6]], "several": [[1, 18, 12], [1, 2, 2], [1, 16, 22]]}[kind])


@pytest.mark.parametrize("kind", ["one", "several"])
def test_all_windows_of_all_pictures_are_one_call_of_the_tower_and_mean_the_same(monkeypatch, kind):
    model, grids = tiny_vl(True).double(), grids_of(kind)
    visual = model.model.visual
    pixels = torch.randn(int(grids.prod(1).sum()), 1176, dtype=torch.float64)

    def run():
        visual.zero_grad()
        out = visual(pixels, grids).pooler_output
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in visual.parameters())]

    own = run()
    calls = []
    monkeypatch.setattr(attention, "_call_for_each", counting(attention._call_for_each, calls))
    pack_tower(model)
    ours = run()
    windows = {"one": 1, "several": 6 + 1 + 6}[kind]
    assert calls == [windows, len(grids)]  # the first layer looks at windows, the second at whole pictures
    for tensor, expected in zip(ours, own):
        torch.testing.assert_close(tensor, expected, atol=1e-11, rtol=1e-11)


def counting(function, calls):
    def counted(module, query, key, value, lengths, **arguments):
        calls.append(len(lengths))
        return function(module, query, key, value, lengths, **arguments)

    return counted


def test_a_model_is_loaded_for_padded_or_for_packed_rows(tmp_path):
    for name, model in (("vl", tiny_vl(True)), ("llama", tiny_llama(True))):
        model.save_pretrained(tmp_path / name)
    text = load_model(tmp_path / "llama", packed=True)
    both = load_model(tmp_path / "vl", packed=True)
    assert text.config._attn_implementation == PACKED
    assert both.config._attn_implementation == both.model.language_model.config._attn_implementation == PACKED
    assert both.model.visual.config._attn_implementation == TOWER
    padded = load_model(tmp_path / "vl")
    assert padded.model.language_model.config._attn_implementation == "sdpa"
    assert padded.model.visual.config._attn_implementation == TOWER
    assert load_model(tmp_path / "vl", attention="eager").model.visual.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="eager mixes packed samples"):
        load_model(tmp_path / "vl", attention="eager", packed=True)
    both.save_pretrained(tmp_path / "again")
    assert "segments" not in (tmp_path / "again" / "config.json").read_text()


def test_a_model_loaded_for_packed_rows_takes_no_others(tmp_path):
    tiny_llama(True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs cu_seq_lens_q"):
        load_model(tmp_path, packed=True)(input_ids=torch.arange(5)[None])


def test_no_mask_is_made_of_packed_rows_and_no_segments_are_looked_for(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a mask was made")

    for name in ("sdpa_mask", "find_packed_sequence_indices"):
        monkeypatch.setattr(transformers.masking_utils, name, never)
    monkeypatch.setitem(transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", never)
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT))
    ids = torch.arange(7)[None]
    segments = {"cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32), "max_length_q": 4}
    call = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), "use_cache": False, **segments}
    with pytest.raises(AssertionError, match="a mask was made"):
        model(**call)  # plain sdpa
    model.set_attn_implementation(PACKED)
    assert model(**call).logits.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "shared", "size"), [(16, 8, 128), (16, 1, 80), (4, 2, 16)])
def test_the_kernel_computes_what_a_call_for_each_segment_does(causal, heads, shared, size):
    """In bfloat16, no worse than plain SDPA beside float64."""
    lengths = [700, 64, 64, 1, 333]
    generator = torch.Generator("cuda").manual_seed(0)
    exact = [
        torch.randn(1, sum(lengths), n, size, generator=generator, device="cuda").bfloat16().double().transpose(1, 2)
        for n in (heads, heads // shared, heads // shared)
    ]
    cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    towards = torch.randn(1, sum(lengths), heads, size, generator=generator, device="cuda").bfloat16()
    layer, results = Layer(causal, shared), {}
    for name, dtype in (("exact", torch.float64), ("kernel", torch.bfloat16), ("each", torch.bfloat16)):
        tensors = [tensor.to(dtype).requires_grad_() for tensor in exact]
        if name == "each":
            arguments = {"dropout": 0.0, "scaling": size**-0.5, "is_causal": causal}
            out = attention._call_for_each(layer, *tensors, lengths, **arguments)
        else:
            assert (attention._kernel_refuses(tensors[0], 0.0) is None) == (name == "kernel")
            segments = {"cu_seq_lens_q": cu_seqlens, "max_length_q": max(lengths)}
            out = segment_attention(layer, *tensors, None, **segments, scaling=size**-0.5)[0]
        results[name] = [out, *torch.autograd.grad(out, tensors, towards.to(dtype))]
    for exactly, kernel, each in zip(*(results[name] for name in ("exact", "kernel", "each"))):
        error, naive = (kernel - exactly).abs().max(), (each - exactly).abs().max()
        assert error <= 2 * naive + 1e-3
