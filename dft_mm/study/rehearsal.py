"""One micro-batch's forward and backward pass on shapes alone: what a rank would hold, event by event.

The recipe's own module runs on the meta device, where tensors have shapes and no content. Each storage that an
operation makes is counted until it is gone, as an allocator would, so what is measured is this code and not a formula
of it. What cannot run without content has a stand-in that makes tensors of the same sizes: the loss head with its
tiles, and attention kernels.
"""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, PreTrainedModel

from dft_mm.batch import Batch
from dft_mm.config import Recipe
from dft_mm.families import Family
from dft_mm.loss.family import Objective
from dft_mm.loss.head import tile_shape
from dft_mm.model.attention import pack_tower
from dft_mm.model.folder import read_family, resolve
from dft_mm.model.processing import Processing
from dft_mm.train.build import assemble, reference_path
from dft_mm.train.module import Trainable

KERNEL, EAGER, SEGMENTS = "flash_rehearsed", "eager_rehearsed", "segments_rehearsed"
"""Names that transformers knows the stand-ins by; a tower that finds "flash" hands over all windows in one call."""


def skeleton(recipe: Recipe, processing: Processing, gpu: bool = True) -> Trainable:
    """The module that training would build, with shapes and without content.

    Args:
        gpu: with stand-ins for what GPUs have kernels for; else what runs on a CPU.
    """
    path = reference_path(recipe)
    model, reference = _empty(str(processing.folder), recipe, gpu), _empty(path, recipe, gpu) if path else None
    with torch.device("meta"):
        module = assemble(model, reference, recipe, processing.family, {})
    head = module.core.lm_head
    head.__class__ = _Head
    head.multiplies_mixed = gpu and recipe.model.dtype == "bfloat16"
    return module


def _empty(path: str, recipe: Recipe, gpu: bool) -> PreTrainedModel:
    folder = resolve(path)
    family: Family = read_family(folder)
    config = AutoConfig.from_pretrained(folder)
    attention = EAGER if recipe.model.attention == "eager" else SEGMENTS if recipe.data.pack and not gpu else KERNEL
    with torch.device("meta"):
        model_class = getattr(transformers, family.model_class)
        model = model_class._from_config(config, dtype=getattr(torch, recipe.model.dtype))
    for part in (config, config.get_text_config(), getattr(config, "vision_config", None)):
        if part is not None:
            part._attn_implementation = attention  # set directly: transformers would look for a library of that name
    if family.has_vision:
        pack_tower(model, KERNEL if recipe.model.attention != "eager" else None)
    return model


@dataclass(frozen=True)
class Event:
    """A module that begins, or is done with, a pass; or the gradient of a weight has come."""

    module: int
    """Number of the module, in the order of `modules()`; 0, which has no weights of its own, where none is meant."""
    begins: bool
    backward: bool
    peak: int
    """Most bytes held since the event before: activations, gradients on their way to their bucket, inputs,"""
    head: int
    """and of these, those that the loss head made."""
    weight: int | None = None
    """Number of the weight whose gradient has come, in the order of `named_parameters()`. `peak` is then what is held
    at this moment, that gradient included."""


def rehearse(module: Trainable, batch: Batch, objective: Objective) -> list[Event]:
    """Run a micro-batch through a skeleton; nothing of it is left afterwards."""
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # it would look at content; training sets it too
    events: list[Event] = []
    ledger = _Ledger()
    ledger.ignore(tensor for tensor in [*module.parameters(), *module.buffers()])
    names = {each: number for number, each in enumerate(module.modules())}
    numbers = {parameter: number for number, parameter in enumerate(module.parameters())}
    meta = _to_meta(batch)

    def note(each: nn.Module, begins: bool, backward: bool) -> None:
        events.append(Event(names[each], begins, backward, *ledger.take_peak()))

    def note_gradient(parameter: nn.Parameter) -> None:
        events.append(Event(0, False, True, *ledger.take_peak()))
        events.append(Event(0, False, True, *ledger.take_peak(), numbers[parameter]))
        parameter.grad = None  # DeepSpeed has moved it into its bucket by then

    with _hooks(module, note, note_gradient), warnings.catch_warnings(), ledger:
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # of embeddings: as it should be
        loss = module(meta.rows, meta.targets, objective, meta.policy, meta.sequences, **meta.model_inputs)[0]
        (loss * 1.0).backward()
        del loss
    events.append(Event(0, False, True, *ledger.take_peak()))
    return events


def _to_meta(batch: Batch) -> Batch:
    """The batch without content, but for what says where segments begin, which attention on a CPU reads."""
    meta = batch.to(torch.device("meta"))
    layout = {name: batch.vision_layout[name] if "cu_" in name else value for name, value in meta.vision_layout.items()}
    return Batch(**vars(meta) | {"cu_seqlens": batch.cu_seqlens, "vision_layout": layout})


