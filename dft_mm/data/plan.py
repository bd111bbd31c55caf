"""Which examples a step learns from, and which rank sees them in which micro-batch.

The first depends on seed and step alone, the second only arranges: no number of ranks or micro-batches changes a step.
"""

import functools
import math

import numpy as np


class Plan:
    """The steps of a run.

    Args:
        lengths: (n,) tokens of each example.
        batch_size: examples of a step, over all ranks.
        epochs: times that every example is seen.
        micro_tokens: largest number of rows times longest row of a micro-batch; the one token of a blank picture
            is not counted.
        max_steps: end after so many steps instead, if that is earlier.

    Raises:
        ValueError: there is no example, or one that no micro-batch can hold.
    """

    steps: int
    """Steps count from 1 to this."""

    def __init__(
        self,
        lengths: np.ndarray,
        seed: int,
        batch_size: int,
        epochs: int,
        world_size: int,
        micro_tokens: int,
        max_steps: int | None = None,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if len(self._lengths) == 0:
            raise ValueError("there is no example to learn from")
        self._seed = seed
        self._batch_size = batch_size
        self._positions = len(self._lengths) * epochs
        self._world_size = world_size
        self._micro_tokens = micro_tokens
        _check_fit(self._lengths, micro_tokens)
        steps = math.ceil(self._positions / batch_size)
        self.steps = steps if max_steps is None else min(steps, max_steps)

    def examples(self, step: int) -> np.ndarray:
        """(b,) indices of the examples of a step, b = batch_size but for the last step.

        The stream of all epochs' permutations is cut every `batch_size` examples, so nothing is dropped or filled up,
        and a step may hold the end of one epoch and the start of the next.
        """
        if not 1 <= step <= self.steps:
            raise ValueError(f"step {step} is not in 1 … {self.steps}")
        n = len(self._lengths)
        at, end = (step - 1) * self._batch_size, min(step * self._batch_size, self._positions)
        parts = []
        while at < end:
            epoch, offset = divmod(at, n)
            parts.append(epoch_order(n, self._seed, epoch)[offset : offset + end - at])
            at += len(parts[-1])
        return np.concatenate(parts)

    def micro_batches(self, step: int) -> list[list[np.ndarray]]:
        """[rank][micro-batch] → indices of its examples; every rank has equally many.

        An empty array is a micro-batch with nothing in it, for a rank that would have none.
        """
        return _arrange(self.examples(step), self._lengths, self._world_size, self._micro_tokens)

    def shape(self, step: int) -> dict[str, float]:
        """`fill`: real over padded tokens of a step; `utilisation`: least over greatest rank cost."""
        ranks = self.micro_batches(step)
        costs = [sum(_cost(self._lengths[group]) for group in groups) for groups in ranks]
        real = int(self._lengths[self.examples(step)].sum())
        return {"fill": real / sum(costs), "utilisation": min(costs) / max(costs)}


def heldout_micro_batches(lengths: np.ndarray, world_size: int, micro_tokens: int) -> list[list[np.ndarray]]:
    """[rank][micro-batch] → indices, of one pass over all examples; every rank has equally many."""
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_fit(lengths, micro_tokens)
    return _arrange(np.arange(len(lengths)), lengths, world_size, micro_tokens)


@functools.lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) the permutation of an epoch, read-only.

    Drawn as the sort order of raw 64-bit words: numpy guarantees the words of a bit generator across its versions
    (NEP 19), which it does not for `Generator.permutation`.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order


def _check_fit(lengths: np.ndarray, micro_tokens: int) -> None:
    if len(lengths) and lengths.max() > micro_tokens:
        raise ValueError(
            f"example {int(lengths.argmax())} has {lengths.max()} tokens, more than the {micro_tokens} of a "
            "micro-batch; raise train.micro_tokens or lower data.max_length"
        )


def _arrange(indices: np.ndarray, lengths: np.ndarray, world_size: int, micro_tokens: int) -> list[list[np.ndarray]]:
    """Groups of examples, dealt to ranks.

    Ranks wait for each other in every micro-batch, so they are dealt in rounds of like cost, the costliest round
    first (what does not fit a device's memory then fails in the first moment); within a round the costliest group
    goes to the rank that has least so far.
    """
    groups = _group_padded(indices, lengths, world_size, micro_tokens)
    groups.sort(key=lambda group: -_cost(lengths[group]))  # stable, so that equal costs keep their order
    ranks: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for start in range(0, len(groups), world_size):
        by_load = sorted(range(world_size), key=lambda rank: load[rank])
        for rank, group in zip(by_load, groups[start : start + world_size]):
            ranks[rank].append(group)
            load[rank] += _cost(lengths[group])
    return ranks


def _group_padded(indices: np.ndarray, lengths: np.ndarray, world_size: int, micro_tokens: int) -> list[np.ndarray]:
    """Groups of like length whose padded size fits `micro_tokens`, as many as a multiple of `world_size`.

    Of all that many groups of neighbours in length, those whose greatest padded size is least.
    """
    ordered = indices[np.argsort(-lengths[indices], kind="stable")]
    sizes = lengths[ordered]
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
        widest = max(range(len(groups)), key=lambda n: _cost(lengths[groups[n]]) if len(groups[n]) > 1 else 0)
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


def _cost(lengths: np.ndarray) -> int:
    """Padded tokens of a group."""
    return len(lengths) * int(lengths.max(initial=0))
