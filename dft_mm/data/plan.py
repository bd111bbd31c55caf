"""Which examples a step learns from, and which rank sees them in which micro-batch.

The first depends on seed and step alone, the second only arranges: no number of ranks or micro-batches changes a step.
"""

import copy
import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


class Mixture:
    """The examples of an epoch: each source's rows as often as its weight says.

    Args:
        sources: (n,) the number of each example's source.
        weights: of each source; 2.5 is every row twice, and half of them a third time. The half goes on in the next
            epoch where it ended, so that no row is seen less often than another for long.
    """

    size: int
    """Examples of an epoch, the same in each."""

    def __init__(self, sources: np.ndarray, weights: Sequence[float], seed: int) -> None:
        self._seed = seed
        self._rows = [np.flatnonzero(sources == number) for number in range(len(weights))]
        self._counts = [round(weight * len(rows)) for weight, rows in zip(weights, self._rows)]
        self.size = sum(self._counts)

    def epoch(self, number: int) -> np.ndarray:
        """(size,) indices in the order in which they are seen."""
        return self._rows_of(number)[epoch_order(self.size, self._seed, number)]

    def _rows_of(self, epoch: int) -> np.ndarray:
        chosen = []
        for source, (rows, count) in enumerate(zip(self._rows, self._counts)):
            whole, rest = divmod(count, max(1, len(rows)))
            chosen += [rows] * whole
            if rest:
                order = _order(len(rows), [self._seed, 0, source + 1])
                chosen.append(rows[order[(epoch * rest + np.arange(rest)) % len(rows)]])
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Load:
    """What an example weighs; arrays are (n,)."""

    tokens: np.ndarray
    """Of each example, pictures included."""
    vision: np.ndarray
    """Cost of its pictures, in tokens: patches times what a patch costs beside a token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", np.asarray(self.tokens, dtype=np.int64))
        object.__setattr__(self, "vision", np.asarray(self.vision, dtype=np.float64))


class Plan:
    """The steps of a run.

    Args:
        mixture: the examples of an epoch.
        load: what each example weighs.
        batch_size: examples of a step, over all ranks.
        epochs: epochs to be seen.
        micro_tokens: capacity of a micro-batch: padded, the largest number of rows times longest row; packed, of
            tokens. The one token of a blank picture is not counted.
        pack: rows of a micro-batch are put one behind the other instead of being padded to the longest.
        max_steps: end after so many steps instead, if that is earlier.

    Raises:
        ValueError: there is no example, or one that no micro-batch can hold.
    """

    steps: int
    """Steps count from 1 to this."""

    def __init__(
        self,
        mixture: Mixture,
        load: Load,
        batch_size: int,
        epochs: int,
        world_size: int,
        micro_tokens: int,
        pack: bool = False,
        max_steps: int | None = None,
    ) -> None:
        if mixture.size == 0:
            raise ValueError("there is no example to learn from")
        _check_fit(load.tokens, micro_tokens)
        self._mixture = mixture
        self._load = load
        self._batch_size = batch_size
        self._positions = mixture.size * epochs
        self._world_size = world_size
        self._micro_tokens = micro_tokens
        self._pack = pack
        self._epoch = functools.lru_cache(maxsize=2)(mixture.epoch)
        steps = math.ceil(self._positions / batch_size)
        self.steps = steps if max_steps is None else min(steps, max_steps)

    def examples(self, step: int) -> np.ndarray:
        """(b,) indices of the examples of a step, b = batch_size but for the last step.

        The stream of all epochs' orders is cut every `batch_size` examples, so nothing is dropped or filled up,
        and a step may hold the end of one epoch and the start of the next.
        """
        if not 1 <= step <= self.steps:
            raise ValueError(f"step {step} is not in 1 … {self.steps}")
        at, end = (step - 1) * self._batch_size, min(step * self._batch_size, self._positions)
        parts = []
        while at < end:
            epoch, offset = divmod(at, self._mixture.size)
            parts.append(self._epoch(epoch)[offset : offset + end - at])
            at += len(parts[-1])
        return np.concatenate(parts)

    def epochs_done(self, step: int) -> float:
        """Epochs that have been seen after a step."""
        return min(step * self._batch_size, self._positions) / self._mixture.size

    def micro_batches(self, step: int) -> list[list[np.ndarray]]:
        """[rank][micro-batch] → indices of its examples; every rank has equally many.

        An empty array is a micro-batch with nothing in it, for a rank that would have none.
        """
        return _arrange(self.examples(step), self._load, self._world_size, self._micro_tokens, self._pack)

    def on(self, world_size: int) -> "Plan":
        """The same steps, arranged for another number of ranks."""
        other = copy.copy(self)
        other._world_size = world_size
        return other

    def costs(self, ranks: Sequence[Sequence[np.ndarray]]) -> list[float]:
        """Of each rank: positions computed, and pictures, in tokens."""
        positions = _packed if self._pack else _padded
        return [sum(_cost(group, self._load, positions) for group in groups) for groups in ranks]

    def shape(self, step: int) -> dict[str, float]:
        """`fill`: real tokens over positions computed in a step; `utilisation`: least over greatest rank cost."""
        positions = _packed if self._pack else _padded
        ranks = self.micro_batches(step)
        costs = self.costs(ranks)
        computed = sum(positions(self._load.tokens[group]) for groups in ranks for group in groups)
        real = int(self._load.tokens[self.examples(step)].sum())
        return {"fill": real / computed, "utilisation": min(costs) / max(costs)}


def heldout_micro_batches(
    lengths: np.ndarray, world_size: int, micro_tokens: int, pack: bool = False
) -> list[list[np.ndarray]]:
    """[rank][micro-batch] → indices, of one pass over all examples; every rank has equally many."""
    load = Load(lengths, np.zeros(len(lengths)))
    _check_fit(load.tokens, micro_tokens)
    return _arrange(np.arange(len(lengths)), load, world_size, micro_tokens, pack)


@functools.lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) the permutation of an epoch, read-only."""
    order = _order(n, [seed, epoch])
    order.setflags(write=False)
    return order


