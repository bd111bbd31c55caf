"""What runs told step by step, as curves laid over each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dft_mm.report.plots import belongs_to, box_of, colour_of, dash_of, drawing, plain
from dft_mm.report.read import Run

_POINTS, _FEWEST, _IN_ALL = 400, 50, 2400
_MARGINS = (0.135, 0.16, 0.985, 0.97)


class Curve(NamedTuple):
    key: str
    """In metrics.jsonl."""
    title: str
    about: str
    smooth: bool = True
    """A running mean stands before the pale values themselves."""
    log_y: bool = False


CURVES = (
    Curve(
        "ce", "Cross-entropy",
        "Plain cross-entropy of the training batches, per supervised token: one measure for every loss.", log_y=True,
    ),
    Curve(
        "heldout_ce", "Held-out cross-entropy", "The same on rows that are not learned from.",
        smooth=False, log_y=True,
    ),
    Curve(
        "loss", "Objective",
        "What each run minimises, per supervised token. That of DFT is −Σ p log p, which rises while p < 1/e: read it "
        "within a run, not across losses.",
    ),
    Curve("p_mean", "Mean probability of the right token", "Over the supervised tokens of each batch."),
    Curve(
        "eos_p", "Probability of the end of the turn",
        "Where an answer ends. Low: the model does not know when to stop.",
    ),
    Curve("lr", "Learning rate", "Of each step.", smooth=False),
    Curve("grad_norm", "Gradient norm", "Before clipping.", log_y=True),
    Curve("tokens_per_s", "Throughput", "Tokens a second over all ranks, without padding."),
    Curve(
        "memory_gib", "Memory", "Greatest so far, in GiB, of the first rank: of its GPU, or of its process on a CPU.",
        smooth=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A run's curve in figures."""

    place: int
    """Of the run on the page."""
    name: str
    first: float
    last: float
    least: float
    greatest: float
    step: int
    """Of the last value."""


@dataclass(frozen=True)
class Plot:
    key: str
    title: str
    about: str
    svg: str
    lines: tuple[Line, ...] = ()
    read_off: dict[str, Any] | None = None
    """What reading values off the plot needs: `box` of the axes in the SVG's units, `x` limits, and per run its steps
    and values."""
    place: int | None = None
    """Of the run that all of it belongs to."""


def points(runs: int) -> int:
    """Most points of a curve, fewer where there are many; of what varies from step to step, the least and the greatest
    value of as many stretches."""
    return max(_FEWEST, min(_POINTS, _IN_ALL // max(1, runs)))


def curve_plots(runs: Sequence[Run]) -> list[Plot]:
    """One plot a curve with all runs that measured it; a run's place in `runs` decides its colour."""
    return [plot for curve in CURVES if (plot := _curve_plot(curve, runs))]


def _curve_plot(curve: Curve, runs: Sequence[Run]) -> Plot | None:
    measured = {place: run.series(curve.key) for place, run in enumerate(runs)}
    series = {place: found for place, found in measured.items() if found[0]}
    if not series:
        return None
    lines = tuple(_line(place, runs[place].name, *found) for place, found in series.items())
    told = "; ".join(f"{line.name} {line.first:.3g} to {line.last:.3g} at step {line.step:,}" for line in lines)
    values, most = {}, points(len(runs))
    with drawing(f"{curve.title} by step: {told}", margins=_MARGINS) as (axes, svg):
        for place, (steps, raw) in series.items():
            look = {"color": colour_of(place), "linestyle": dash_of(place)}
            shown, marked = raw, len(raw) == 1
            if curve.smooth:
                (pale,) = axes.plot(*extremes(steps, raw, most), color=colour_of(place), alpha=0.3, linewidth=0.8)
                belongs_to(pale, place)
                shown = running_mean(raw, max(1, len(raw) // 25))
            xs, ys = thinned(steps, shown, most)
            marked = marked or (not curve.smooth and len(xs) <= 30)
            (line,) = axes.plot(xs, ys, **look, linewidth=1.8, marker="o" if marked else None, markersize=4)
            belongs_to(line, place)
            values[place] = [list(xs), [float(f"{y:.4g}") if math.isfinite(y) else None for y in ys]]
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curve.log_y and any(value > 0 for _, raw in series.values() for value in raw):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_formatter(NullFormatter())
    read_off = {"box": [round(side, 1) for side in box_of(axes)], "x": list(axes.get_xlim()), "runs": values}
    scale = " Logarithmic." if axes.get_yscale() == "log" else ""
    return Plot(curve.key, curve.title, curve.about + scale, svg[0], lines, read_off)


def _line(place: int, name: str, steps: Sequence[int], values: Sequence[float]) -> Line:
    finite = [value for value in values if math.isfinite(value)] or [float("nan")]
    return Line(place, name, values[0], values[-1], min(finite), max(finite), steps[-1])


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width` - 1 before it, without those that are not finite."""
    known = np.isfinite(np.asarray(values, dtype=float))
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    with np.errstate(invalid="ignore"):
        return ((sums[ends] - sums[starts]) / (counts[ends] - counts[starts])).tolist()


def thinned(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """At most so many points, evenly spread, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    return [steps[place] for place in kept], [values[place] for place in kept]


def extremes(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """The least and the greatest value of each of so many stretches, so that no spike is lost; all, where they are
    fewer."""
    if len(steps) <= 2 * most:
        return list(steps), list(values)
    array = np.asarray(values, dtype=float)
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(steps)), most):
        finite = stretch[np.isfinite(array[stretch])]
        if len(finite):
            kept |= {int(finite[array[finite].argmin()]), int(finite[array[finite].argmax()])}
    return [steps[place] for place in sorted(kept)], [values[place] for place in sorted(kept)]
