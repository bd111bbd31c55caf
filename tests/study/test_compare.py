"""Comparisons of result folders: what is found, what is not claimed, what is refused."""

import json

import numpy as np
import pytest

from dft_mm.__main__ import main
from dft_mm.errors import InputError
from dft_mm.study.compare import compare_results


def _folder(path, statuses, benchmark="b", gold="1", judge="rule", official=None):
    """Results with one list of statuses a question."""
    path.mkdir(parents=True)
    lines = [
        {"benchmark": benchmark, "id": str(number), "sample": sample, "status": status, "gold": gold}
        | ({} if official is None else {"official": official(status)})
        for number, row in enumerate(statuses)
        for sample, status in enumerate(row)
    ]
    (path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"metrics": {}, "status": {}, "samples": len(statuses[0]), "judge": judge}
    (path / "results.json").write_text(json.dumps({"suite": "s", "model": "m", "benchmarks": {benchmark: entry}}))
    return path


def _drawn(generator, chances, samples=1):
    return [["correct" if generator.random() < p else "wrong" for _ in range(samples)] for p in chances]


def test_every_field_of_the_contract_is_written(tmp_path, capsys):
    a = _folder(tmp_path / "a", [["correct"]] * 30 + [["wrong"]] * 10)
    b = _folder(tmp_path / "b", [["correct"]] * 10 + [["wrong"]] * 30)
    out = tmp_path / "out"
    assert main(["compare", "--results", str(a), str(b), "--out", str(out)]) == 0
    (row,) = json.loads((out / "compare.json").read_text())["comparisons"]
    assert {
        "benchmark", "metric", "difference", "ci95", "p", "p_adjusted", "n", "verdict", "questions_needed",
    } <= row.keys()  # fmt: skip
    assert (row["benchmark"], row["metric"], row["n"], row["verdict"]) == ("b", "avg@1", 40, "a_better")
    assert row["difference"] == 0.5
    assert 0.3 < row["ci95"][0] < 0.5 < row["ci95"][1] < 0.7
    assert row["p"] < 0.001
    assert "A is better" in (out / "compare.md").read_text()
    assert "+50.0" in capsys.readouterr().out
    back = compare_results(b, a, tmp_path / "back")["comparisons"][0]
    assert (back["difference"], back["verdict"]) == (-0.5, "b_better")


def test_the_same_model_twice_is_rarely_called_a_difference(tmp_path):
    generator = np.random.default_rng(0)
    called = 0
    for number in range(60):
        chances = generator.random(200)
        a = _folder(tmp_path / f"a{number}", _drawn(generator, chances, 2))
        b = _folder(tmp_path / f"b{number}", _drawn(generator, chances, 2))
        called += compare_results(a, b, tmp_path / f"c{number}")["comparisons"][0]["verdict"] != "no_difference"
    assert called <= 7  # at 5 %, more comes with a chance of one in a hundred


def test_few_questions_are_no_evidence_and_it_is_said_how_many_would_be(tmp_path):
    a, b = _folder(tmp_path / "a", [["correct"]] * 3), _folder(tmp_path / "b", [["wrong"]] * 2 + [["correct"]])
    row = compare_results(a, b, tmp_path / "out")["comparisons"][0]
    assert row["verdict"] == "no_difference"
    assert row["p"] == 0.5  # two differences that could have had either sign
    assert 3 <= row["questions_needed"] <= 10
    assert "would need about" in (tmp_path / "out/compare.md").read_text()
    row = compare_results(a, a, tmp_path / "same")["comparisons"][0]
    assert (row["difference"], row["p"], row["questions_needed"]) == (0.0, 1.0, None)


def test_an_interval_without_zero_is_not_enough(tmp_path):
    # All three differ by one: a bootstrap shows no width, and yet signs fall so in one case of four.
    a, b = _folder(tmp_path / "a", [["correct"]] * 3), _folder(tmp_path / "b", [["wrong"]] * 3)
    row = compare_results(a, b, tmp_path / "out")["comparisons"][0]
    assert (row["ci95"], row["p"], row["verdict"]) == ([1.0, 1.0], 0.25, "no_difference")


def test_what_could_not_be_scored_in_one_folder_is_left_out_of_both(tmp_path):
    a = _folder(tmp_path / "a", [["correct"], ["ungradable"], ["correct"]])
    b = _folder(tmp_path / "b", [["correct"], ["correct"], ["sandbox_error"]])
    row = compare_results(a, b, tmp_path / "out")["comparisons"][0]
    assert (row["n"], row["left_out"], row["difference"]) == (1, 2, 0.0)


def test_the_official_verdicts_are_compared_too(tmp_path):
    a = _folder(tmp_path / "a", [["wrong"]] * 8, official=lambda status: True)
    b = _folder(tmp_path / "b", [["wrong"]] * 8, official=lambda status: False)
    rows = compare_results(a, b, tmp_path / "out")["comparisons"]
    assert [(row["metric"], row["difference"]) for row in rows] == [("avg@1", 0.0), ("official avg@1", 1.0)]
    assert rows[1]["p_adjusted"] == 2 * rows[1]["p"] == 4 / 2**8


@pytest.mark.parametrize(
    ("b", "words"),
    [
        ({"statuses": [["wrong"]] * 3}, "different questions.*such as '3'"),
        ({"statuses": [["wrong"]] * 4, "gold": "2"}, "another gold answer"),
        ({"statuses": [["wrong"]] * 4, "benchmark": "c"}, "no benchmark in common"),
        ({"statuses": [["wrong"]] * 4, "judge": "endpoint"}, "use one judge"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused(tmp_path, b, words):
    a = _folder(tmp_path / "a", [["wrong"]] * 4)
    with pytest.raises(InputError, match=words):
        compare_results(a, _folder(tmp_path / "b", **b), tmp_path / "out")
    assert main(["compare", "--results", str(a), str(tmp_path / "b"), "--out", str(tmp_path / "o")]) == 2
    assert main(["compare", "--results", str(a), str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
