"""Is A better than B? Finished result folders over the same questions, question by question and seed by seed."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError
from dft_mm.evaluate.statistics import crossed, holm, paired
from dft_mm.evaluate.task import NOT_SCORED, RIGHT
from dft_mm.report.comparison import method, verdict
from dft_mm.report.read import Results, read_lines, read_results

_LEVEL = 0.05

Scores = dict[str, dict[str, list[Mapping[str, Any]]]]
"""Lines of scores.jsonl by benchmark and question."""


def compare_results(a: Path, b: Path, out: Path) -> dict[str, Any]:
    """Write OUT/compare.json and OUT/compare.md; returns what stands in compare.json.

    Raises InputError when a folder holds no results, or their questions differ.
    """
    comparison = compare([(read(a), read(b))])
    write_comparison(comparison, out, str(a), str(b))
    return comparison


def write_comparison(comparison: Mapping[str, Any], out: Path, a: str = "A", b: str = "B") -> None:
    """compare.json and compare.md; `a` and `b` are what the two are called, where rows do not say so."""
    named = any("a" in row for row in comparison["comparisons"])
    told = comparison if named else {"a": a, "b": b} | comparison
    write_atomically(out / "compare.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    write_atomically(out / "compare.md", to_markdown(comparison, a, b))


def read(folder: Path) -> Results:
    for name in ("results.json", "scores.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no finished results (it would hold {name}); dft-mm eval writes them")
    return read_results(folder, folder.name)


def compare(pairs: Sequence[tuple[Results, Results]]) -> dict[str, Any]:
    """A − B for every benchmark of every pair of results; p-values are corrected for the number of all of them."""
    return _judged([row for pair in pairs for row in _comparisons([pair])], pairs)


def compare_arms(arms: Mapping[str, Sequence[Results]], compared: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The same for arms of a study, each with one result a seed, in the same order of seeds: those pairs that are to be
    compared, or every two."""
    rows: list[dict[str, Any]] = []
    pairs: list[tuple[Results, Results]] = []
    for a, b in compared or itertools.combinations(arms, 2):
        seeds = list(zip(arms[a], arms[b], strict=True))
        rows += [{"a": a, "b": b} | row for row in _comparisons(seeds)]
        pairs += seeds
    return _judged(rows, pairs)


def _judged(rows: list[dict[str, Any]], pairs: Sequence[tuple[Results, Results]]) -> dict[str, Any]:
    for row, adjusted in zip(rows, holm([row["p"] for row in rows])):
        low, high = row["ci95"]
        row["p_adjusted"] = adjusted
        row["verdict"] = "no_difference"
        if adjusted < _LEVEL and (low > 0 or high < 0):
            row["verdict"] = "a_better" if low > 0 else "b_better"
    left = sorted({name for a, b in pairs for name in a.benchmarks.keys() ^ b.benchmarks.keys()})
    return {"comparisons": rows, "not_compared": left}


def _comparisons(seeds: Sequence[tuple[Results, Results]]) -> list[dict[str, Any]]:
    """One row a benchmark and metric, of one or several trainings of both."""
    a, b = seeds[0]
    shared = [name for name in a.benchmarks if all(name in each.benchmarks for pair in seeds for each in pair)]
    if not shared:
        raise InputError(
            f"{a.folder} and {b.folder} have no benchmark in common: {', '.join(a.benchmarks)} and "
            f"{', '.join(b.benchmarks)}"
        )
    scores = [(_scores(a), _scores(b)) for a, b in seeds]
    return [
        row
        for name in shared
        for row in _rows(name, [_gains(name, a, b, x[name], y[name]) for (a, b), (x, y) in zip(seeds, scores)])
    ]


def _scores(results: Results) -> Scores:
    found: Scores = {name: {} for name in results.benchmarks}
    for line in read_lines(results.folder / "scores.jsonl"):
        found.setdefault(line["benchmark"], {}).setdefault(line["id"], []).append(line)
    return found


class _Gains(NamedTuple):
    """A − B of one pair of results on one benchmark."""

    by_metric: dict[str, dict[str, float]]
    """Metric → question → difference of the shares of right answers; without questions that could not be scored."""
    asked: int


def _gains(
    name: str,
    a: Results,
    b: Results,
    ours: dict[str, list[Mapping[str, Any]]],
    theirs: dict[str, list[Mapping[str, Any]]],
) -> _Gains:
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
        return _Gains({}, len(ours))

    def gains(right: Callable[[Mapping[str, Any]], bool]) -> dict[str, float]:
        return {question: _share(ours[question], right) - _share(theirs[question], right) for question in kept}

    samples = len(ours[kept[0]])
    found = {f"avg@{samples}": gains(lambda line: line["status"] in RIGHT)}
    if all("official" in line for question in kept for line in (*ours[question], *theirs[question])):
        found[f"official avg@{samples}"] = gains(lambda line: line["official"])
    return _Gains(found, len(ours))


def _share(lines: Sequence[Mapping[str, Any]], right: Callable[[Mapping[str, Any]], bool]) -> float:
    return sum(bool(right(line)) for line in lines) / len(lines)


def _rows(name: str, seeds: Sequence[_Gains]) -> list[dict[str, Any]]:
    rows = []
    for metric in seeds[0].by_metric:
        tables = [each.by_metric.get(metric, {}) for each in seeds]
        kept = [question for question in tables[0] if all(question in table for table in tables)]
        if not kept:
            continue
        gains = np.array([[table[question] for question in kept] for table in tables])
        mean = gains.mean(axis=0)
        both = len(seeds) > 1 and len(kept) > 1
        row = {"benchmark": name, "metric": metric, **(crossed(gains) if both else paired(mean.tolist()))}
        counts = {"a_only": int((mean > 0).sum()), "b_only": int((mean < 0).sum())}
        rows.append(row | counts | {"left_out": seeds[0].asked - len(kept)})
    return rows


def to_markdown(comparison: Mapping[str, Any], a: str, b: str) -> str:
    """The table, in percentage points."""
    named = any("a" in row for row in comparison["comparisons"])
    lines = [] if named else [f"# A: {a}", f"# B: {b}", ""]
    lines += [
        "| A | B " * named
        + "| benchmark | metric | A − B | 95 % interval | p | p (Holm) | questions | A better | B better | verdict |",
        "|---|---" * named + "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in comparison["comparisons"]:
        low, high = (100 * bound for bound in row["ci95"])
        outcome = verdict(row, row.get("a", "A"), row.get("b", "B"))
        if row["left_out"]:
            outcome += f"; {row['left_out']} questions could not be scored"
        arms = f"| {row['a']} | {row['b']} " if named else ""
        value = f"{100 * row['difference']:+.1f} | {low:+.1f} to {high:+.1f}"
        lines.append(
            f"{arms}| {row['benchmark']} | {row['metric']} | {value} | {row['p']:.2g} | {row['p_adjusted']:.2g} | "
            f"{row['n']} | {row['a_only']} | {row['b_only']} | {outcome} |"
        )
    if comparison["not_compared"]:
        lines += ["", f"In one of the folders only: {', '.join(comparison['not_compared'])}."]
    lines += ["", *comparison.get("notes", [])]
    lines.append(method(comparison["comparisons"]))
    return "\n".join(lines) + "\n"
