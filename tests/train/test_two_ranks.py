"""One process without ZeRO, two ranks at stages 0, 2 and 3, and plain torch with full logits: the same parameters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mixed_batches import STEPS, mixed_model, plain_loss, steps

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


@pytest.fixture(scope="module")
def results(tmp_path_factory, free_port):
    out = tmp_path_factory.mktemp("two_ranks")
    worker = str(HERE / "two_rank_worker.py")
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    subprocess.run([*deepspeed, worker, str(out), "0,2,3"], check=True, env=ENV, timeout=300)
    subprocess.run([sys.executable, worker, str(out), "0"], check=True, env=ENV, timeout=300)
    return {path.stem: torch.load(path, weights_only=True) for path in out.glob("*.pt")}


def plain_torch(tied, optimizer_name):
    """The ten steps without a line of the package: each example alone, full logits, one backward of the mean."""
    model = mixed_model(tied).train()
    if optimizer_name == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    norms = []
    for ranks in steps():
        optimizer.zero_grad()
        plain_loss(model, [e for micro_batches in ranks for micro in micro_batches for e in micro]).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
    return dict(model.named_parameters(remove_duplicate=False)), norms


def largest_difference(state, reference):
    assert set(state) == set(reference)
    scale = max(float(tensor.detach().abs().max()) for tensor in reference.values())
    return max(float((state[name] - reference[name].detach()).abs().max()) for name in reference) / scale


RUNS = ["world1-stage0", "world2-stage0", "world2-stage2", "world2-stage3"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("run", RUNS)
def test_parameters_equal_plain_torchs_after_ten_mixed_steps(results, run, tied):
    name = f"{run}-{'tied' if tied else 'untied'}-sgd"
    reference, norms = plain_torch(tied, "sgd")
    start = dict(mixed_model(tied).named_parameters(remove_duplicate=False))
    assert largest_difference(reference, start) > 1e-2  # it moved: equality below means something
    assert largest_difference(results[name]["state"], reference) <= 1e-6
    assert [line["grad_norm"] for line in results[name]["metrics"]] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("run", RUNS[1:])
def test_adamw_at_the_recipes_rate_takes_the_same_steps_too(results, run, tied):
    # Adam divides by |g|, so rounding of tiny gradients shows: about 2e-7 at this rate, and in proportion to it.
    kind = "tied" if tied else "untied"
    one = results[f"world1-stage0-{kind}-adamw"]["state"]
    assert largest_difference(results[f"{run}-{kind}-adamw"]["state"], one) <= 1e-6


@pytest.mark.parametrize("run", RUNS[1:])
def test_metrics_are_those_of_one_process(results, run):
    for mine, theirs in zip(results[f"{run}-tied-sgd"]["metrics"], results["world1-stage0-tied-sgd"]["metrics"]):
        assert mine["tokens"] == theirs["tokens"]
        assert mine.get("lost_images") == theirs.get("lost_images")
        assert mine["supervised_tokens"] == theirs["supervised_tokens"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["ce"] == pytest.approx(theirs["ce"], rel=1e-5)
        assert sum(mine["p_hist"]) == mine["supervised_tokens"]
    lines = results[f"{run}-tied-sgd"]["metrics"]
    assert [line.get("lost_images") for line in lines] == [1 if step % 3 == 2 else None for step in range(STEPS)]
