"""What a rank of DeepSpeed holds: its share of weights, gradients and AdamW's states, and a micro-batch's bytes on top.

The arithmetic is that of DeepSpeed 0.19 (runtime/zero/stage3.py, stage_1_and_2.py, partitioned_param_coordinator.py)
with this package's settings: float32 master weights, gradients accumulated and sent in float32.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from dft_mm.families import Family, part_of
from dft_mm.study.rehearsal import Event
from dft_mm.train.module import Trainable

_WIDE = 4  # bytes of a float32
_NORM = 8  # gradients' norms are summed up in float64 (runtime/zero/utils.py, get_norm_dtype)
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
    shapes: Shapes, events: Sequence[Event], zero: dict[str, Any], world_size: int, gpu: bool = True
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each kind on a rank's device at the moment when it holds most, and of what it keeps in host memory.

    Args:
        events: of one micro-batch.
        zero: `zero_optimization` of the DeepSpeed config.
        gpu: collectives are NCCL's; else gloo's, which copies what it gathers and what it reduces and scatters
            (torch/csrc/distributed/c10d/ProcessGroupGloo.cpp, AsyncAllgatherWork and reduce_scatter_tensor_coalesced).
    """
    stage = zero.get("stage", 0)
    number = {key: int(zero.get(key, default)) for key, default in _DEFAULTS.items()}
    device = _states(shapes, stage, number["stage3_param_persistence_threshold"], world_size)
    host: dict[str, int] = {}
    for key, kinds in (("offload_optimizer", ("gradients", "optimizer")), ("offload_param", ("parameters",))):
        if zero.get(key, {}).get("device", "none") != "none":
            host |= {kind: device[kind] for kind in kinds}
    device |= dict.fromkeys(host, 0)
    capacity, overlaps = number["reduce_bucket_size"], zero.get("overlap_comm", False)
    buckets = _Buckets(shapes, stage, capacity, overlaps, world_size, gpu)
    gathers = stage == 3 and world_size > 1
    gathered = _gathered(shapes, events, number, world_size, gpu) if gathers else [0] * len(events)
    moments = [
        {
            "gathered": whole,
            "buckets": reducing,
            "activations": event.peak - event.head,
            "loss_head": event.head,
            "update": 0,
        }
        for event, whole, reducing in zip(events, gathered, buckets.along(events))
    ]
    update = 0 if "optimizer" in host else _update(shapes, stage, number["sub_group_size"], world_size)
    moments.append({"gathered": 0, "buckets": buckets.lasting, "activations": 0, "loss_head": 0, "update": update})
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
    gradients = _WIDE * learning
    if stage == 2 and _gradient_size(shapes) == _WIDE:  # stage_1_and_2.py, copy_grads_in_partition: of whole weights
        reach: Counter[int] = Counter()
        for number, pieces in _parts(shapes, world_size).items():
            reach.update({rank: shapes.weights[number].numel for rank, _ in pieces})
        gradients = _WIDE * max(reach.values(), default=0)
    # The two moments of AdamW and, under ZeRO, the master weights; without it the weights are float32 themselves.
    optimizer = _WIDE * learning * (3 if stage else 2)
    return {"parameters": round(parameters), "gradients": gradients, "optimizer": optimizer}


def _gradient_size(shapes: Shapes) -> float:
    """Bytes of an element of a gradient as the pass makes it."""
    return max((weight.bytes for weight in shapes.weights if weight.learns), default=0)


def _parts(shapes: Shapes, world_size: int) -> dict[int, list[tuple[int, int]]]:
    """Number of a learning weight → (rank, elements) of its pieces: at stage 2 all such weights lie end to end, and
    each rank owns an equal part.
    """
    share = math.ceil(shapes.learning / world_size)
    parts, begin = {}, 0
    for number, weight in enumerate(shapes.weights):
        if weight.learns:
            end, parts[number] = begin + weight.numel, []
            while begin < end:
                rank = begin // share
                after = min(end, (rank + 1) * share)
                parts[number].append((rank, after - begin))
                begin = after
    return parts


