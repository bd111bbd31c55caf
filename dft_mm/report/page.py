"""Runs, results and comparisons → one self-contained HTML page that opens offline, on a laptop or a phone."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from dft_mm import __version__
from dft_mm.evaluate.task import RIGHT
from dft_mm.report.about import about_results, about_run, data_of, differences
from dft_mm.report.comparison import headline, method, pairs, verdict
from dft_mm.report.curves import curve_plots, points
from dft_mm.report.examples import BYTES, LONGEST_TEXT, MOST, Example, Examples, read_examples
from dft_mm.report.plots import interval_plot
from dft_mm.report.probabilities import heat_maps, histograms
from dft_mm.report.read import Comparison, Found, Results, Run, read_paths
from dft_mm.report.tables import Table, score_table

TITLE = "Training and scores"
_HEADLINES = 10
_HERE = Path(__file__).parent

AddRows = Callable[[Table], Table]


def write_report(
    paths: Sequence[Path],
    out: Path,
    title: str = TITLE,
    intro: Sequence[str] = (),
    add: AddRows = lambda table: table,
) -> None:
    """Write the page of run folders, result folders and comparisons.

    `intro` are paragraphs after the verdict; `add` puts rows into the table of scores. Raises InputError for a path
    that is none of these, or is damaged.
    """
    found = read_paths(paths)
    page = render(found, read_examples(found.results), title, intro, add)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encoded(page))


def encoded(page: str) -> bytes:
    """Lone surrogates, which model text may hold and UTF-8 cannot, become question marks."""
    return page.encode(errors="replace")


def render(
    found: Found,
    examples: Examples,
    title: str = TITLE,
    intro: Sequence[str] = (),
    add: AddRows = lambda table: table,
    every_ms: int = 0,
) -> str:
    """The page as text.

    Args:
        every_ms: how often it asks the server that it came from for news; 0: never, and it may not.
    """
    runs, results = found.runs, found.results
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    tables = {
        "table": add(score_table(results)) if results else None,
        "full_table": score_table(results, every_metric=True),
    }
    headlines = [headline(a, b, rows) for each in found.comparisons for (a, b), rows in pairs(each.rows).items()]
    plots = {"curves": curve_plots(runs), "heat_maps": heat_maps(runs), "histograms": histograms(runs)}
    data = data_of(runs)
    parts = {
        "overview": ("Overview", True),
        "training": ("Training", plots["curves"]),
        "probabilities": ("Token probabilities", plots["heat_maps"] or plots["histograms"]),
        "scores": ("Scores", results),
        "comparison": ("Comparison", found.comparisons),
        "examples": ("Examples", examples.examples),
        "data": ("Data", data),
        "recipes": ("Recipe and environment", runs or results),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dft_mm.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.jinja").render(
        title=title, intro=intro, every=every_ms, parts=parts, policy=_policy(script, every_ms > 0),
        style=(_HERE / "page.css").read_text(encoding="utf-8"), script=script,
        troubles=_troubles(runs), headlines=headlines[:_HEADLINES], headlines_left=len(headlines[_HEADLINES:]),
        uncompared=not found.comparisons and _share_a_benchmark(results),
        runs=[about_run(run) for run in runs], waiting=found.waiting,
        differences=differences(runs) if len(runs) > 1 else [],
        **plots, points=points(len(runs)), thinned=any(len(run.metrics) > points(len(runs)) for run in runs),
        **tables, comparisons=[shown for each in found.comparisons for shown in _comparison(each)],
        comparison_notes=[note for each in found.comparisons for note in _notes(each)],
        examples=examples, shares=lambda example: _shares(example, len(examples.models)), right=RIGHT,
        most=MOST, most_bytes=BYTES, longest=LONGEST_TEXT,
        data=data, results=[about_results(result) for result in results],
        version=__version__, written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )  # fmt: skip


def _policy(script: str, live: bool) -> str:
    """Nothing is loaded from anywhere, and no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'", "script-src": f"'sha256-{digest}'", "style-src": "'unsafe-inline'",
        "img-src": "data:", "connect-src": "'self'" if live else "'none'", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    return "; ".join(f"{what} {source}" for what, source in allowed.items())


def _troubles(runs: Sequence[Run]) -> list[str]:
    """What a reader should know first: runs that failed or stopped, and what they noted."""
    found = []
    for run in runs:
        state, reason = run.status.get("state"), run.status.get("reason", "")
        if state in ("failed", "stopped"):
            found.append(f"{run.name} {'has failed' if state == 'failed' else 'was stopped'}{reason and ': '}{reason}")
        found += [f"{run.name}: {note}" for note in run.status.get("notes", [])]
    return found


def _share_a_benchmark(results: Sequence[Results]) -> bool:
    models = Counter(name for label, name in {(each.label, name) for each in results for name in each.benchmarks})
    return any(number > 1 for number in models.values())


def _comparison(comparison: Comparison) -> list[Mapping[str, Any]]:
    """What the page shows of each pair in it."""
    shown = []
    for (a, b), rows in pairs(comparison.rows).items():
        several = len({row["metric"] for row in rows}) > 1
        bars = [
            (
                f"{row['benchmark']}\n{row['metric']}" if several else row["benchmark"],
                *(100 * value for value in (row["ci95"][0], row["difference"], row["ci95"][1])),
                row["verdict"] != "no_difference",
            )
            for row in rows
        ]
        title = f"{headline(a, b, rows)}. Intervals of {a} minus {b} by benchmark; the figures are in the table below"
        svg = interval_plot(bars, title, f"← {b} better · percentage points · {a} better →")
        outcomes = [(row, verdict(row, a, b)) for row in rows]
        shown.append({"a": a, "b": b, "svg": svg, "rows": outcomes, "method": method(rows)})
    return shown


def _notes(comparison: Comparison) -> list[str]:
    left = comparison.not_compared
    return [*comparison.notes, *([f"In one of the folders only: {', '.join(left)}."] if left else [])]


def _shares(example: Example, models: int) -> str:
    """Share of right answers of each model as JSON, null where it was not asked."""
    shares: list[float | None] = [None] * models
    for answer in example.answers:
        shares[answer.model] = answer.right / answer.samples
    return json.dumps(shares)
