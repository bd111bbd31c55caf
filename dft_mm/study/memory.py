"""What a rank of DeepSpeed holds: its share of weights, gradients and AdamW's states, and a micro-batch's bytes on top.

The arithmetic is that of DeepSpeed 0.19 (runtime/zero/stage3.py, stage_1_and_2.py, partitioned_param_coordinator.py)
with this package's settings: float32 master weights, gradients accumulated and sent in float32.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dft_mm.families import Family, part_of
from dft_mm.study.rehearsal import Event
from dft_mm.train.module import Trainable

_WIDE = 4  # bytes of a float32
# QLoRA (arXiv 2305.14314, §3): 4 bits, and 0.127 for the quantised constants of blocks of 64.
_NF4_BYTES = (4 + 0.127) / 8

# DeepSpeed's defaults (runtime/zero/config.py), for keys that a recipe's JSON leaves out.
_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "sub_group_size": 1e9,
}


@dataclass(frozen=True)
class Weight:
    """A parameter."""

    numel: int
    bytes: float
    """Of one element in the type that the model computes with."""
    learns: bool


@dataclass(frozen=True)
class Shapes:
    """The parameters of a skeleton, and which modules use them; a tied one is there once."""

    weights: tuple[Weight, ...]
    of_module: dict[int, tuple[int, ...]]
    """Number of a module → numbers of its own parameters."""

    @property
    def learning(self) -> int:
        return sum(weight.numel for weight in self.weights if weight.learns)


def shapes_of(module: Trainable, family: Family, quantize: bool = False) -> Shapes:
    """`quantize`: frozen matrices of the language model are held in 4 bits."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    number = {parameter: place for place, parameter in enumerate(names)}
    weights = []
    for parameter, name in names.items():
        narrow = quantize and not parameter.requires_grad and parameter.dim() == 2 and _is_language(family, name)
        size = _NF4_BYTES if narrow else parameter.element_size()
        weights.append(Weight(parameter.numel(), size, parameter.requires_grad))
    of_module = {
        place: tuple(number[parameter] for parameter in each.parameters(recurse=False))
        for place, each in enumerate(module.modules())
    }
    return Shapes(tuple(weights), of_module)


def _is_language(family: Family, name: str) -> bool:
    plain = name.split(".", 1)[1].removeprefix("base_model.model.").replace(".base_layer", "")  # behind Trainable's own
    return part_of(family, plain) == "language"


