"""Published rows beside ours."""

import pytest

from dft_mm.errors import InputError
from dft_mm.report.published import beside, published
from dft_mm.report.tables import Cell, Table


def row(models, method, table):
    (found,) = [each for each in published(models) if f" {method} (" in each.label and f"Table {table}" in each.label]
    return found


def test_the_papers_numbers_are_there():
    assert row(["Qwen2.5-VL-3B"], "DFT", 4).percent["mathverse Overall"] == 37.54
    assert row(["Qwen2.5-Math-1.5B"], "GRPO", 2).percent["average"] == 32.0
    assert row(["Qwen2.5-Coder-7B"], "SFT", 3).percent["multipl_e"] == 57.62
    with pytest.raises(InputError, match=r"no published row.*Qwen2\.5-VL-3B"):
        published(["Qwen2.5-VL-7B"])


@pytest.mark.parametrize("model", ["Qwen2.5-Math-7B", "LLaMA-3.2-3B", "DeepSeekMath-7B"])
def test_averages_are_those_of_their_rows(model):
    for each in published([model]):
        if each.percent["average"] == 2.56:  # of LLaMA-3.2-3B SFT in Table 8, whose values make 2.16: so it is printed
            continue
        values = [each.percent[name] for name in ("math500", "minerva", "olympiadbench", "aime24", "amc23")]
        assert sum(values) / 5 == pytest.approx(each.percent["average"], abs=0.012), each.label


def test_a_number_stands_under_the_metric_that_grades_as_the_paper_did():
    columns = ("model", "math500 avg@16", "math500 official avg@16", "minerva avg@16", "mathverse Overall", "gsm8k")
    table = Table(columns, (("ours", (Cell(1.0),) * 5),), ())
    (ours, *rest) = beside(table, published(["Qwen2.5-Math-1.5B"])).rows
    assert ours[0] == "ours"
    label, cells = rest[2]
    assert label == "Qwen2.5-Math-1.5B DFT (arXiv 2508.05629, Table 1)"
    assert [cell.value for cell in cells] == [None, 64.89, 20.94, None, None]
    (_, *rest) = beside(table, published(["Qwen2.5-VL-3B"])).rows
    assert [cell.value for cell in rest[-1][1]] == [None, None, None, 37.54, None]


def test_published_rows_without_a_number_for_any_column_are_left_out():
    table = Table(("model", "gsm8k"), (("ours", (Cell(1.0),)),), ())
    assert beside(table, published(["Qwen2.5-Math-1.5B"])) == table


def test_a_published_average_stands_under_the_official_one():
    table = Table(("model", "average", "average official"), (("ours", (Cell(1.0), Cell(2.0))),), ())
    (_, theirs, *_) = beside(table, published(["Qwen2.5-Math-1.5B"])).rows
    assert [cell.value for cell in theirs[1]] == [None, 15.92]
