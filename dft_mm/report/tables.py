"""Scores of several models as one table: models down, benchmarks across, blanks with footnotes for what is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from dft_mm.errors import InputError
from dft_mm.evaluate.task import NOT_SCORED
from dft_mm.report.read import Results, read_paths


@dataclass(frozen=True)
class Cell:
    """A percentage with its 95 % interval and number of questions, or a blank with a footnote."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: int | None = None
    """Number of the footnote that says why it is blank, or what is left out."""

    @property
    def text(self) -> str:
        mark = f" [{self.note}]" if self.note else ""
        if self.value is None:
            return mark.strip()
        interval = "" if self.low is None else f" ({self.low:.1f} to {self.high:.1f})"
        return f"{self.value:.1f}{interval}{mark}"


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    """First the model, then one a benchmark and metric."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """Model, cells."""
    notes: tuple[str, ...]
    """Footnotes, from 1."""
    published: int = 0
    """So many of the last rows are somebody else's."""


def score_table(results: Sequence[Results], every_metric: bool = False) -> Table:
    """Scores in percent: the metrics that each benchmark is known by, or every one.

    A score that is missing is blank and its footnote says why; it is never a zero.
    """
    labels = list(dict.fromkeys(result.label for result in results))
    keys = list(
        dict.fromkeys(
            (benchmark, metric)
            for result in results
            for benchmark, entry in result.benchmarks.items()
            for metric in _metrics(entry, every_metric)
        )
    )
    notes: list[str] = []
    rows = []
    for label in labels:
        entries: dict[str, dict[str, Any]] = {}
        for result in results:
            if result.label == label:
                entries |= result.benchmarks
        rows.append((label, tuple(_cell(entries.get(benchmark), metric, notes) for benchmark, metric in keys)))
    averages = list(dict.fromkeys(name for result in results for name in result.averages))
    for place, (label, cells) in enumerate(rows):
        means = {name: mean for result in results if result.label == label for name, mean in result.averages.items()}
        rows[place] = (label, (*cells, *(_mean(means.get(name), notes) for name in averages)))
    titles = [benchmark if metric == "avg@1" else f"{benchmark} {metric}" for benchmark, metric in keys]
    return Table(("model", *titles, *averages), tuple(rows), tuple(notes))


def _metrics(entry: dict[str, Any], every: bool) -> list[str]:
    """What a benchmark is known by, or all; with one sample an answer, pass@1 repeats avg@1. A benchmark without any
    metric keeps one column."""
    names = [name for name in entry["metrics"] if not (name == "pass@1" and "avg@1" in entry["metrics"])]
    if not every:
        official = [name for name in names if name.startswith("official")]  # what published tables compare with
        names = entry.get("headline") or names[:1] + official
    return names or [f"avg@{entry['samples']}"]


def _cell(entry: dict[str, Any] | None, metric: str, notes: list[str]) -> Cell:
    if entry is None:
        return Cell(note=_note(notes, "not measured"))
    measured = entry["metrics"].get(metric)
    left_out = sum(entry["status"].get(status, 0) for status in NOT_SCORED)
    if measured is None:
        what = f"{left_out} answers could not be graded" if left_out else f"{metric} was not measured"
        return Cell(note=_note(notes, what))
    low, high = measured.get("ci95") or (None, None)
    remarks = [f"{left_out} ungradable answers left out"] if left_out else []
    if truncated := entry["status"].get("truncated"):
        remarks.append(f"{truncated} answers were cut before they came to an end, and count as not right")
    if entry.get("judge", "rule") != "rule":
        remarks.append(f"judged by {entry['judge']}")
    remarks += entry.get("notes", [])
    note = _note(notes, "; ".join(remarks)) if remarks else None
    return Cell(
        100 * measured["value"],
        None if low is None else 100 * low,
        None if high is None else 100 * high,
        measured["n"],
        note,
    )


def _mean(mean: dict[str, Any] | None, notes: list[str]) -> Cell:
    if mean is None:
        return Cell(note=_note(notes, "not measured"))
    if mean["value"] is None:
        return Cell(note=_note(notes, f"{', '.join(mean['missing'])} have no value"))
    low, high = mean["ci95"] or (None, None)
    bounds = [None if bound is None else 100 * bound for bound in (low, high)]
    return Cell(100 * mean["value"], *bounds)  # of benchmarks, not of so many questions


def _note(notes: list[str], text: str) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def to_markdown(table: Table) -> str:
    """The table for a README or an issue."""
    lines = ["| " + " | ".join(map(_escape, table.columns)) + " |", "|---|" + "---:|" * (len(table.columns) - 1)]
    lines += ["| " + " | ".join([_escape(name), *(cell.text for cell in cells)]) + " |" for name, cells in table.rows]
    if table.notes:
        lines += ["", *(f"[{number}] {_escape(note)}  " for number, note in enumerate(table.notes, 1))]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def write_table(paths: Sequence[Path], out: Path, add: Callable[[Table], Table] = lambda table: table) -> None:
    """Scores of run folders and result folders, one model a row. Raises InputError when there is none."""
    results = read_paths(paths).results
    if not results:
        raise InputError(f"no scores in {', '.join(map(str, paths))}; dft-mm eval writes them")
    out.write_text(to_markdown(add(score_table(results))), encoding="utf-8")


def print_table(table: Table, title: str) -> None:
    """The table on standard output: drawn on a terminal, markdown elsewhere."""
    console = Console()
    if not console.is_terminal:
        print(f"{title}\n\n{to_markdown(table)}")
        return
    drawn = RichTable(title=title, caption="\n".join(f"[{n}] {note}" for n, note in enumerate(table.notes, 1)))
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for name, cells in table.rows:
        drawn.add_row(name, *(cell.text for cell in cells))
    console.print(drawn, markup=False)
