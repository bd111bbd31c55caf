"""The bench of graders on real outputs: its figures for our grader hold, and every disagreement was decided."""

import importlib.util
import json

from dft_mm.evaluate.grade_math import Grader


def test_our_grader_on_real_outputs(repo, shared):
    spec = importlib.util.spec_from_file_location("graders", repo / "scripts/bench/graders.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = list(bench.outputs(shared / "data/graded_outputs"))
    with Grader() as grader:
        verdicts = bench.ours(grader, rows)
    decided = {(row["source"], row["id"]): row for row in json.loads(bench.DECISIONS.read_text(encoding="utf-8"))}
    open_ones = [
        (row.source, row.id)
        for row, verdict in zip(rows, verdicts)
        if verdict != row.upstream and (row.source, row.id) not in decided
    ]
    truth = [decided.get((row.source, row.id), {"right": row.upstream})["right"] for row in rows]
    found = bench.figures(verdicts, rows, truth)
    assert len(rows) == 1477
    assert open_ones == []
    assert found["right_rejected"] <= 0.01
    assert found["wrong_accepted"] <= 0.01