def per_rank(
    shapes: Shapes, events: Sequence[Event], zero: dict[str, Any], world_size: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each kind on a rank's device at the moment when it holds most, and of what it keeps in host memory.

    Args:
        events: of one micro-batch.
        zero: `zero_optimization` of the DeepSpeed config.
    """
    stage = zero.get("stage", 0)
    number = {key: int(zero.get(key, default)) for key, default in _DEFAULTS.items()}
    device = _states(shapes, stage, number["stage3_param_persistence_threshold"], world_size)
    host: dict[str, int] = {}
    for key, kinds in (("offload_optimizer", ("gradients", "optimizer")), ("offload_param", ("parameters",))):
        if zero.get(key, {}).get("device", "none") != "none":
            host |= {kind: device[kind] for kind in kinds}
    device |= dict.fromkeys(host, 0)
    bucket = _WIDE * number["reduce_bucket_size"] if shapes.learning and stage else 0
    in_backward = 0
    if stage == 2:  # its buckets come and go with the backward pass
        in_backward, bucket = bucket * (2 if zero.get("overlap_comm", False) else 1), 0
    in_backward += _reduction(shapes, stage, number["reduce_bucket_size"])
    gathered = _gathered(shapes, events, number, world_size) if stage == 3 and world_size > 1 else [0] * len(events)
    moments = [
        {
            "gathered": whole,
            "buckets": bucket + in_backward * event.backward,
            "activations": event.peak - event.head,
            "loss_head": event.head,
            "update": 0,
        }
        for event, whole in zip(events, gathered)
    ]
    update = 0 if "optimizer" in host else _update(shapes, stage, number["sub_group_size"], world_size)
    moments.append({"gathered": 0, "buckets": bucket, "activations": 0, "loss_head": 0, "update": update})
    return device | max(moments, key=lambda moment: sum(moment.values())), host


def _states(shapes: Shapes, stage: int, persistent: int, world_size: int) -> dict[str, int]:
    """What lasts from step to step."""

    def share(numel: int) -> int:
        return math.ceil(numel / world_size)

    if stage == 3:
        parameters = sum(w.bytes * share(w.numel) for w in shapes.weights)
        if world_size > 1:  # small ones are kept whole beside the share
            parameters += sum(w.bytes * w.numel for w in shapes.weights if w.numel <= persistent)
        learning = sum(share(w.numel) for w in shapes.weights if w.learns)
    else:
        parameters = sum(w.bytes * w.numel for w in shapes.weights)
        learning = share(shapes.learning) if stage else shapes.learning
    # The two moments of AdamW and, under ZeRO, the master weights; without it the weights are float32 themselves.
    optimizer = _WIDE * learning * (3 if stage else 2)
    return {"parameters": round(parameters), "gradients": _WIDE * learning, "optimizer": optimizer}


def _reduction(shapes: Shapes, stage: int, bucket: int) -> int:
    """What reducing a bucket takes besides it."""
    learning = [weight for weight in shapes.weights if weight.learns]
    if not learning:
        return 0
    if stage == 0:  # flattened for the all-reduce
        return _WIDE * min(bucket, shapes.learning)
    # One that no bucket holds is sent alone, as float32; a bucket's gradients are put in the order of their owners.
    alone = [w.numel * (_WIDE if w.bytes != _WIDE else 0) for w in learning if w.numel > bucket]
    together = [w.numel for w in learning if w.numel <= bucket]
    ordered = _WIDE * min(bucket, sum(together)) if stage == 3 else 0
    return max([*alone, ordered])


def _update(shapes: Shapes, stage: int, sub_group: int, world_size: int) -> int:
    """A copy of the gradients of the group that AdamW is at."""
    learning = math.ceil(shapes.learning / world_size)
    narrow = any(weight.learns and weight.bytes != _WIDE for weight in shapes.weights)
    if stage == 0 or (stage == 2 and narrow):  # at stage 2 DeepSpeed has them in one piece already
        return 0
    return _WIDE * (min(learning, sub_group) if stage == 3 else learning)


def _gathered(shapes: Shapes, events: Sequence[Event], number: dict[str, int], world_size: int) -> list[int]:
    """Bytes of whole weights at each event, by playing the rules by which ZeRO-3 fetches, prefetches and releases."""
    small = number["stage3_param_persistence_threshold"]
    steps = [shapes.of_module[event.module] for event in events if event.begins]
    partitioned = [[p for p in own if shapes.weights[p].numel > small] for own in steps]
    before = [0, *accumulate(sum(shapes.weights[p].numel for p in own) for own in steps)]
    uses: dict[int, deque[int]] = defaultdict(deque)
    for step, own in enumerate(partitioned):
        for p in own:
            uses[p].append(step)
    queue = deque((step, p) for step, own in enumerate(partitioned) for p in own)
    whole = {p: math.ceil(shapes.weights[p].numel / world_size) * world_size for p in uses}
    held: set[int] = set()
    together: dict[int, int] = {}  # prefetched weight → elements of the flat buffer that it arrives in
    skipped: dict[int, int] = {}
    step, found = -1, []

    def count() -> int:
        return sum(whole[p] for p in held)

    for event in events:
        arriving = 0
        if event.begins:
            step += 1
            own = partitioned[step]
            missing = [p for p in own if p not in held]
            arriving = max([together.pop(p, 0) for p in own] + [sum(map(whole.__getitem__, missing))], default=0)
            arriving = arriving if len(missing) != 1 else 0
            held |= set(own)
            while queue and queue[0][0] <= step:
                queue.popleft()
            room, fetching = (
                min(number["stage3_max_live_parameters"] - count(), number["stage3_prefetch_bucket_size"]),
                [],
            )
            while queue and sum(map(whole.__getitem__, fetching)) < room:
                at, p = queue.popleft()
                skipped[p] = at
                if p not in held:
                    fetching.append(p)
                    held.add(p)
            together |= dict.fromkeys(fetching, sum(map(whole.__getitem__, fetching)))
        most = count() + arriving
        if not event.begins and step >= 0:
            for p in shapes.of_module[event.module]:
                while uses[p] and uses[p][0] <= step:
                    uses[p].popleft()
                again = uses[p][0] if uses[p] else None
                near = again is not None and before[again] - before[step + 1] < number["stage3_max_reuse_distance"]
                if not near and skipped.get(p, -1) <= step:
                    held.discard(p)
        size = max((shapes.weights[p].bytes for p in whole), default=0)
        found.append(round(most * size))
    return found
