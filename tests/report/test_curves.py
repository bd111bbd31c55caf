import dataclasses
import math

import pytest

from dft_mm.report.curves import curve_plots, extremes, points, running_mean, thinned
from dft_mm.report.read import read_run


def only(run, key):
    """A run that measured nothing else."""
    return dataclasses.replace(run, metrics=[{"step": line["step"], key: line[key]} for line in run.metrics])


def test_running_mean_uses_what_was_before():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_running_mean_leaves_out_what_is_not_finite():
    found = running_mean([1.0, math.inf, 3.0, math.nan], 2)
    assert found == [1.0, 1.0, 3.0, 3.0]


def test_thinned_curves_keep_their_ends():
    steps, values = thinned(range(1, 10_001), range(10_000), 50)
    assert (steps[0], steps[-1], len(steps)) == (1, 10_000, 50)
    assert values == [step - 1 for step in steps]
    assert thinned([1, 2], [5.0, 6.0], 50) == ([1, 2], [5.0, 6.0])


def test_many_runs_have_fewer_points_each():
    assert [points(runs) for runs in (0, 1, 6, 24, 1000)] == [400, 400, 400, 100, 50]


def test_no_spike_is_lost():
    values = [1.0] * 10_000
    values[7777], values[123], values[5] = 9.0, -3.0, math.nan
    steps, kept = extremes(range(10_000), values, 100)
    assert len(kept) <= 200
    assert (kept[steps.index(7777)], kept[steps.index(123)]) == (9.0, -3.0)


def test_values_can_be_read_off_where_they_are_drawn(make_run):
    run = read_run(make_run("a", steps=40))
    (plot,) = curve_plots([only(run, "lr")])
    left, top, width, height = plot.read_off["box"]
    assert 0 < left < left + width < 72 * 4.6
    assert 0 < top < top + height < 72 * 2.8
    low, high = plot.read_off["x"]
    assert low < 1 < 40 < high
    assert plot.read_off["runs"][0] == [list(range(1, 41)), [1e-5] * 40]
    assert (plot.lines[0].first, plot.lines[0].last, plot.lines[0].step) == (1e-5, 1e-5, 40)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_values_that_no_logarithm_has_do_not_stop_the_page(make_run, value):
    run = only(read_run(make_run("a", steps=3)), "grad_norm")
    run.metrics[1]["grad_norm"] = value
    assert [plot.key for plot in curve_plots([run])] == ["grad_norm"]
    for line in run.metrics:
        line["grad_norm"] = value
    assert [plot.key for plot in curve_plots([run])] == ["grad_norm"]
