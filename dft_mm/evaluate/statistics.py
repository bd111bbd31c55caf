"""Values with their uncertainty: one value a question, since answers to the same question are not independent."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

Z95 = 1.959963984540054
_Z80 = 0.8416212335729143
_RESAMPLES = 10_000
_EXACT_FLIPS = 14
_BOOTSTRAP_SEED = 0
_LEAST_P = 1e-12


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927, doi:10.2307/2276774)."""
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over questions; the same values give the same interval."""
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(_BOOTSTRAP_SEED))
    rows = max(1, 2_000_000 // len(array))  # resamples at a time, so that memory stays small
    means = np.concatenate(
        [
            array[generator.integers(0, len(array), size=(min(rows, _RESAMPLES - done), len(array)))].mean(axis=1)
            for done in range(0, _RESAMPLES, rows)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from n samples (arXiv:2107.03374, eq. 1)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def metric(values: Sequence[float], binomial: bool) -> dict[str, Any]:
    """Mean of one value a question, its standard error (None for a single question) and 95 % interval."""
    n = len(values)
    array = np.asarray(values, dtype=np.float64)
    # Where every value is 0, or every one 1, resampling them shows no uncertainty; there is some all the same.
    certain = array.min() == array.max() and array[0] in (0.0, 1.0)
    interval = wilson(round(float(array.sum())), n) if binomial or certain else bootstrap(values)
    error = float(array.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"value": float(array.mean()), "se": error, "ci95": list(interval), "n": n}


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of one difference a question, its 95 % percentile bootstrap interval and a two-sided p-value.

    p is that of the sign-flip test (Fisher 1935): how often a mean at least as far from zero comes out when every
    difference has an even chance of either sign. It is exact for few questions, where a bootstrap is too sure.
    `questions_needed`: for a difference of this size to be found four times out of five (normal approximation); None
    when there is none.
    """
    array = np.asarray(differences, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    spread = float(array.std(ddof=1)) if n > 1 else None
    needed = None
    if mean != 0 and spread is not None:
        needed = max(2, math.ceil(((Z95 + _Z80) * spread / mean) ** 2))
    return {
        "difference": mean,
        "ci95": list(bootstrap(differences)),
        "p": _sign_flip(array),
        "n": n,
        "questions_needed": needed,
    }


def crossed(differences: np.ndarray) -> dict[str, Any]:
    """Mean of one difference a training seed and question, with an interval that covers the luck of both.

    Seeds and questions are crossed random effects. Their two parts of the mean's variance have t quantiles of their own
    (Howe 1974, doi:10.1080/01621459.1974.10480206), so that few seeds make a wide interval, whatever the questions say.

    Args:
        differences: (S, Q), S ≥ 2 seeds of both arms by Q ≥ 2 questions.

    Returns:
        What `paired` does, and `seeds_needed` and `questions_needed`: how many of the one, with as many of the other as
        here, for a difference of this size to be found four times out of five; None where no number of it is enough.
    """
    seeds, questions = differences.shape
    mean = float(differences.mean())
    by_seed, by_question = differences.mean(axis=1), differences.mean(axis=0)
    rest = float(((differences - by_seed[:, None] - by_question + mean) ** 2).sum())
    of_both = rest / ((seeds - 1) * (questions - 1))
    square_seed, square_question = questions * float(by_seed.var(ddof=1)), seeds * float(by_question.var(ddof=1))
    of_seed, of_question = max(0.0, square_seed - of_both) / questions, max(0.0, square_question - of_both) / seeds

    def half(p: float) -> float:
        """Half the width of the interval that misses with this chance."""
        return math.sqrt(
            stats.t.isf(p / 2, seeds - 1) ** 2 * square_seed / differences.size
            + stats.t.isf(p / 2, questions - 1) ** 2 * of_question / questions
        )

    wanted = (mean / (Z95 + _Z80)) ** 2
    return {
        "difference": mean,
        "ci95": [mean - half(0.05), mean + half(0.05)],
        "p": _chance(half, abs(mean)),
        "n": questions,
        "seeds": seeds,
        "questions_needed": _needed(of_question + of_both / seeds, wanted - of_seed / seeds),
        "seeds_needed": _needed(of_seed + of_both / questions, wanted - of_question / questions),
    }


def _chance(half: Callable[[float], float], distance: float) -> float:
    """The p whose interval reaches just so far."""
    if distance == 0.0:
        return 1.0
    if half(_LEAST_P) <= distance:
        return _LEAST_P
    return math.exp(optimize.brentq(lambda log_p: half(math.exp(log_p)) - distance, math.log(_LEAST_P), 0.0))


def _needed(variance: float, wanted: float) -> int | None:
    """How many of what has this variance, for their mean to have the wanted one."""
    return max(2, math.ceil(variance / wanted)) if wanted > 0 else None


def _sign_flip(array: np.ndarray) -> float:
    moved = np.abs(array[array != 0])
    if len(moved) == 0:
        return 1.0
    observed = abs(float(array.sum())) - 1e-12 * float(moved.sum())  # sums in another order differ in their last digits
    if len(moved) <= _EXACT_FLIPS:
        signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float(np.mean(np.abs(signs @ moved) >= observed))
    generator = np.random.Generator(np.random.PCG64(_BOOTSTRAP_SEED))
    rows = max(1, 2_000_000 // len(moved))
    reached = 0
    for done in range(0, _RESAMPLES, rows):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(rows, _RESAMPLES - done), len(moved)))
        reached += int(np.sum(np.abs(signs @ moved) >= observed))
    return (reached + 1) / (_RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): the chance of any false finding stays at the level asked for."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
