"""Attention in which packed samples do not see each other, without a mask: one call of torch's variable-length kernel
on CUDA, a call of scaled_dot_product_attention for each segment elsewhere. transformers is told of it by name.
"""

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dft_mm.dist import log
from dft_mm.errors import InputError

PACKED = "segments"
"""The language model's attention to packed rows. No mask function is registered for it: for such a name transformers
makes no mask, nor looks for segments in the positions, which would cost a synchronisation.
"""
TOWER = "flash_segments"
"""The vision tower's. Qwen2.5-VL's tower hands over all its windows in one call if it finds "flash" in the name; else
it cuts them apart itself, with a synchronisation and a call for each of them in each layer.
"""
_LARGEST_HEAD = 192  # beyond, not every GPU that runs the forward kernel runs the backward one


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each token to those of its own segment; an attention function of transformers.

    Args:
        module: the attention layer: whether it is causal, how many queries share a key.
        query: (1, H, T, D).
        key, value: (1, H_kv, T, D).
        attention_mask: None; segments take its place.
        cu_seq_lens_q: (S + 1,) int32: where the S segments begin and end.
        max_length_q: the longest segment's length.

    Returns:
        (1, T, H, D) and None for the attention weights, which are never held.

    Raises:
        InputError: the model has a feature that this does not compute.
        ValueError: not one packed row.
    """
    if cu_seq_lens_q is None:
        raise ValueError("packed attention needs cu_seq_lens_q; for padded rows and generation load without packing")
    if attention_mask is not None or len(query) != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"packed attention is of one row without a mask or a cache; got queries {tuple(query.shape)}, keys "
            f"{tuple(key.shape)}, {'no' if attention_mask is None else 'a'} mask"
        )
    if sliding_window is not None and max_length_q > sliding_window:
        raise InputError(
            f"data.pack: the model's attention reaches back {sliding_window} tokens, a sample has {max_length_q}, and "
            f"packed attention has no such window: set data.max_length to at most {sliding_window}, or data.pack: false"
        )
    if softcap is not None:
        raise InputError(
            f"data.pack: the model caps its attention scores at {softcap}; packed attention does not: set data.pack: "
            "false and model.attention: eager"
        )
    causal = module.is_causal if is_causal is None else is_causal
    reason = _kernel_refuses(query, dropout)
    if query.is_cuda:
        _say(reason)
    if reason is None:
        return _one_call(query, key, value, cu_seq_lens_q, max_length_q, scaling, causal), None
    lengths = cu_seq_lens_q.diff().tolist()
    return _call_for_each(module, query, key, value, lengths, dropout=dropout, scaling=scaling, is_causal=causal), None


def _kernel_refuses(query: Tensor, dropout: float) -> str | None:
    """Why torch's variable-length kernel cannot take these; None if it can."""
    if not query.is_cuda:
        return "it needs CUDA"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes 16 bits, not {query.dtype}"
    if dropout:
        return f"it has no dropout, the model asks for {dropout}"
    if query.shape[-1] % 8 or query.shape[-1] > _LARGEST_HEAD:
        return f"it takes heads of a multiple of 8 up to {_LARGEST_HEAD}, not {query.shape[-1]}"
    capability = torch.cuda.get_device_capability(query.device)
    return None if capability >= (8, 0) else f"it needs compute capability 8.0, this GPU has {capability}"


@functools.cache
def _say(reason: str | None) -> None:
    """Once for each way that attention is computed on a GPU."""
    if reason is None:
        log.info("attention: torch's variable-length kernel")
    else:
        log.warning("attention: a call for each segment, not torch's variable-length kernel: %s", reason)


_KERNEL_SHARES_KEYS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on


def _one_call(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None, causal: bool
) -> Tensor:
    """(1, H, T, D) → (1, T, H, D) by torch's variable-length kernel."""
    shared = query.shape[1] // key.shape[1]
    more = {}
    if shared > 1 and _KERNEL_SHARES_KEYS:
        more = {"enable_gqa": True}
    elif shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, D), as they lie in memory
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(*packed, cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=window, **more)
    return out[None]


def _call_for_each(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], **arguments: Any
) -> Tensor:
    """(1, H, T, D) → (1, T, H, D) by transformers' own SDPA; neighbours of one length, as windows are, share a call."""
    runs = [(len(list(run)), length) for length, run in itertools.groupby(lengths)]
    parts = (tensor[0].split([number * length for number, length in runs], dim=1) for tensor in (query, key, value))
    outs = []
    for run, *of_run in zip(runs, *parts):
        segments = (part.unflatten(1, run).transpose(0, 1) for part in of_run)  # (n, H, L, D), nothing copied
        out, _ = sdpa_attention_forward(module, *segments, None, **arguments)  # (n, L, H, D)
        outs.append(out.flatten(0, 1))
    return torch.cat(outs)[None]


def pack_tower(model: PreTrainedModel, implementation: str | None = TOWER) -> None:
    """Let the vision tower go through all windows of all pictures in one call; None: with the attention that it has."""
    if implementation:
        # Set directly: from_pretrained would look for a library of flash attention by this name.
        model.config.vision_config._attn_implementation = implementation
    model.model.visual.register_forward_pre_hook(_without_samples, with_kwargs=True)


def _without_samples(
    tower: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Where samples begin and end is not for the tower, which transformers before 5.19 tells it, too."""
    of_samples = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return inputs, {name: value for name, value in arguments.items() if name not in of_samples}


for _name in (PACKED, TOWER):
    AttentionInterface.register(_name, segment_attention)
