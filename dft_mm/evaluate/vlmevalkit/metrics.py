"""VLMEvalKit's tables → metrics with their uncertainty. Values are VLMEvalKit's own; intervals come from the rows.

Axes: G groups of WeMath, S samples.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dft_mm.evaluate.statistics import metric

Rows = Sequence[Mapping[str, Any]]
MATHVERSE_VERSIONS = ("Vision Only", "Vision Intensive", "Vision Dominant", "Text Lite", "Text Dominant")
WEMATH_ROWS = 1740
_WEMATH_GROUPS = 525
FOUR_DIMENSIONS = tuple(
    f"{name} ({mode})"
    for mode in ("Strict", "Loose")
    for name in (
        "Score", "InsufficientKnowledge", "InadequateGeneralization", "CompleteMastery", "RoteMemorization",
    )
)  # fmt: skip
"""Columns of groups; VLMEvalKit makes none of them where one is 0 / 0."""
_RESAMPLES = 10_000


def mathvision(rows: Rows, right: np.ndarray, tables: Sequence[Rows]) -> dict[str, Any]:
    """`Overall` and each subject; `right` (rows, S) holds VLMEvalKit's verdicts."""
    found = [{line["Subject"]: line["acc"] for line in table} for table in tables]
    subjects = sorted(found[0].keys() - {"Overall"})
    values = {name: np.mean([table[name] for table in found]) / 100 for name in ("Overall", *subjects)}
    return _of_rows(values, [str(row["category"]) for row in rows], right)


def mathverse(rows: Rows, right: np.ndarray, tables: Sequence[Rows]) -> dict[str, Any]:
    """`Overall`, which VLMEvalKit's table lacks, as the mean of all its verdicts, and each version of the questions."""
    found = [{line["split"]: line["Overall"] for line in table} for table in tables]
    names = [name for name in MATHVERSE_VERSIONS if name in found[0]] + sorted(
        found[0].keys() - set(MATHVERSE_VERSIONS)
    )
    values = {name: np.mean([table[name] for table in found]) / 100 for name in names}
    return _of_rows({"Overall": right.mean(), **values}, [row["problem_version"] for row in rows], right)


def _of_rows(values: Mapping[str, float], parts: Sequence[str], right: np.ndarray) -> dict[str, Any]:
    per_question = right.mean(axis=1)
    metrics = {}
    for name, value in values.items():
        mine = [mean for mean, part in zip(per_question, parts) if name in ("Overall", part)]
        metrics[name] = metric(mine, right.shape[1] == 1) | {"value": float(value)}
    return metrics


def wemath(rows: Rows, right: np.ndarray, tables: Sequence[Rows], topics: Mapping[str, int]) -> dict[str, Any]:
    """VLMEvalKit's columns under their own names. Percentages of groups and of step questions have a bootstrap over
    groups, since the questions of a group are not independent; topics, means over concepts of means, have none."""
    cells = [{name: _percent(cell) for name, cell in table[0].items()} for table in tables]
    groups = Groups(rows, right)
    metrics = {}
    for name in dict.fromkeys([*FOUR_DIMENSIONS, *cells[0]]):
        own = groups.values(name) if name in FOUR_DIMENSIONS else [None] * len(cells)
        values = [each.get(name, counted) for each, counted in zip(cells, own)]
        if any(value is None or np.isnan(value) for value in values):  # `Model`, topics without a question, 0 / 0
            continue
        uncertainty = groups.uncertainty(name) or {"se": None, "ci95": None, "n": topics.get(name, 0)}
        metrics[name] = {"value": float(np.mean(values)), **uncertainty}
    return metrics


def _percent(cell: Any) -> float | None:
    """`0.38% (2)` → 0.0038; `nan%` → not a number; None for no percentage."""
    text = str(cell).split("%")[0]
    try:
        value = float(text) / 100
    except ValueError:
        return None
    return value


