"""All of it: real rows with their pictures, a small Qwen2.5-VL, and a process that is killed again and again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vlmevalkit_tables import SAMPLES

FILES = ("generations.jsonl", "scores.jsonl", "results.json", "results.md")


@pytest.mark.long
def test_an_evaluation_that_is_killed_gives_the_same_files(shared, picture_model, tmp_path):
    model = shutil.copytree(picture_model, tmp_path / "model")
    (model / "dft_mm.json").write_text('{"min_pixels": 3136, "max_pixels": 6272}')
    suite = tmp_path / "suite.yaml"
    tables = {kind: shared / "data/vlmevalkit_tsv" / f"{name}.tsv" for kind, name in SAMPLES.items()}
    benchmarks = [{"task": kind, "data": str(tsv), "limit": 4} for kind, tsv in tables.items()]
    suite.write_text(json.dumps({"name": "s", "sampling": {"max_tokens": 6}, "benchmarks": benchmarks}))

    def run(name, kill_at):
        out = tmp_path / name
        command = ["eval", str(suite), "--model", str(model), "--out", str(out), "--batch-size", "2"]
        return {"command": command, "file": str(out / "generations.jsonl"), "kill_at": kill_at}

    runs = [run("whole", None), *(run("killed", lines) for lines in (2, 5, 8)), run("killed", None)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py"))],
        input=json.dumps({"runs": runs}).encode(), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    for file in FILES:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    results = json.loads((tmp_path / "whole/results.json").read_text())["benchmarks"]
    assert {kind: sum(entry["status"].values()) for kind, entry in results.items()} == dict.fromkeys(SAMPLES, 4)
    assert results["mathvision"]["metrics"]["Overall"]["n"] == 4
    generated = [json.loads(line) for line in (tmp_path / "whole/generations.jsonl").read_text().splitlines()]
    assert len({line["text"] for line in generated}) > 6  # the model looks at what it is asked
    assert all("<|image_pad|>" in line["prompt"] for line in generated)
