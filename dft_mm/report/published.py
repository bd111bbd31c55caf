"""Published scores, `eval/published.json`, as rows beside ours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dft_mm.errors import InputError
from dft_mm.report.tables import Cell, Table


@dataclass(frozen=True)
class Published:
    """A row of a published table."""

    paper: str
    table: str
    """Its number."""
    model: str
    method: str
    setting: str | None
    """Where a table has a method in several."""
    percent: dict[str, float]
    """By the name of a benchmark, of a benchmark and its metric, or of an average."""

    @property
    def label(self) -> str:
        place = ", ".join([self.paper, f"Table {self.table}", *([self.setting] if self.setting else [])])
        return f"{self.model} {self.method} ({place})"


def published(models: Sequence[str], table: str | None = None) -> list[Published]:
    """All published rows of these models, as the paper names them, or those of one table; InputError for a model that
    the paper does not have."""
    path = Path(__file__).parents[2] / "eval" / "published.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    rows, known = [], dict.fromkeys(row["model"] for table in told["tables"].values() for row in table["rows"])
    for model in models:
        if model not in known:
            raise InputError(f"--published {model}: no published row has that name; there are {', '.join(known)}")
        rows += [
            Published(told["paper"], number, model, row["method"], row.get("setting"), row["percent"])
            for number, content in told["tables"].items()
            for row in content["rows"]
            if row["model"] == model and table in (None, number)
        ]
    return rows


def beside(table: Table, rows: Sequence[Published]) -> Table:
    """The table with published rows below, as far as its columns have them.

    A benchmark's number stands under its `official` metric, which grades as the paper did, where there is one.
    """
    found = []
    for row in rows:
        values = [_value(column, table.columns, row.percent) for column in table.columns[1:]]
        if any(value is not None for value in values):
            found.append((row.label, tuple(Cell(value) for value in values)))
    return Table(table.columns, (*table.rows, *found), table.notes, len(found))


def _value(column: str, columns: Sequence[str], percent: dict[str, float]) -> float | None:
    if column in percent and not any(other.startswith(f"{column} official") for other in columns):
        return percent[column]
    benchmark, _, metric = column.partition(" ")
    official = [other for other in columns if other.startswith(f"{benchmark} official")]
    if (metric.startswith("avg@") and not official) or column in official:
        return percent.get(benchmark)
    return None
