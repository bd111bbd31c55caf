from pathlib import Path

from dft_mm.report.read import Results
from dft_mm.report.tables import score_table, to_markdown


def _results(label, **benchmarks):
    return Results(label, Path("unused"), "suite", "model", benchmarks)


def _entry(value, status=None, **more):
    metric = {"value": value, "se": 0.01, "ci95": [value - 0.05, value + 0.05], "n": 300}
    return {"metrics": {"avg@1": metric, "pass@1": metric} | more, "status": status or {"correct": 1}, "samples": 1}


def test_values_are_percent_with_their_interval():
    table = score_table([_results("dft", digits=_entry(0.7125))])
    assert table.columns == ("model", "digits")
    assert table.rows[0][1][0].text == "71.2 (66.2 to 76.2)"


def test_a_missing_score_is_a_blank_with_a_footnote_and_never_a_zero():
    ungradable = {"metrics": {}, "status": {"ungradable": 12}, "samples": 1}
    table = score_table([_results("a", one=_entry(0.5), two=_entry(0.25)), _results("b", two=ungradable)])
    missing, failed = table.rows[1][1]
    assert (missing.value, missing.text) == (None, "[1]")
    assert (failed.value, failed.text) == (None, "[2]")
    assert table.notes == ("not measured", "12 answers could not be graded")
    assert "| b | [1] | [2] |" in to_markdown(table)


def test_a_true_zero_is_shown_as_zero():
    assert score_table([_results("a", one=_entry(0.0))]).rows[0][1][0].text.startswith("0.0 (")


def test_answers_that_were_left_out_are_told():
    table = score_table([_results("a", one=_entry(0.5, {"correct": 5, "wrong": 5, "ungradable": 2}))])
    assert table.rows[0][1][0].text == "50.0 (45.0 to 55.0) [1]"
    assert table.notes == ("2 ungradable answers left out",)


def test_what_a_number_stands_on_is_told_beneath_it():
    entry = _entry(0.5, {"correct": 5, "truncated": 3, "sandbox_error": 1})
    entry |= {"judge": "endpoint", "notes": ["24 of 1,740 rows."], "headline": ["avg@1", "loose"]}
    entry["metrics"]["loose"] = {"value": 0.75, "se": None, "ci95": None, "n": 9}
    table = score_table([_results("a", wemath=entry)])
    assert table.columns == ("model", "wemath", "wemath loose")
    assert table.notes[0].split("; ") == [
        "1 ungradable answers left out", "3 answers were cut before they came to an end, and count as not right",
        "judged by endpoint", "24 of 1,740 rows.",
    ]  # fmt: skip


def test_the_official_column_and_the_averages_are_shown():
    entry = _entry(0.5)
    entry["metrics"]["official avg@1"] = {"value": 0.25, "se": 0.1, "ci95": [0.1, 0.4], "n": 300}
    mean = {"value": 0.375, "se": 0.01, "ci95": [0.35, 0.4], "of": ["one", "two"]}
    nothing = {"value": None, "se": None, "ci95": None, "of": ["one", "two"], "missing": ["two"]}
    results = [
        Results("a", Path("unused"), "s", "m", {"one": entry}, averages={"average": mean}),
        Results("b", Path("unused"), "s", "m", {"one": entry}, averages={"average": nothing}),
    ]
    table = score_table(results)
    assert table.columns == ("model", "one", "one official avg@1", "average")
    assert table.rows[0][1][2].text == "37.5 (35.0 to 40.0)"
    assert table.rows[0][1][2].n is None
    assert (table.rows[1][1][2].text, table.notes) == ("[1]", ("two have no value",))


def test_every_metric_has_a_column_when_asked_for():
    more = {"Geometry": {"value": 0.3, "se": None, "ci95": None, "n": 9}}
    results = [_results("a", mathvision=_entry(0.5, **more))]
    assert score_table(results).columns == ("model", "mathvision")
    full = score_table(results, every_metric=True)
    assert full.columns == ("model", "mathvision", "mathvision Geometry")
    assert full.rows[0][1][1].text == "30.0"


def test_two_suites_of_one_model_share_a_row():
    table = score_table([_results("a", one=_entry(0.5)), _results("a", two=_entry(0.25))])
    assert [(name, [cell.value for cell in cells]) for name, cells in table.rows] == [("a", [50.0, 25.0])]


def test_markdown_survives_names_with_bars():
    assert r"| a\|b |" in to_markdown(score_table([_results("a|b", one=_entry(0.5))]))