class Groups:
    """What became of WeMath's groups: a compound question and the two or three steps that it is made of."""

    def __init__(self, rows: Rows, right: np.ndarray) -> None:
        by_group: dict[tuple[str, str], dict[str, int]] = {}
        for place, row in enumerate(rows):
            steps, _, part = row["key"].partition("steps_")
            by_group.setdefault((steps, str(row["ID"])), {})[part] = place
        # VLMEvalKit joins everything to a group's first step.
        members = {key: parts for key, parts in by_group.items() if "1" in parts}
        self.two = np.array([key[0] == "2" for key in members])
        self.right = right
        kinds = [self._kinds(parts, int(steps)) for (steps, _), parts in members.items()]
        self.kinds = {name: np.array([kind[name] for kind in kinds]) for name in kinds[0]} if kinds else {}

    def _kinds(self, parts: Mapping[str, int], number: int) -> dict[str, np.ndarray]:
        """Each (S,) float. A part that is missing is neither right nor wrong."""
        nothing = np.zeros(self.right.shape[1], dtype=bool)
        steps = [self.right[place].astype(bool) for part, place in parts.items() if part != "multi"]
        whole = self.right[parts["multi"]].astype(bool) if "multi" in parts else None
        good, bad = (nothing, nothing) if whole is None else (whole, ~whole)
        every, some = np.all(steps, axis=0), np.any(steps, axis=0)
        complete = len(steps) == number
        all_right, all_wrong = (every, ~some) if complete else (nothing, nothing)
        kinds = {
            "InadequateGeneralization": all_right & bad, "InsufficientKnowledge": ~every & bad,
            "RoteMemorization (Strict)": ~every & good, "RoteMemorization (Loose)": all_wrong & good,
            "CompleteMastery (Strict)": all_right & good, "CompleteMastery (Loose)": some & good,
            "steps_right": np.sum(steps, axis=0), "steps": np.full(len(nothing), len(steps)),
            "whole_right": good, "whole": nothing if whole is None else ~nothing,
        }  # fmt: skip
        return {name: kind.astype(float) for name, kind in kinds.items()}

    def values(self, column: str) -> np.ndarray:
        """A column of groups or of step questions from these counts, (S,); not a number where it is 0 / 0."""
        statistic = self._statistic(column)
        if statistic is None or not len(self.two):
            return np.full(self.right.shape[1], np.nan)
        with np.errstate(invalid="ignore"):
            return statistic({name: kind.sum(axis=0) for name, kind in self.kinds.items()})

    def uncertainty(self, column: str) -> dict[str, Any] | None:
        """Standard error, interval and number of groups or questions of a column; None for a topic."""
        if not len(self.two):
            return None
        if column in ("Two-step(S2)", "Three-step(S3)"):
            chosen = (self.two == (column == "Two-step(S2)")) & (self.kinds["whole"][:, 0] > 0)
            values = self.kinds["whole_right"][chosen].mean(axis=1)
            return {key: value for key, value in metric(values, self.right.shape[1] == 1).items() if key != "value"}
        statistic = self._statistic(column)
        if statistic is None:
            return None
        n = int(self.kinds["steps"][:, 0].sum()) if column == "One-step(S1)" else len(self.two)
        return {**self._bootstrap(statistic), "n": n}

    @staticmethod
    def _statistic(column: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray] | None:
        """The column as a function of counts over all groups."""
        name, _, mode = column.partition(" (")
        mode = f" ({mode}"
        if column == "One-step(S1)":
            return lambda count: count["steps_right"] / count["steps"]
        if name == "Score":
            return lambda count: (
                1 - (0.5 * count["InadequateGeneralization"] + count["InsufficientKnowledge"]
                     + count[f"RoteMemorization{mode}"]) / _WEMATH_GROUPS
            )  # fmt: skip
        if name == "RoteMemorization":
            return lambda count: count[column] / (count[column] + count[f"CompleteMastery{mode}"])
        if name in ("InadequateGeneralization", "InsufficientKnowledge"):
            return lambda count: count[name] / _WEMATH_GROUPS
        if name == "CompleteMastery":
            return lambda count: count[column] / _WEMATH_GROUPS
        return None

    def _bootstrap(self, statistic: Callable[[Mapping[str, np.ndarray]], np.ndarray]) -> dict[str, Any]:
        """Groups drawn with replacement; resamples in which the column is 0 / 0 have no value."""
        with np.errstate(invalid="ignore"):
            values = statistic(self._resampled).mean(axis=1)
        values = values[~np.isnan(values)]
        if len(self.two) < 2 or len(values) < 2:
            return {"se": None, "ci95": None}
        low, high = np.percentile(values, [2.5, 97.5])
        return {"se": float(values.std(ddof=1)), "ci95": [float(low), float(high)]}

    @cached_property
    def _resampled(self) -> dict[str, np.ndarray]:
        """Counts over all groups in every resample, each (resamples, S)."""
        size = len(self.two)
        times = np.random.Generator(np.random.PCG64(0)).multinomial(size, np.full(size, 1 / size), _RESAMPLES)
        times = times.astype(float)  # (resamples, G)
        return {name: times @ kind for name, kind in self.kinds.items()}
