"""500 steps of random mixes of text, pictures and nothing to learn on two ranks with ZeRO-3, against plain torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from many_mixes import BLOCK, LR, STEPS, new_model, plain_gradient, steps

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tensors are so small that several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def walk(model, starts=None):
    """Gradient and parameters of each step, one SGD update after the other; from `starts` every BLOCK steps."""
    for number, step in enumerate(steps()):
        if starts and number % BLOCK == 0:
            model.load_state_dict(starts[number // BLOCK])
        gradient = plain_gradient(model, step)
        yield gradient, model.state_dict()
        with torch.no_grad():
            for p, of_p in zip(model.parameters(), gradient.split([p.numel() for p in model.parameters()])):
                p -= LR * of_p.view_as(p)


@pytest.fixture(scope="module")
def plain():
    """Gradients of plain torch, and the parameters at the start of each block and at the end."""
    model, gradients, states = new_model().train(), [], []
    for gradient, state in walk(model):
        if len(gradients) % BLOCK == 0:
            states.append(clone(state))
        gradients.append(gradient)
    return gradients, [*states, clone(model.state_dict())]


def clone(state):
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def result(plain, tmp_path_factory, free_port):
    folder = tmp_path_factory.mktemp("many_mixes")
    torch.save(plain[1], folder / "starts.pt")
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    # Ranks that wait for each other for ever show as the time limit.
    subprocess.run([*deepspeed, str(HERE / "many_mixes_worker.py"), str(folder)], check=True, env=ENV, timeout=900)
    result = torch.load(folder / "result.pt", weights_only=True)
    (folder / "result.pt").unlink()  # 200 MB
    return result


def examples(step):
    return [e for micro_batches in step for examples in micro_batches for e in examples]


def test_the_mixes_have_every_awkward_kind():
    made = steps()
    ranks = [[e for examples in rank for e in examples] for step in made for rank in step]
    assert len(made) == STEPS
    assert sum(len(rank) == 0 for rank in ranks) > 20
    assert sum(not any(e.supervised.any() for e in rank) for rank in ranks) > 100
    pictured = [[any(e.patches is not None for e in examples) for examples in rank] for step in made for rank in step]
    assert sum(one != two for one, two in zip(pictured[::2], pictured[1::2])) > 100  # ranks differ in who has pictures
    assert sum(bool(e.lost) for rank in ranks for e in rank) > 100
    assert sum(len({e.policy for e in examples(step) if e.supervised.any()}) == 2 for step in made) > 100


def test_every_gradient_is_plain_torchs(result, plain):
    """No entry differs by more than 1e-6 of the gradient's norm. Float64 tells how much of it is float32's own."""
    gradients, starts = plain
    exact = (gradient for gradient, _ in walk(new_model().train().double(), starts))
    differences, ours, theirs = [], [], []
    for mine, single, double in zip(result["gradients"], gradients, exact, strict=True):
        differences.append(float((mine - single).abs().max() / single.norm()))
        ours.append(float((mine - double).abs().max() / double.norm()))
        theirs.append(float((single - double).abs().max() / double.norm()))
    assert len(differences) == STEPS
    assert max(differences) <= 1e-6
    assert max(ours) <= 2 * max(theirs)
    norms = [float(gradient.norm()) for gradient in gradients]
    assert [line["grad_norm"] for line in result["metrics"]] == pytest.approx(norms, rel=1e-5)


def test_the_updates_are_plain_torchs(result, plain):
    start, *ends = plain[1]
    largest = max(float(tensor.abs().max()) for tensor in start.values())

    def apart(a, b):
        return max(float((a[name] - b[name]).abs().max()) for name in start) / largest

    assert apart(start, ends[-1]) > 0.03  # it moved: equality below means something
    assert len(result["ends"]) == len(ends) == STEPS // BLOCK
    assert max(apart(mine, theirs) for mine, theirs in zip(result["ends"], ends)) <= 1e-6


def test_every_step_counts_what_it_learned_and_what_was_lost(result):
    for line, step in zip(result["metrics"], steps(), strict=True):
        assert line["supervised_tokens"] == sum(int(e.supervised.sum()) for e in examples(step))
        assert line["tokens"] == sum(len(e.ids) for e in examples(step))
        assert line.get("lost_images", 0) == sum(bool(e.lost) for e in examples(step))