def _order(n: int, seeds: list[int]) -> np.ndarray:
    """(n,) a permutation, drawn as the sort order of raw 64-bit words: numpy guarantees the words of a bit generator
    across its versions (NEP 19), which it does not for `Generator.permutation`.
    """
    keys = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(n)
    return np.argsort(keys, kind="stable")


def _check_fit(lengths: np.ndarray, micro_tokens: int) -> None:
    if len(lengths) and lengths.max() > micro_tokens:
        raise ValueError(
            f"example {int(lengths.argmax())} has {lengths.max()} tokens, more than the {micro_tokens} of a "
            "micro-batch; raise train.micro_tokens or lower data.max_length"
        )


def _arrange(indices: np.ndarray, load: Load, world_size: int, micro_tokens: int, pack: bool) -> list[list[np.ndarray]]:
    """[rank][micro-batch] → indices. Ranks wait for each other in every micro-batch, so each round is of like cost,
    and the costliest comes first: what does not fit a device's memory then fails in the first moment.
    """
    if pack:
        return _deal_packed(indices, load, world_size, micro_tokens)
    return _deal_padded(_group_padded(indices, load, world_size, micro_tokens), load, world_size)


def _deal_packed(indices: np.ndarray, load: Load, world_size: int, micro_tokens: int) -> list[list[np.ndarray]]:
    """Examples to ranks of equal cost, those of a rank to micro-batches of equal cost with at most `micro_tokens`
    tokens; as few micro-batches as the ranks allow.

    Longest processing time first (Graham 1969): the costliest example that is left goes where least is.
    """
    tokens = load.tokens[indices]
    costs = tokens + load.vision[indices]
    order = np.argsort(-costs, kind="stable")
    rows = [(float(costs[n]), int(tokens[n]), int(indices[n])) for n in order]
    count = max(1, math.ceil(int(tokens.sum()) / micro_tokens / world_size))
    while True:
        ranks = _fill(rows, world_size, count * micro_tokens)
        filled = [_fill(of_rank, count, micro_tokens) or _fit(of_rank, count, micro_tokens) for of_rank in ranks or []]
        if filled and all(filled):
            break
        count += 1
    return [
        [np.array([index for _, _, index in group], dtype=np.int64) for group in sorted(groups, key=_heaviest)]
        for groups in filled
    ]


