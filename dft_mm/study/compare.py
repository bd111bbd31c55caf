"""Is A better than B? Two finished result folders over the same questions, question by question."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError
from dft_mm.evaluate.statistics import holm, paired
from dft_mm.evaluate.task import NOT_SCORED, RIGHT
from dft_mm.report.read import Results, read_lines, read_results

_LEVEL = 0.05

Scores = dict[str, dict[str, list[Mapping[str, Any]]]]
"""Lines of scores.jsonl by benchmark and question."""


def compare_results(a: Path, b: Path, out: Path) -> dict[str, Any]:
    """Write OUT/compare.json and OUT/compare.md; returns what stands in compare.json.

    Raises InputError when a folder holds no results, or their questions differ.
    """
    comparison = compare([(read(a), read(b))])
    write_comparison(comparison, str(a), str(b), out)
    return comparison


def write_comparison(comparison: Mapping[str, Any], a: str, b: str, out: Path) -> None:
    """compare.json and compare.md; `a` and `b` are what the two are called."""
    write_atomically(out / "compare.json", json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")
    write_atomically(out / "compare.md", to_markdown(comparison, a, b))


def read(folder: Path) -> Results:
    for name in ("results.json", "scores.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no finished results (it would hold {name}); dft-mm eval writes them")
    return read_results(folder, folder.name)


def compare(pairs: Sequence[tuple[Results, Results]]) -> dict[str, Any]:
    """A − B for every benchmark of every pair of results; p-values are corrected for the number of all of them."""
    rows = [row for a, b in pairs for row in _comparisons(a, b)]
    for row, adjusted in zip(rows, holm([row["p"] for row in rows])):
        low, high = row["ci95"]
        row["p_adjusted"] = adjusted
        row["verdict"] = "no_difference"
        if adjusted < _LEVEL and (low > 0 or high < 0):
            row["verdict"] = "a_better" if low > 0 else "b_better"
    left = sorted({name for a, b in pairs for name in a.benchmarks.keys() ^ b.benchmarks.keys()})
    return {"comparisons": rows, "not_compared": left}


def _comparisons(a: Results, b: Results) -> list[dict[str, Any]]:
    shared = [name for name in a.benchmarks if name in b.benchmarks]
    if not shared:
        raise InputError(
            f"{a.folder} and {b.folder} have no benchmark in common: {', '.join(a.benchmarks)} and "
            f"{', '.join(b.benchmarks)}"
        )
    scores = _scores(a), _scores(b)
    return [row for name in shared for row in _benchmark(name, a, b, scores[0][name], scores[1][name])]


def _scores(results: Results) -> Scores:
    found: Scores = {name: {} for name in results.benchmarks}
    for line in read_lines(results.folder / "scores.jsonl"):
        found.setdefault(line["benchmark"], {}).setdefault(line["id"], []).append(line)
    return found


def _benchmark(
    name: str,
    a: Results,
    b: Results,
    ours: dict[str, list[Mapping[str, Any]]],
    theirs: dict[str, list[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    if ours.keys() != theirs.keys():
        missing = sorted(ours.keys() ^ theirs.keys())
        raise InputError(
            f"{name}: {a.folder} and {b.folder} were asked different questions ({len(missing)} are in one of them "
            f"only, such as {missing[0]!r}); score both on the same suite"
        )
    changed = [question for question in ours if ours[question][0]["gold"] != theirs[question][0]["gold"]]
    if changed:
        raise InputError(
            f"{name}: question {changed[0]!r} has another gold answer in {b.folder} than in {a.folder} "
            f"({len(changed)} such); score both on the same data"
        )
    judges = [results.benchmarks[name].get("judge", "rule") for results in (a, b)]
    if judges[0] != judges[1]:
        raise InputError(f"{name}: judged by {judges[0]} in {a.folder} and by {judges[1]} in {b.folder}; use one judge")
    kept = [
        question
        for question in ours
        if not any(line["status"] in NOT_SCORED for line in (*ours[question], *theirs[question]))
    ]
    if not kept:
        return []
    samples = len(ours[kept[0]])
    rows = [_row(name, f"avg@{samples}", kept, ours, theirs, lambda line: line["status"] in RIGHT)]
    if all("official" in line for question in kept for line in (*ours[question], *theirs[question])):
        rows.append(_row(name, f"official avg@{samples}", kept, ours, theirs, lambda line: line["official"]))
    for row in rows:
        row["left_out"] = len(ours) - len(kept)
    return rows


def _row(
    name: str, metric: str, kept: Sequence[str], ours: Mapping[str, Any], theirs: Mapping[str, Any], right: Any
) -> dict[str, Any]:
    def share(lines: Sequence[Mapping[str, Any]]) -> float:
        return sum(bool(right(line)) for line in lines) / len(lines)

    gains = [share(ours[question]) - share(theirs[question]) for question in kept]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return {"benchmark": name, "metric": metric, **paired(gains), "a_only": better, "b_only": worse}


def verdict(row: Mapping[str, Any], a: str, b: str) -> str:
    """A row's outcome in words; `a` and `b` are what the two are called."""
    if row["verdict"] != "no_difference":
        return f"{a if row['verdict'] == 'a_better' else b} is better"
    needed = row["questions_needed"]
    more = f"; one of this size would need about {needed:,} questions" if needed else ""
    return f"no difference is shown{more}"


def to_markdown(comparison: Mapping[str, Any], a: str, b: str) -> str:
    """The table, in percentage points."""
    lines = [
        f"# A: {a}",
        f"# B: {b}",
        "",
        "| benchmark | metric | A − B | 95 % interval | p | p (Holm) | questions | A better | B better | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in comparison["comparisons"]:
        low, high = (100 * bound for bound in row["ci95"])
        outcome = verdict(row, "A", "B")
        if row["left_out"]:
            outcome += f"; {row['left_out']} questions could not be scored"
        lines.append(
            f"| {row['benchmark']} | {row['metric']} | {100 * row['difference']:+.1f} | {low:+.1f} to {high:+.1f} | "
            f"{row['p']:.2g} | {row['p_adjusted']:.2g} | {row['n']} | {row['a_only']} | {row['b_only']} | {outcome} |"
        )
    if comparison["not_compared"]:
        lines += ["", f"In one of the folders only: {', '.join(comparison['not_compared'])}."]
    lines += [
        "",
        "Percentage points, question by question; interval: percentile bootstrap over questions; p: sign-flip test, "
        "corrected for the number of rows (Holm). Neither covers the luck of a training run: for that, other seeds.",
    ]
    return "\n".join(lines) + "\n"