@contextmanager
def _hooks(module: Trainable, note: Any, note_gradient: Any) -> Iterator[None]:
    """Tell of every module with weights of its own when it begins and ends, and of every gradient that has come.

    A module of whose inputs none has a gradient, as an embedding, does not end its backward pass: DeepSpeed waits for
    that gradient (runtime/zero/parameter_offload.py, PostBackwardFunctionModule) and keeps the weights to the last.
    """

    def note_end(each: nn.Module, inputs: tuple[Tensor | None, ...], _: Any) -> None:
        if any(gradient is not None for gradient in inputs):
            note(each, False, True)

    handles = []
    for each in module.modules():
        if next(each.parameters(recurse=False), None) is None:
            continue
        handles += [
            each.register_forward_pre_hook(lambda m, _: note(m, True, False)),
            each.register_forward_hook(lambda m, *_: note(m, False, False)),
            each.register_full_backward_pre_hook(lambda m, _: note(m, True, True)),
            each.register_full_backward_hook(note_end),
        ]
    for parameter in module.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(note_gradient))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Ledger(TorchDispatchMode):
    """Counts the bytes of all storages on the meta device that came to be in it and still live."""

    def __init__(self) -> None:
        super().__init__()
        self._live = self._head = 0
        self._peak = (0, 0)
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ignored: list[Any] = []

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Tensors that were there before."""
        self._ignored = [tensor.untyped_storage() for tensor in tensors]  # kept, so that none is taken for a new one
        for storage in self._ignored:
            self._known.add(storage)

    def take_peak(self) -> tuple[int, int]:
        """Most bytes held since the last call, and those of the head among them."""
        peak, self._peak = self._peak, (self._live, self._head)
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is torch.ops.aten.add.Tensor
            and torch._C._current_graph_task_id() != -1
            and not torch.is_grad_enabled()
        ):
            func = torch.ops.aten.add_.Tensor  # autograd adds gradients up in place where no mode looks on
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size, in_head = storage.nbytes(), _Head.running
        weakref.finalize(storage, self._gone, size, in_head)
        self._live += size
        self._head += size * in_head
        self._peak = max(self._peak, (self._live, self._head))

    def _gone(self, size: int, in_head: bool) -> None:
        self._live -= size
        self._head -= size * in_head


class _Kernel(torch.autograd.Function):
    """Makes what a flash attention kernel makes: (B, H, T, D) queries, fewer keys → output, log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        if query.shape[1] != key.shape[1]:  # each query's own gradients of a shared key, added up afterwards
            _ = torch.empty_like(query), torch.empty_like(query)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Eager(torch.autograd.Function):
    """The same where attention weights (B, H, T, T) are held, as float32 and as the model's type."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        wide = query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.float32)
        narrow = torch.empty_like(wide, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, wide, narrow)
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, wide, narrow = ctx.saved_tensors
        _ = torch.empty_like(wide), torch.empty_like(narrow)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(function: type[torch.autograd.Function]) -> Any:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        return function.apply(query, key, value), None

    return attention


def _attend_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *, cu_seq_lens_q: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Packed attention as a CPU computes it, by torch's kernel for it, which has shapes on the meta device; asked there
    for attention in general, torch goes the way that holds weights (T, T).
    """
    lengths = cu_seq_lens_q.diff().tolist()
    segments = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return torch.cat([kernel(*of_one)[0].transpose(1, 2) for of_one in segments], dim=1), None


AttentionInterface.register(KERNEL, _attend(_Kernel))
AttentionInterface.register(EAGER, _attend(_Eager))
AttentionInterface.register(SEGMENTS, _attend_segments)


class _Head(nn.Linear):
    """Makes what the loss head makes."""

    running = False
    """Whether one is at work."""
    multiplies_mixed = False
    """Whether the device multiplies the model's type into float32; elsewhere rows are widened first."""

    def forward(self, hidden: Tensor, rows: Tensor, targets: Tensor, objective: Objective, *_: Any) -> tuple[Any, ...]:
        _Head.running = True
        try:
            flat = hidden.reshape(-1, hidden.shape[-1])
            loss = _HeadSizes.apply(flat, self.weight, rows, self.multiplies_mixed, objective.by_sequence)
            of_tokens = [hidden.new_empty(len(rows), dtype=torch.float32) for _ in range(2)]
        finally:
            _Head.running = False
        return loss, *of_tokens, hidden.new_empty(0), hidden.new_empty(())


class _HeadSizes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor, mixed: bool, all_rows: bool) -> Tensor:
        h = hidden.new_empty(len(rows), hidden.shape[1], dtype=hidden.dtype if mixed else torch.float32)
        learns, weight_learns, *_ = ctx.needs_input_grad
        height, width = tile_shape(len(hidden), h, weight, mixed, weight_learns, all_rows)
        tile = h.new_empty(height, width, dtype=torch.float32)
        narrow = h.new_empty(height, width) if mixed else None
        ctx.grad_weight = torch.empty_like(weight) if weight_learns else None
        wide = hidden.new_empty(len(rows), hidden.shape[1], dtype=torch.float32) if learns else None
        del tile, narrow, h
        ctx.grad_hidden = None if wide is None else torch.empty_like(hidden)
        ctx.save_for_backward(hidden)
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.grad_hidden, ctx.grad_weight
        ctx.grad_hidden = ctx.grad_weight = None
        return *grads, None, None, None
