"""Whole runs of losses that compare with a reference model or set in over steps: what is logged, resumed, exported."""

import json
import os
import subprocess
import sys

import pytest
from rows import write_wethink
from safetensors import safe_open

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from dft_mm.model.folder import resolve
from dft_mm.train.build import build_module

pytestmark = pytest.mark.long

RUN = """
import sys
from dft_mm.config import load_recipe
from dft_mm.errors import Stopped
from dft_mm.train.run import train

RUNS = {
    "dft": ["loss.name=dft"],
    "asft": ["loss={name: asft, kl: 5.0}"],
    "iw_sft": ["loss={name: iw_sft, clip: [0, 100]}"],
    "asft_lora": ["loss={name: asft, kl: 5.0}", "model.lora={rank: 4}"],
    "ramp": ["loss={name: dft, warmup_steps: 1, ramp_steps: 2}", "train.log_entropy=true"],
}
for name, settings in RUNS.items():
    for stop_after in ((1, None) if name == "asft" else (None,)):
        try:
            train(load_recipe(sys.argv[1], [f"name={name}", *settings]), stop_after)
        except Stopped:
            pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, repo):
    folder = tmp_path_factory.mktemp("reference")
    rows = write_wethink(folder / "data", count=12)
    (folder / "recipe.yaml").write_text(
        f"""
name: unset
output: {folder}/{{name}}
deepspeed: {repo}/ds_configs/zero3.json
model: {{path: builtin:tiny-vl, dtype: float32}}
data: {{train: [{{path: {rows}, images: {folder}/data/images}}], max_length: 128, workers: 0}}
optim: {{lr: 3e-2, batch_size: 4, schedule: constant, warmup_ratio: 0}}
train: {{max_steps: 3, micro_tokens: 256}}
"""
    )
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "recipe.yaml")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss head: tiles on cpu, float32" in done.stderr
    assert "asft agrees with its formula to" in done.stderr
    return folder


def metrics(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_a_model_starts_at_its_reference_and_is_held_near_it(folder):
    dft, asft = metrics(folder, "dft"), metrics(folder, "asft")
    assert [line["step"] for line in asft] == [1, 2, 3]  # stopped after the first, and gone on from there
    assert asft[0]["loss"] == pytest.approx(dft[0]["loss"], rel=1e-5)  # no divergence yet
    assert asft[2]["loss"] > asft[2]["ce"] * 0.01
    start = dft[0]["ce"]
    assert abs(asft[2]["ce"] - start) < 0.5 * abs(dft[2]["ce"] - start)


def test_the_ratio_to_the_reference_starts_at_one(folder):
    line = metrics(folder, "iw_sft")[0]
    assert line["weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert line["loss"] == pytest.approx(line["ce"], rel=1e-5)
    assert abs(metrics(folder, "iw_sft")[2]["weight_mean"] - 1) > 0.1


def test_adapters_are_compared_with_the_weights_without_them(folder):
    lines, dft = metrics(folder, "asft_lora"), metrics(folder, "dft")
    assert lines[0]["loss"] == pytest.approx(dft[0]["loss"], rel=1e-4)
    assert lines[2]["ce"] != lines[0]["ce"]


def test_warm_up_is_sft_and_the_ramp_leads_to_dft(folder):
    lines = metrics(folder, "ramp")
    assert [line["weight_mean"] for line in lines] == pytest.approx(
        [1.0, 0.5 + 0.5 * lines[1]["p_mean"], lines[2]["p_mean"]], rel=1e-5
    )
    assert lines[0]["loss"] == pytest.approx(lines[0]["ce"])
    assert all(0 < line["entropy"] < 12 for line in lines)  # ln of the vocabulary
    assert all("entropy" not in line for line in metrics(folder, "dft"))


def test_the_reference_is_not_exported(folder):
    (source,) = resolve("builtin:tiny-vl").glob("*.safetensors")
    (made,) = (folder / "asft/export").glob("*.safetensors")
    with safe_open(source, "pt") as theirs, safe_open(made, "pt") as ours:
        assert set(ours.keys()) == set(theirs.keys())


def test_two_references_in_a_run_are_refused(folder):
    source = f"{{path: x, loss: {{name: asft, reference: {folder}}}}}"
    recipe = load_recipe(folder / "recipe.yaml", ["loss.name=iw_sft", f"data.train=[{source}]"])
    with pytest.raises(InputError, match=rf"share one reference; these have {folder}, builtin:tiny-vl"):
        build_module(recipe, None, {})
