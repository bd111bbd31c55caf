"""Scores → metrics with their uncertainty, results.json and results.md."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_Z95 = 1.959963984540054
_RESAMPLES = 10_000
_BOOTSTRAP_SEED = 0


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927, doi:10.2307/2276774)."""
    p, z2 = successes / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
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
    interval = wilson(round(float(array.sum())), n) if binomial else bootstrap(values)
    error = float(array.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"value": float(array.mean()), "se": error, "ci95": list(interval), "n": n}


def summarise(scores: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """One benchmark's entry of results.json, from its lines of scores.jsonl.

    A question with an ungradable answer is left out of the metrics, and stands in the status counts.
    """
    questions: dict[str, list[str]] = {}
    for score in scores:
        questions.setdefault(score["id"], []).append(score["status"])
    right = [statuses.count("correct") for statuses in questions.values() if "ungradable" not in statuses]
    metrics: dict[str, Any] = {}
    if right:
        metrics[f"avg@{samples}"] = metric([count / samples for count in right], samples == 1)
        for k in (2**power for power in range(samples.bit_length())):
            metrics[f"pass@{k}"] = metric([pass_at_k(samples, count, k) for count in right], samples == 1)
    status = Counter(score["status"] for score in scores)
    return {"metrics": metrics, "status": dict(sorted(status.items())), "samples": samples}


def to_markdown(results: Mapping[str, Any]) -> str:
    """The table: values in percent with 95 % intervals, and what the answers came to."""
    lines = [
        f"# {results['suite']}: {_cell(results['model'])}",
        "",
        "| benchmark | metric | % | 95 % interval | questions | answers |",
        "|---|---|---:|---:|---:|---|",
    ]
    left_out = False
    for name, entry in results["benchmarks"].items():
        status = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in entry["status"].items())
        left_out |= "ungradable" in entry["status"]
        rows = entry["metrics"].items() or [("", None)]
        for number, (key, value) in enumerate(rows):
            shown = status if number == 0 else ""
            if value is None:
                lines.append(f"| {name} | | | | 0 | {shown} |")
                continue
            low, high = (100 * bound for bound in value["ci95"])
            lines.append(
                f"| {name} | {key} | {100 * value['value']:.1f} | {low:.1f} to {high:.1f} | {value['n']} | {shown} |"
            )
    if left_out:
        lines += ["", "Questions with an ungradable answer are not part of the values."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def write(results: Mapping[str, Any], out: Path) -> None:
    """results.json and results.md."""
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "results.md").write_text(to_markdown(results), encoding="utf-8")
