"""Small run and result folders as training and evaluation leave them."""

import json
import math

import pytest
import yaml
from PIL import Image

from dft_mm.config import Recipe
from dft_mm.evaluate.answering import fingerprint
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.tasks.registry import TASKS


def _write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path):
    return _runs_in(tmp_path)


def _runs_in(root):
    def make(name, loss="sft", model="model", steps=40, file="train.jsonl", state="finished", reason=""):
        folder = root / "runs" / name
        folder.mkdir(parents=True)
        recipe = Recipe.model_validate(
            {
                "name": name,
                "output": f"runs/{name}",
                "model": {"path": model},
                "data": {"train": [{"path": file, "format": "wethink"}]},
                "loss": {"name": loss},
            }
        )
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        status = {"state": state, "step": steps, "reason": reason, "time": "2026-01-01T00:00:00+00:00"}
        (folder / "STATUS.json").write_text(json.dumps(status), encoding="utf-8")
        environment = {
            "dft_mm": "0.1.0", "commit": "a" * 40, "packages": {"torch": "2.0"}, "command": ["dft-mm", "train", name],
        }  # fmt: skip
        (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        lines = []
        for step in range(1, steps + 1):
            ce = 2 * math.exp(-step / 15) + (0.1 if loss == "sft" else 0.2) + 0.05 * math.sin(7 * step)
            line = {"step": step, "epoch": step / steps, "loss": ce, "ce": ce, "p_mean": math.exp(-ce)}
            line |= {"lr": 1e-5, "grad_norm": 1.0, "time_s": 0.3, "tokens_per_s": 900.0, "memory_gib": 1.5}
            line["p_hist"] = [60 - step, 9, 7, 0, 5, 6, 8, 12, 40, 10 * step]
            if step % 20 == 0:
                line |= {"heldout_ce": ce + 0.1, "heldout_p_hist": [50, 9, 7, 0, 5, 6, 8, 12, 40, 100 * step]}
            lines.append(line)
        _write_lines(folder / "metrics.jsonl", lines)
        (folder / "export").mkdir()
        return folder

    return make


@pytest.fixture(scope="session")
def prepare():
    """The data folder of a run, as `prepare` leaves it, with as many refused rows as asked for."""

    def prepare(run, refused=2, fingerprint="f"):
        source = {
            "path": "train.jsonl", "split": "train", "files": 1, "layouts": ["wethink, by its columns"], "rows": 1000,
            "kept": 1000 - refused, "truncated": 0, "too_long": 3, "not_chosen": 0, "tokens": 123456,
            "quarantined": {"image_missing": refused} if refused else {},
        }  # fmt: skip
        manifest = {
            "fingerprint": fingerprint, "sources": [source], "examples": {"train": 990, "heldout": 7},
            "tokens": 123456, "supervised_tokens": 4567, "images": 997, "distinct_images": 900, "duplicates": 4,
            "length_percentiles": {"p50": 61.0}, "settings": "s",
        }  # fmt: skip
        (run / "data").mkdir()
        (run / "data" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        row = {"file": "train.jsonl", "row": 1, "reason": "image_missing", "detail": "<img> no such file"}
        _write_lines(run / "data" / "quarantine.jsonl", [row | {"line": n} for n in range(1, refused + 1)])

    return prepare


@pytest.fixture(scope="session")
def compare():
    """A folder with the compare.json of two result folders, A better on the first benchmark."""

    def compare(out, a, b, benchmarks=("writers", "pairs"), **more):
        rows = [
            {
                "benchmark": name, "metric": "avg@1", "difference": difference,
                "ci95": [difference - 0.1, difference + 0.1], "p": 0.001, "p_adjusted": 0.002, "n": 40, "a_only": 12,
                "b_only": 4, "left_out": 0, "questions_needed": 300,
                "verdict": "a_better" if difference > 0.1 else "no_difference",
            }
            for name, difference in zip(benchmarks, (0.2, -0.05))
        ]  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        told = {"a": str(a), "b": str(b), "comparisons": rows, "not_compared": []} | more
        (out / "compare.json").write_text(json.dumps(told), encoding="utf-8")
        return out

    return compare


@pytest.fixture
def questions(tmp_path):
    """Forty questions of task digits with their pictures."""
    return _questions_in(tmp_path)


def _questions_in(root):
    folder = root / "data"
    folder.mkdir()
    rows = []
    for number in range(40):
        Image.linear_gradient("L").resize((112, 28)).rotate(9 * number).save(folder / f"{number}.png")
        rows.append({"id": f"q{number}", "problem": "What is it?", "answer": "55", "image_path": f"{number}.png"})
    _write_lines(folder / "writers.jsonl", rows)
    return folder / "writers.jsonl"


@pytest.fixture
def make_results(questions):
    return _results_of(questions)


def _results_of(questions):
    def make(folder, right, text="<think>\n47+8\n</think>\n<answer>\n{}\n</answer>", benchmark="writers"):
        """Results of a model that answers the first `right` questions rightly."""
        folder.mkdir(parents=True)
        generations, scores = [], []
        for number in range(40):
            about = {"benchmark": benchmark, "id": f"q{number}", "sample": 0}
            correct = number < right
            answer = "55" if correct else "12"
            generations.append(
                about | {"prompt": "", "text": text.format(answer), "finish_reason": "stop", "tokens": 9, "seed": 1}
            )
            status = "correct" if correct else "wrong"
            scores.append(about | {"status": status, "extracted": answer, "gold": "55", "detail": ""})
        _write_lines(folder / "generations.jsonl", generations)
        _write_lines(folder / "scores.jsonl", scores)
        value = {"value": right / 40, "se": 0.05, "ci95": [right / 40 - 0.1, right / 40 + 0.1], "n": 40}
        entry = {"metrics": {"avg@1": value, "pass@1": value}, "samples": 1}
        entry["status"] = {"correct": right, "wrong": 40 - right}
        results = {"suite": "digits", "model": "m", "benchmarks": {benchmark: entry}}
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        bench = {"task": "digits", "name": benchmark, "data": str(questions), "limit": None, "judge": "rule"}
        asked = TASKS["digits"].load(BenchmarkConfig.model_validate(bench), folder)
        manifest = {"suite": {"name": "digits", "benchmarks": [bench]}, "data_sha256": {benchmark: fingerprint(asked)}}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def arms(tmp_path_factory):
    """Three finished runs with their scores, to be read and not changed: warmup, and from there sft and dft, of which
    dft alone has questions 24 to 31 right."""
    root = tmp_path_factory.mktemp("arms")
    make_run, make_results = _runs_in(root), _results_of(_questions_in(root))
    runs = [
        make_run("warmup"),
        make_run("sft", model="runs/warmup/export", file="mixed.jsonl"),
        make_run("dft", "dft", model="runs/warmup/export", file="mixed.jsonl"),
    ]
    for folder, right in zip(runs, (31, 24, 32)):
        make_results(folder / "eval" / "digits", right)
    return runs
