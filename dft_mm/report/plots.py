"""Plots as inline SVG that follows the page's own colours, light or dark."""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

# Okabe and Ito's palette: told apart by colour-blind readers. A page may set other shades as `--run-0`, `--run-1`, ….
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
_INK = "#010203"  # stands for the page's text colour, put in afterwards
_STYLE = {
    "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#888888", "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip


def colour_of(place: int) -> str:
    """The colour of a run, by its place on the page."""
    return COLOURS[place % len(COLOURS)]


def dash_of(place: int) -> str:
    """The dashes of a run's lines: more runs than colours differ in these."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def score_plot(curves: Mapping[str, Mapping[str, Sequence[Any]]], title: str, axis: str, log_x: bool = False) -> str:
    """Percentages along an axis, each curve as rising `x`, `percent` and `ci95` (low and high), whose band is pale; a
    percentage or interval that is None leaves a gap.

    `log_x`: the axis is logarithmic and marked at the points.
    """
    with drawing(title) as (axes, svg):
        for place, (label, curve) in enumerate(curves.items()):
            values = [float("nan") if value is None else value for value in curve["percent"]]
            low, high = zip(*(bounds or (float("nan"),) * 2 for bounds in curve["ci95"]))
            axes.fill_between(curve["x"], low, high, color=colour_of(place), alpha=0.15, linewidth=0)
            axes.plot(curve["x"], values, color=colour_of(place), label=label, marker="o", markersize=4)
        axes.set_xlabel(axis)
        axes.set_ylabel("percent")
        if log_x:
            places = sorted({x for curve in curves.values() for x in curve["x"]})
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, len(curves))
    return svg[0]


def histogram_plot(
    histograms: Mapping[str, Sequence[int]],
    title: str,
    reference: str | None = None,
    places: Mapping[str, int] | None = None,
) -> str:
    """Share of tokens by their probability, on a logarithmic axis as in the paper's Figure 2; an empty bin has no bar.

    Args:
        reference: a label that is grey, so that the others keep the colours of their lines.
        places: of runs on the page, which decide their colours; the page can then switch their bars.
    """
    others = [label for label in histograms if label != reference]
    places = places or {}
    with drawing(title) as (axes, svg):
        width = 0.8 / len(histograms)
        for number, (label, counts) in enumerate(histograms.items()):
            place = places.get(label, others.index(label) if label in others else 0)
            colour = "#888888" if label == reference else colour_of(place)
            bins, total = len(counts), sum(counts)
            left = [(bin_ + 0.1 + width * number) / bins for bin_ in range(bins)]
            shares = [number / total if number else float("nan") for number in counts]
            bars = axes.bar(left, shares, width=width / bins, align="edge", color=colour, label=label)
            if label in places:
                for bar in bars:
                    belongs_to(bar, place)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
        axes.set_ylim(top=1)
        axes.set_xlim(0, 1)
        axes.set_xlabel("probability of the right token")
        axes.set_ylabel("share of tokens")
        legend(axes, len(histograms))
    return svg[0]


def interval_plot(rows: Sequence[tuple[str, float, float, float, bool]], title: str, axis: str) -> str:
    """One interval a row, around zero: label, low, value, high, and whether it is marked as found."""
    with drawing(title, height=0.9 + 0.34 * len(rows)) as (axes, svg):
        axes.axvline(0, color=_INK, linewidth=1)
        for at, (_, low, value, high, found) in enumerate(rows):
            axes.plot([low, high], [at, at], color=COLOURS[0], linewidth=2.2, solid_capstyle="round")
            face = COLOURS[0] if found else "none"
            axes.plot([value], [at], "o", color=COLOURS[0], markerfacecolor=face, markersize=8, markeredgewidth=1.8)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis)
        reach = max([1.0, *(abs(bound) for row in rows for bound in row[1:4])]) * 1.08
        axes.set_xlim(-reach, reach)
    return svg[0]


def plain(value: float, _: int | None = None) -> str:
    """A tick's number as it is read: 0.001 rather than a power of ten, which takes long to set."""
    return f"{value:g}"


def legend(axes: Axes, entries: int) -> None:
    # Above the plot, so that it never lies on the data.
    if entries:
        longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
        columns = max(1, min(entries, 3, 60 // (longest + 8)))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, fontsize=9)


def belongs_to(artist: Artist, place: int) -> None:
    """Mark what is drawn as a run's, so that the page can switch it."""
    artist.set_gid(f"run:{place}")


@contextmanager
def drawing(
    title: str, height: float = 2.8, margins: tuple[float, float, float, float] | None = None
) -> Iterator[tuple[Axes, list[str]]]:
    """Yields axes and a list that holds the SVG afterwards.

    Args:
        height: in inches, of 4.6 across.
        margins: left, bottom, right and top of the axes, as shares; without them they are found out, which takes twice
            as long.
    """
    # Ids inside an SVG are page-wide once it is inline, so each plot needs its own: titles differ.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, height), layout=None if margins else "constrained")
        axes = figure.add_subplot()
        if margins:
            figure.subplots_adjust(*margins)
        svg: list[str] = []
        yield axes, svg
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        svg.append(_inline(buffer.getvalue(), title))


def box_of(axes: Axes) -> tuple[float, float, float, float]:
    """Left, top, width and height of the axes in the SVG's own units, once it is drawn."""
    width, height = (72 * side for side in axes.figure.get_size_inches())
    place = axes.get_position()
    return place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height


def _inline(svg: str, title: str) -> str:
    """The element alone, without what only a file needs, sized and coloured by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub(r' id="run:(\d+)"', r' data-run="\1"', svg)
    for place, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--run-{place}, {colour})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1).replace(_INK, "currentColor")