_Rows: TypeAlias = list[tuple[float, int, int]]
"""Cost, tokens and index of examples, the costliest first."""


def _heaviest(rows: _Rows) -> float:
    return -sum(cost for cost, _, _ in rows)


def _fill(rows: _Rows, count: int, capacity: int) -> list[_Rows] | None:
    """The rows in `count` groups, each where least cost is and room for it; None when one finds no room."""
    groups: list[_Rows] = [[] for _ in range(count)]
    heap = [(0.0, number, 0) for number in range(count)]  # cost, group, tokens
    for row in rows:
        full = []
        while heap and heap[0][2] + row[1] > capacity:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, number, tokens = heap[0]
        groups[number].append(row)
        heapq.heapreplace(heap, (cost + row[0], number, tokens + row[1]))
        for entry in full:
            heapq.heappush(heap, entry)
    return groups


def _fit(rows: _Rows, count: int, capacity: int) -> list[_Rows] | None:
    """The rows in `count` groups, the longest first, each where it leaves least room: tighter, but less even."""
    groups: list[_Rows] = [[] for _ in range(count)]
    room = [capacity] * count
    for row in sorted(rows, key=lambda row: -row[1]):
        fits = [number for number in range(count) if room[number] >= row[1]]
        if not fits:
            return None
        best = min(fits, key=room.__getitem__)
        groups[best].append(row)
        room[best] -= row[1]
    return groups


def _deal_padded(groups: list[np.ndarray], load: Load, world_size: int) -> list[list[np.ndarray]]:
    """Within a round of micro-batches of like cost, the costliest goes to the rank that has least so far."""
    costs = [_cost(group, load, _padded) for group in groups]
    order = sorted(range(len(groups)), key=lambda n: -costs[n])  # stable, so that equal costs keep their order
    ranks: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    total = [0.0] * world_size
    for start in range(0, len(order), world_size):
        by_load = sorted(range(world_size), key=total.__getitem__)
        for rank, number in zip(by_load, order[start : start + world_size]):
            ranks[rank].append(groups[number])
            total[rank] += costs[number]
    return ranks


def _group_padded(indices: np.ndarray, load: Load, world_size: int, micro_tokens: int) -> list[np.ndarray]:
    """Groups of like length whose padded size fits `micro_tokens`, as many as a multiple of `world_size`.

    Of all that many groups of neighbours in length, those whose greatest padded size is least.
    """
    ordered = indices[np.argsort(-load.tokens[indices], kind="stable")]
    sizes = load.tokens[ordered]
    fewest = len(_cuts(sizes, micro_tokens))
    count = max(1, math.ceil(fewest / world_size)) * world_size
    low, high = int(sizes.max(initial=1)), micro_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(sizes, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    groups = np.split(ordered, _cuts(sizes, low)[1:])
    while len(groups) < count:
        widest = max(range(len(groups)), key=lambda n: _cost(groups[n], load, _padded) if len(groups[n]) > 1 else 0)
        half = math.ceil(len(groups[widest]) / 2)
        groups[widest : widest + 1] = [groups[widest][:half], groups[widest][half:]]
    return groups


def _cuts(sizes: np.ndarray, capacity: int) -> list[int]:
    """Where groups begin when each takes as many of the remaining rows, longest first, as fit."""
    starts, at = [], 0
    while at < len(sizes):
        starts.append(at)
        at += capacity // int(sizes[at])
    return starts


def _padded(lengths: np.ndarray) -> int:
    """Positions of a group of padded rows."""
    return len(lengths) * int(lengths.max(initial=0))


def _packed(lengths: np.ndarray) -> int:
    """Positions of a group of packed rows."""
    return int(lengths.sum())


def _cost(group: np.ndarray, load: Load, positions: Callable[[np.ndarray], int]) -> float:
    return positions(load.tokens[group]) + float(load.vision[group].sum())
