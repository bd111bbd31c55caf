"""What runs gave to the right tokens: over time, and before and after."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from dft_mm.report.curves import Plot
from dft_mm.report.plots import drawing, histogram_plot, plain
from dft_mm.report.read import Run, locate

_COLUMNS = 160
_MARGINS = (0.11, 0.16, 0.88, 0.97)
_RAREST = 1e-4  # share of tokens where the colours begin


def heat_maps(runs: Sequence[Run]) -> list[Plot]:
    """One a run: the share of its training tokens in each bin of probability, by step."""
    return [plot for place, run in enumerate(runs) if (plot := _heat_map(place, run))]


def _heat_map(place: int, run: Run) -> Plot | None:
    steps, counts = run.series("p_hist")
    if not steps:
        return None
    stretches = np.array_split(np.asarray(counts, dtype=float), min(_COLUMNS, len(counts)))
    columns = np.array([stretch.sum(axis=0) for stretch in stretches])  # (T, P)
    shares = columns / np.maximum(columns.sum(axis=1, keepdims=True), 1)
    first, last = (100 * share for share in shares[[0, -1], -1])
    told = f"{first:.0f} % of the tokens above 0.9 at first, {last:.0f} % at last"
    title = f"Token probabilities of {run.name} by step: {told}"
    with drawing(title, margins=_MARGINS) as (axes, svg):
        axes.grid(visible=False)
        picture = axes.imshow(
            np.ma.masked_less_equal(shares.T, 0), origin="lower", aspect="auto", interpolation="none",
            extent=(steps[0] - 0.5, steps[-1] + 0.5, 0, 1), norm=LogNorm(_RAREST, 1, clip=True), cmap="viridis",
        )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("probability of the right token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.figure.colorbar(picture, label="share of tokens", pad=0.02, format=plain)
    about = f"Training tokens of {run.name} by the probability given to the right one. Blank: none."
    return Plot(f"p_hist-{place}", run.name, about, svg[0], place=place)


def histograms(runs: Sequence[Run]) -> list[Plot]:
    """Held-out tokens by probability, before and after, as in the paper's Figure 2. Runs that began with the same share
    one."""
    groups: dict[str, tuple[list[int] | None, list[int]]] = {}
    for place, run in enumerate(runs):
        if run.series("heldout_p_hist")[1]:
            label, counts = _before(run, runs) or ("", None)
            groups.setdefault(label, (counts, []))[1].append(place)
    plots = []
    for label, (before, places) in groups.items():
        after = {runs[place].name: runs[place].series("heldout_p_hist")[1][-1] for place in places}
        names = ", ".join(after)
        reference = f"before: {label}" if before else None
        shown = ({reference: before} if reference and before else {}) | after
        own = {runs[place].name: place for place in places}
        svg = histogram_plot(shown, f"Held-out token probabilities of {names}", reference, own)
        when = "before and after" if before else "at the end"
        about = f"Held-out tokens by the probability given to the right one, {when}. Logarithmic."
        alone = places[0] if len(places) == 1 else None
        plots.append(Plot(f"before-{places[0]}", names, about, svg, place=alone))
    return plots


def _before(run: Run, runs: Sequence[Run]) -> tuple[str, list[int]] | None:
    """What a run began with: the last held-out histogram of the run that it started from, else its own first one."""
    start = locate(run.recipe["model"]["path"], run.folder)
    for other in runs:
        lines = other.series("heldout_p_hist")[1]
        if start and lines and (other.folder / "export").resolve() == start:
            return other.name, lines[-1]
    steps, lines = run.series("heldout_p_hist")
    return (f"{run.name}, step {steps[0]}", lines[0]) if len(lines) > 1 else None
