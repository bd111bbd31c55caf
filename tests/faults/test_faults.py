"""What befalls runs, in short: two ranks, ZeRO-3, adapters with dropout, so that every random state counts."""

import re
import signal

import pytest
from faults.harness import STEPS

EXACT = ("step", "loss", "ce", "grad_norm", "p_hist", "tokens", "examples", "lr")


SLOW_STEPS = """
import dft_mm.train.loop as loop, time
step = loop.train_step
def slow(*arguments, **named):
    time.sleep(3)
    return step(*arguments, **named)
loop.train_step = slow
"""


def assert_equals_whole(runs, name):
    assert runs.status(name)["state"] == "finished"
    exact = [[{key: line[key] for key in EXACT} for line in runs.metrics(run)] for run in (name, "whole")]
    assert exact[0] == exact[1]
    assert len(exact[0]) == STEPS
    assert runs.weights(name) == runs.weights("whole")


def test_sigterm_to_the_deepspeed_command_leaves_no_orphans_and_fewer_ranks_go_on(runs):
    with runs.started("orphaned", prelude=SLOW_STEPS) as run:
        run.until_step(2)
        code, output = runs("orphaned", ranks=1)
        assert code == 2, output
        assert f"another run works there now (process {run.rank(0).pid} on" in output
        run.launcher.send_signal(signal.SIGTERM)  # it dies at once and tells nobody
        run.ended(60)
    status = runs.status("orphaned")
    assert status["state"] == "stopped", (status, run.output())
    assert f"step-{status['step']:08d}" in runs.checkpoints("orphaned")
    code, output = runs("orphaned", "model.lora.dropout=0.1", ranks=1)
    assert code == 0, output
    assert "cut anew for 1" in output
    whole, other = runs.metrics("whole"), runs.metrics("orphaned")
    for ours, theirs in zip(other, whole, strict=True):
        for key in ("step", "tokens", "supervised_tokens", "examples", "lr"):
            assert ours[key] == theirs[key]


@pytest.mark.long
def test_a_rank_that_hangs_is_named_and_all_ranks_end(runs):
    with runs.started("hung", "train.hang_minutes=0.1") as run:
        run.until_step(3)
        run.kill(1, signal.SIGSTOP)
        assert run.ended(90) != 0
    status = runs.status("hung")
    assert (status["state"], "rank 1" in status["reason"]) == ("failed", True), status
    stacks = (runs.path("hung") / "stacks/rank-00000.txt").read_text()
    assert "dft_mm/train/loop.py" in stacks


@pytest.mark.long
def test_a_failed_run_begins_again_by_itself(runs):
    with runs.started("restarted", "train.restarts=1") as run:
        run.until_step(5)
        run.kill(1)
        assert run.ended() == 0, run.output()
    assert "beginning again, 1 of 1" in run.output()
    assert re.search(r"rank 1 \(process \d+ on .*\) died at step", run.output())
    assert "going on after step" in run.output()
    assert_equals_whole(runs, "restarted")
