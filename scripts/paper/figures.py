"""What the paper's figures of accuracy share: scores along an axis become plots on one page, a table and JSON.

The paper draws these figures and prints no numbers for them; those of Table 1, of the same setting, stand below.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dft_mm.atomic import write_atomically
from scripts.paper.experiment import METHODS, comparable, differences

if TYPE_CHECKING:
    from dft_mm.report.published import Published
    from dft_mm.report.tables import Cell, Table

DRAWN_ONLY = "The paper draws its Figure {} and prints no numbers for it"


@dataclass(frozen=True)
class Point:
    """Scores of one model."""

    curve: str
    x: float
    row: str
    """What the table calls it."""
    results: Path
    """Result folder."""


@dataclass(frozen=True)
class Sweep:
    """Scores along one axis."""

    axis: str
    points: Sequence[Point]
    averages_only: bool = False
    """Plot no benchmark of its own; the table has them all."""
    log: bool = False
    """Whether the axis is logarithmic, and marked where the points are."""


@dataclass(frozen=True)
class Figure:
    number: str
    title: str
    model: str
    """As the paper has it."""
    sweeps: Sequence[Sweep]
    studies: Sequence[Path] = ()
    """Folders with a compare.json."""
    notes: Sequence[str] = ()


def curve_of(loss: str, seed: int, seeds: Sequence[int]) -> str:
    """What a line is called; seeds are told apart where there are several."""
    return METHODS[loss] + (f", seed {seed}" if len(seeds) > 1 else "")


def write(figure: Figure, out: Path) -> str:
    """OUT/figure.json, OUT/figure.md and OUT/figure.html, one page that opens offline. Returns the table's text."""
    from dft_mm.report.published import published
    from dft_mm.report.tables import to_markdown

    theirs = published([figure.model], "1")
    tables = [score_table_of(sweep, theirs) for sweep in figure.sweeps]
    panels = [panel for sweep, table in zip(figure.sweeps, tables) for panel in panels_of(sweep, table)]
    told = {
        "figure": figure.number, "model": figure.model, "panels": panels, "notes": list(figure.notes),
        "published": {"table": "1", "rows": [{"method": row.method, "percent": row.percent} for row in theirs]},
    }  # fmt: skip
    found = differences(figure.studies)
    title = f"Figure {figure.number}: {figure.title}"
    text = "\n\n".join(part.strip() for part in [f"# {title}", *figure.notes, *map(to_markdown, tables), *found]) + "\n"
    write_atomically(out / "figure.json", json.dumps(told, indent=2) + "\n")
    write_atomically(out / "figure.md", text)
    write_atomically(out / "figure.html", page(title, figure.notes, panels, tables, found))
    return text


def score_table_of(sweep: Sweep, theirs: "Sequence[Published]") -> "Table":
    """A row a model, the published ones below; columns that have a published number."""
    from dft_mm.report.published import beside
    from dft_mm.report.read import read_results
    from dft_mm.report.tables import score_table

    ours = [read_results(point.results, point.row) for point in sweep.points]
    return comparable(beside(score_table(ours, every_metric=True), theirs), theirs)


def panels_of(sweep: Sweep, table: "Table") -> list[dict[str, Any]]:
    """One plot a column, as values: percent and its interval by curve, null where there is none."""
    rows = dict(table.rows)
    panels = []
    for place, column in enumerate(table.columns[1:]):
        benchmark, _, metric = column.partition(" ")
        if not sweep.averages_only or benchmark == "average":
            cells = [(point, rows[point.row][place]) for point in sweep.points]
            panels.append(
                {"axis": sweep.axis, "benchmark": benchmark, "metric": metric or None, "curves": _curves(cells)}
                | ({"log": True} if sweep.log else {})
            )
    return panels


def _curves(cells: "Sequence[tuple[Point, Cell]]") -> dict[str, dict[str, list[Any]]]:
    curves: dict[str, dict[str, list[Any]]] = {}
    for point, cell in sorted(cells, key=lambda each: each[0].x):
        curve = curves.setdefault(point.curve, {"x": [], "percent": [], "ci95": []})
        curve["x"].append(point.x)
        curve["percent"].append(cell.value)
        curve["ci95"].append(None if cell.low is None else [cell.low, cell.high])
    return curves


def page(
    title: str, notes: Sequence[str], panels: Sequence[Mapping[str, Any]], tables: "Sequence[Table]",
    found: Sequence[str],
) -> str:  # fmt: skip
    import jinja2

    from dft_mm.report.plots import score_plot

    plots = []
    for panel in panels:
        name = f"{panel['benchmark']} by {panel['axis']}"
        metric = f", {panel['metric']}" if panel["metric"] else ""
        svg = score_plot(panel["curves"], name, panel["axis"], panel.get("log", False))
        plots.append((f"{name}{metric}: percent, with 95 % interval", svg))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("figure.html.jinja").render(
        title=title, notes=notes, plots=plots, tables=tables, found=found
    )
