"""Runs and results → one self-contained HTML page that opens offline, on a laptop or a phone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from dft_mm import __version__
from dft_mm.report.plots import histogram_plot, line_plot
from dft_mm.report.read import Results, Run, locate, read_paths
from dft_mm.report.samples import sample_sets
from dft_mm.report.tables import Table, score_table

_SAMPLES = 8


@dataclass(frozen=True)
class Plot:
    svg: str
    caption: str


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their loss, so that their curves may be laid over each other."""

    title: str
    plots: tuple[Plot, ...]


def write_report(
    paths: Sequence[Path],
    out: Path,
    title: str = "Training and scores",
    intro: Sequence[str] = (),
    findings: Sequence[str] = (),
    add: Callable[[Table], Table] = lambda table: table,
) -> None:
    """Write the page of run folders and result folders.

    `intro` are paragraphs before everything, `findings` a list below the scores; `add` puts rows into the table of
    scores. Raises InputError for a path that is
    neither a run nor results, or is damaged.
    """
    runs, results = read_paths(paths)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dft_mm.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.jinja").render(
        title=title,
        intro=intro,
        findings=findings,
        runs=[_about_run(run) for run in runs],
        table=add(score_table(results)) if results else None,
        full_table=score_table(results, every_metric=True),
        groups=[_plots(group, runs) for group in _groups(runs)],
        sample_sets=sample_sets(results, _SAMPLES),
        results=[_about_results(result) for result in results],
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _about_run(run: Run) -> dict[str, Any]:
    recipe, environment = run.recipe, run.environment
    last = run.metrics[-1] if run.metrics else {}
    return {
        "name": run.name,
        "loss": recipe["loss"]["name"],
        "model": recipe["model"]["path"],
        "data": ", ".join(source["path"] for source in recipe["data"]["train"]),
        "state": run.status.get("state", "unknown"),
        "reason": run.status.get("reason", ""),
        "step": run.status.get("step", last.get("step")),
        "batch_size": recipe["optim"]["batch_size"],
        "lr": recipe["optim"]["lr"],
        "seed": recipe["seed"],
        "minutes": sum(line.get("time_s", 0) for line in run.metrics) / 60 if run.metrics else None,
        "ce": last.get("ce"),
        "p_mean": last.get("p_mean"),
        "heldout_ce": next((line["heldout_ce"] for line in reversed(run.metrics) if "heldout_ce" in line), None),
        "command": " ".join(environment.get("command", [])),
        "commit": environment.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    }


def _about_results(result: Results) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "label": result.label,
        "suite": result.suite,
        "model": result.model,
        "status": [
            (name, ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in entry["status"].items()))
            for name, entry in result.benchmarks.items()
        ],
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
    }


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.recipe.items() if key not in ("name", "output", "loss")}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return list(groups.values())


def _plots(group: Sequence[Run], runs: Sequence[Run]) -> Group:
    title = " and ".join(f"{run.name} (loss {run.recipe['loss']['name']})" for run in group)
    plots = []
    for key, smooth, caption in (
        (
            "ce",
            True,
            "Cross-entropy of the training batches, per supervised token: one measure for every loss",
        ),
        ("heldout_ce", False, "Cross-entropy on held-out rows, per supervised token"),
        ("p_mean", True, "Mean probability of the right token in the training batches"),
        ("grad_norm", True, "Norm of the gradient before clipping"),
    ):
        series = {run.name: run.series(key) for run in group if run.series(key)[0]}
        if series:
            log_y = key in ("ce", "heldout_ce", "grad_norm")
            svg = line_plot(series, f"{key} of {title}", smooth, log_y)
            plots.append(Plot(svg, caption + (" (logarithmic)." if log_y else ".")))
    before = _before(group[0], runs)
    histograms = {run.name: lines[-1] for run in group if (lines := run.series("heldout_p_hist")[1])}
    reference = None
    if histograms and before:
        reference = f"before ({before[0]})"
        histograms = {reference: before[1]} | histograms
    if histograms:
        svg = histogram_plot(histograms, f"token probabilities of {title}", reference)
        when = "before and after" if reference else "at the end"
        plots.append(Plot(svg, f"Held-out tokens by the probability given to the right one, {when} (logarithmic)."))
    return Group(title, tuple(plots))


def _before(run: Run, runs: Sequence[Run]) -> tuple[str, list[int]] | None:
    """What a run began with: the last held-out histogram of the run that it started from, else its own first one."""
    start = locate(run.recipe["model"]["path"], run.folder)
    for other in runs:
        lines = other.series("heldout_p_hist")[1]
        if start and lines and (other.folder / "export").resolve() == start:
            return other.name, lines[-1]
    steps, lines = run.series("heldout_p_hist")
    return (f"{run.name}, step {steps[0]}", lines[0]) if len(lines) > 1 else None
