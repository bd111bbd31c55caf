"""Comparisons in words: what each row of a compare.json came to, and how it came about."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def verdict(row: Row, a: str, b: str) -> str:
    """A row's outcome in words; `a` and `b` are what the two are called."""
    if row["verdict"] != "no_difference":
        return f"{a if row['verdict'] == 'a_better' else b} is better"
    if not any(row["ci95"]):  # no spread to resample: the interval's width says nothing of how few the questions are
        return f"no difference is shown: {_alike(row['n'])}"
    enough = {"questions": row["questions_needed"], "seeds": row.get("seeds_needed")}
    ways = [f"about {count:,} {what}" for what, count in enough.items() if count and count > row.get(_HAD[what], 0)]
    more = f"; one of this size would need {' or '.join(ways)}" if ways else ""
    return f"no difference is shown{more}"


def _alike(count: int) -> str:
    """What it says that so many questions came out alike: an exact binomial bound (Clopper-Pearson, one-sided)."""
    most = 100 * (1 - 0.05 ** (1 / count))
    what = f"all {count:,} questions" if count > 1 else "the one question"
    return f"{what} came out alike, which at 95 % leaves room for {most:.2g} % of others that do not"


def in_words(row: Row) -> str:
    """A row with `a` and `b`, what the two are called, as one sentence, in percentage points, without its full stop."""
    low, high = (100 * bound for bound in row["ci95"])
    return (
        f"{row['benchmark']}, {row['metric']}: {row['a']} - {row['b']} = {100 * row['difference']:+.1f} points "
        f"({low:+.1f} to {high:+.1f}): {verdict(row, row['a'], row['b'])}"
    )


def pairs(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by what is compared, A and B, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["a"], row["b"]), []).append(row)
    return found


def headline(a: str, b: str, rows: Sequence[Row]) -> str:
    """What all rows of one pair say together, in one sentence."""
    outcomes = [
        (f"{a} is better than {b} on", _where(rows, "a_better")),
        (f"{b} is better than {a} on", _where(rows, "b_better")),
        ("no difference is shown on", _where(rows, "no_difference")),
    ]
    found = [(what, names) for what, names in outcomes if names]
    if not found:
        return f"{a} and {b} have no benchmark in common"
    said = "; ".join(f"{what} {_listed(names, len(rows))}" for what, names in found)
    return f"{a} and {b}: {said}" if found == outcomes[2:] else said


_MOST_NAMES = 4


def _listed(names: Sequence[str], of: int) -> str:
    return ", ".join(names) if len(names) < max(of, _MOST_NAMES + 1) else f"each of {of} scores"


def _where(rows: Sequence[Row], outcome: str) -> list[str]:
    plain = [row["benchmark"] for row in rows]
    return [
        row["benchmark"] if plain.count(row["benchmark"]) == 1 else f"{row['benchmark']} ({row['metric']})"
        for row in rows
        if row["verdict"] == outcome
    ]


def method(rows: Sequence[Row]) -> str:
    """How the figures came about, with one seed and with several."""
    seeds = max((row.get("seeds", 1) for row in rows), default=1)
    return _METHODS[seeds > 1].format(seeds=seeds)


_HAD = {"questions": "n", "seeds": "seeds"}
_METHODS = {
    False: "Percentage points, question by question; interval: percentile bootstrap over questions; p: sign-flip test, "
    "corrected for the number of rows (Holm). Neither covers the luck of a training run: for that, other seeds.",
    True: "Percentage points, question by question in {seeds} trainings of both; interval and p: t distributions, with "
    "seeds and questions as crossed random effects (Howe), so that both cover the luck of training and the choice of "
    "questions; p is corrected for the number of rows (Holm).",
}