@dataclass(frozen=True)
class _Buckets:
    """Gradients on their way from the pass to the ranks that own them.

    Each is copied into a bucket; one that finds no room has the bucket reduced first. One that no bucket holds waits as
    it is, and is reduced alone when the next has come.
    """

    shapes: Shapes
    stage: int
    capacity: int
    """Elements of a bucket."""
    overlaps: bool
    world_size: int
    gpu: bool

    @cached_property
    def size(self) -> float:
        return _gradient_size(self.shapes)

    @cached_property
    def parts(self) -> dict[int, list[tuple[int, int]]]:
        return _parts(self.shapes, self.world_size)

    @property
    def lasting(self) -> int:
        """Stage 3 keeps a bucket of float32 (stage3.py, _setup_for_real_optimizer)."""
        return _WIDE * self.capacity if self.size and self.stage == 3 else 0

    def along(self, events: Sequence[Event]) -> list[int]:
        """Bytes at each event, besides those that the pass itself holds."""
        last = max((place for place, event in enumerate(events) if event.weight is not None), default=-1)
        # Stage 2 has buckets of the model's type from the first gradient to the last (stage_1_and_2.py, setup_buckets).
        passing = self.size * self.capacity * (2 if self.overlaps else 1) if self.stage == 2 else 0
        bucket: list[int] = []
        found, filled, there = [], 0, 0.0
        for place, event in enumerate(events):
            taken = self.size * filled if filled > self.capacity and self.stage else 0.0  # one that no bucket holds
            if event.weight is not None:
                numel, there = self.shapes.weights[event.weight].numel, passing
                if bucket and filled + numel > self.capacity:
                    taken += self._reduction(bucket)
                    bucket, filled = [], 0
                bucket.append(event.weight)
                filled += numel
                if place == last:
                    taken = max(taken, self._reduction(bucket))
                    bucket, filled = [], 0
            found.append(round(self.lasting + there + taken))
            if place == last:
                there = 0.0
        if self.stage == 0 and last >= 0:  # flattened for the all-reduce when all have come
            found[-1] += _WIDE * min(self.capacity, self.shapes.learning)
        return found

    def _reduction(self, bucket: Sequence[int]) -> float:
        """What reducing a bucket takes besides it."""
        return {2: self._all_reduce, 3: self._reduce_scatter}.get(self.stage, lambda _: 0)(bucket)

    def _reduce_scatter(self, bucket: Sequence[int]) -> float:
        numels = [self.shapes.weights[number].numel for number in bucket]
        padded = _WIDE * sum(math.ceil(numel / self.world_size) * self.world_size for numel in numels)
        # stage3.py, __avg_scatter_grads: sent as float32, which those in the bucket are already.
        wide = _WIDE * sum(numels) if sum(numels) > self.capacity and self.size != _WIDE else 0
        # comm/coalesced_collectives.py, reduce_scatter_coalesced: put in the order of their owners.
        ordered = 0 if len(numels) == 1 and numels[0] % self.world_size == 0 else padded
        return wide + ordered + (0 if self.gpu else padded)

    def _all_reduce(self, bucket: Sequence[int]) -> float:
        """stage_1_and_2.py, average_tensor to allreduce_bucket: the ranks' pieces are put end to end until they are
        more than a bucket, and sent as float32.
        """
        pieces: list[tuple[int, int]] = []
        for number in bucket:
            for rank, numel in self.parts[number]:
                if pieces and self.size == _WIDE and pieces[-1][0] == rank:  # neighbours of one owner are one piece
                    numel += pieces.pop()[1]
                pieces.append((rank, numel))
        sent: list[list[int]] = [[]]
        for _, numel in pieces:
            sent[-1].append(numel)
            if sum(sent[-1]) > self.capacity:
                sent.append([])
        wide = 0 if self.size == _WIDE else _WIDE
        return max(sum(each) * ((self.size if len(each) > 1 else 0) + wide) for each in sent)


def _update(shapes: Shapes, stage: int, sub_group: int, world_size: int) -> int:
    """The most that an update takes: the largest gradient as float64 for the norm (get_grad_norm_direct), or a copy of
    the gradients of the group that AdamW is at.
    """
    if stage == 0 or not shapes.learning:
        return 0
    if stage == 3:
        shares = [math.ceil(weight.numel / world_size) for weight in shapes.weights if weight.learns]
        return max(_NORM * max(shares), _WIDE * min(sum(shares), sub_group))
    # In the model's own float32 they are whole weights' and put end to end; else DeepSpeed has them in one piece.
    copy = 0 if _gradient_size(shapes) != _WIDE else _WIDE * math.ceil(shapes.learning / world_size)
    return max(copy, _NORM * max(numel for pieces in _parts(shapes, world_size).values() for _, numel in pieces))


def _gathered(shapes: Shapes, events: Sequence[Event], number: dict[str, int], world_size: int, gpu: bool) -> list[int]:
    """Bytes of whole weights at each event, by playing the rules by which ZeRO-3 fetches, prefetches and releases.

    Weights that are fetched together arrive in one flat buffer and are copied out of it when the first is needed; one
    alone arrives where it stays (partition_parameters.py, _all_gather_coalesced and _all_gather_sequential).
    """
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
    together: dict[int, list[int]] = {}  # prefetched weight → all that arrive with it
    skipped: dict[int, int] = {}
    step, found = -1, []

    def size_of(numbers: Iterable[int]) -> int:
        return sum(whole[p] for p in numbers)

    for event in events:
        most = size_of(held)
        if event.begins:
            step += 1
            own = partitioned[step]
            missing = [p for p in own if p not in held]
            came = [missing, *(together[p] for p in own if p in together)]
            copied = [each for each in came if len(each) > 1] + ([] if gpu else [missing])
            for p in [p for each in came for p in each]:
                together.pop(p, None)
            held |= set(own)
            most = size_of(held) + max(map(size_of, copied), default=0)
            while queue and queue[0][0] <= step:
                queue.popleft()
            free = number["stage3_max_live_parameters"] - size_of(held)
            room, fetching = min(free, number["stage3_prefetch_bucket_size"]), []
            while queue and size_of(fetching) < room:
                at, p = queue.popleft()
                skipped[p] = at
                if p not in held:
                    fetching.append(p)
                    held.add(p)
            together |= dict.fromkeys(fetching, fetching)
            most = max(most, size_of(held) + (0 if gpu else size_of(fetching)))
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
