"""What stands in examples/ runs, and learns by the loss that it names."""

import importlib
import json
import sys

import pytest

from scripts.paper.experiment import REPO

EXAMPLES = REPO / "examples"
pytestmark = pytest.mark.docs


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A module of examples/ by its name, as if started there."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module
    for name in ("plain_loop", "transformers_trainer", "trl_sft", "collator_alone"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["transformers_trainer", "trl_sft"])
def test_a_trainer_learns_by_the_loss_it_is_given(example, name):
    if name == "trl_sft":
        pytest.importorskip("trl")
    module = example(name)
    # Of random weights every p is about 1 / 152k: the objective of sft is about 12, that of dft next to nothing.
    assert module.main(["--steps", "1", "--loss", "sft"]) > 5
    assert module.main(["--steps", "1", "--loss", "dft"]) < 0.01


def test_a_plain_loop_learns(example):
    steps = example("plain_loop").main(["--steps", "3", "--loss", "sft", "--lr", "1e-3"])
    losses, ces = zip(*steps)
    assert losses == pytest.approx(ces)
    assert ces[-1] < ces[0] - 0.3


def test_the_collator_hands_out_packed_batches_whose_answers_alone_are_learned(example, tmp_path):
    words = [f"data.train=[{{path: {EXAMPLES}/sums.jsonl}}]", f"output={tmp_path}/run", "data.heldout_fraction=0"]
    first, second = example("collator_alone").main([str(REPO / "scripts/recipes/tiny_lm_cpu.yaml"), *words])
    for batch in (first, second):
        assert batch.input_ids.shape[0] == 1
        assert len(batch.example_ids) == 4
        assert batch.cu_seqlens.tolist()[-1] == batch.input_ids.shape[1]
        assert 0 < len(batch.targets) < batch.input_ids.shape[1] / 3
    assert not set(first.example_ids) & set(second.example_ids)


def test_the_cells_of_the_notebook_run_in_order(example, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((EXAMPLES / "what_dft_does.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(names["plt"].get_fignums()) == 2
    fallen = {loss: ce[0] - ce[-1] for loss, ce in names["curves"].items()}
    assert fallen["sft"] > 0.5
    assert fallen["dft"] < 0.8 * fallen["sft"]  # from random weights it lags
