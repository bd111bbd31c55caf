"""Plots of runs as inline SVG that follows the page's own text colour, light or dark."""

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK = "#010203"  # stands for the page's text colour, put in afterwards
_STYLE = {
    "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#888888", "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def line_plot(series: Series, title: str, smooth: bool, log_y: bool = False) -> str:
    """One line a label over steps. `smooth`: a running mean in front of the pale values themselves."""
    with _figure(title) as (axes, svg):
        for (label, (steps, values)), colour in zip(series.items(), itertools.cycle(COLOURS)):
            if smooth:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                values = running_mean(values, max(1, len(values) // 25))
            axes.plot(steps, values, color=colour, label=label, marker=None if smooth else "o", markersize=4)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        _legend(axes, len(series))
    return svg[0]


def score_plot(curves: Mapping[str, Mapping[str, Sequence[Any]]], title: str, axis: str, log_x: bool = False) -> str:
    """Percentages along an axis, each curve as rising `x`, `percent` and `ci95` (low and high), whose band is pale; a
    percentage or interval that is None leaves a gap.

    `log_x`: the axis is logarithmic and marked at the points.
    """
    with _figure(title) as (axes, svg):
        for (label, curve), colour in zip(curves.items(), itertools.cycle(COLOURS)):
            values = [float("nan") if value is None else value for value in curve["percent"]]
            low, high = zip(*(bounds or (float("nan"),) * 2 for bounds in curve["ci95"]))
            axes.fill_between(curve["x"], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve["x"], values, color=colour, label=label, marker="o", markersize=4)
        axes.set_xlabel(axis)
        axes.set_ylabel("percent")
        if log_x:
            places = sorted({x for curve in curves.values() for x in curve["x"]})
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, len(curves))
    return svg[0]


def histogram_plot(histograms: Mapping[str, Sequence[int]], title: str, reference: str | None = None) -> str:
    """Share of tokens by their probability, on a logarithmic axis as in the paper's Figure 2; an empty bin has no bar.

    `reference`: a label that is grey, so that the others keep the colours of their lines.
    """
    with _figure(title) as (axes, svg):
        width = 0.8 / len(histograms)
        colours = itertools.cycle(COLOURS)
        for place, (label, counts) in enumerate(histograms.items()):
            colour = "#888888" if label == reference else next(colours)
            bins, total = len(counts), sum(counts)
            left = [(bin_ + 0.1 + width * place) / bins for bin_ in range(bins)]
            shares = [number / total if number else float("nan") for number in counts]
            axes.bar(left, shares, width=width / bins, align="edge", color=colour, label=label)
        axes.set_yscale("log")
        axes.set_ylim(top=1)
        axes.set_xlim(0, 1)
        axes.set_xlabel("probability of the right token")
        axes.set_ylabel("share of tokens")
        _legend(axes, len(histograms))
    return svg[0]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width` - 1 before it."""
    return [
        sum(values[max(0, end - width) : end]) / len(values[max(0, end - width) : end])
        for end in range(1, len(values) + 1)
    ]


def _legend(axes: Axes, entries: int) -> None:
    # Above the plot, so that it never lies on the data.
    if entries:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(entries, 3), borderaxespad=0.2, fontsize=9)


@contextmanager
def _figure(title: str) -> Iterator[tuple[Axes, list[str]]]:
    """Yields axes and a list that holds the SVG afterwards."""
    # Ids inside an SVG are page-wide once it is inline, so each plot needs its own: titles differ.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        axes = figure.add_subplot()
        svg: list[str] = []
        yield axes, svg
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg.append(_inline(buffer.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """The element alone, without what only a file needs, sized by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).replace(_INK, "currentColor")
