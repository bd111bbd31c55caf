"""Rows that belong together: the same question or picture never stands on both sides of a held-out split, and the same
row twice is noticed.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from dft_mm.errors import InputError


def group(keys: Iterable[Iterable[Hashable]]) -> np.ndarray:
    """(n,) a number for each row, equal for rows that share a key, directly or through other rows."""
    parents: list[int] = []
    first: dict[Hashable, int] = {}

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]  # half the way next time
            node = parents[node]
        return node

    for row, of_row in enumerate(keys):
        parents.append(row)
        for key in of_row:
            other = root(first.setdefault(key, row))
            mine = root(row)
            parents[max(mine, other)] = min(mine, other)
    return np.array([root(row) for row in range(len(parents))], dtype=np.int64)


def hold_out(groups: np.ndarray, names: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """(n,) bool: whole groups whose hash of seed and first row's name is least, as many as fit into the share.

    Raises InputError when no group fits, or when nothing is left to learn from.
    """
    roots, sizes = np.unique(groups, return_counts=True)
    wanted = round(len(groups) * fraction)
    order = sorted(
        range(len(roots)), key=lambda n: hashlib.sha256(f"{seed}\0{names[roots[n]]}".encode()).digest()
    )
    chosen, taken = [], 0
    for number in order:
        if taken + sizes[number] <= wanted:
            chosen.append(roots[number])
            taken += int(sizes[number])
    held = np.isin(groups, chosen)
    if not held.any():
        raise InputError(
            f"data.heldout_fraction ({fraction:g}) asks for {wanted} of {len(groups)} rows, and the smallest group "
            f"of rows that share a question or picture has {sizes.min()}; raise it, or name `heldout` files"
        )
    if held.all():
        raise InputError(f"data.heldout_fraction ({fraction:g}) leaves no row to learn from; lower it")
    return held


def repeats(content: np.ndarray) -> np.ndarray:
    """(n,) the first row with the same content, which is the row itself where it is the first."""
    _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
    return first[inverse]
