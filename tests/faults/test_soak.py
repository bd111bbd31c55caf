"""Faults by the dozen: `make soak`. Each test prints its figures."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from faults.harness import STEPS
from faults.test_faults import assert_equals_whole
from safetensors.torch import load_file

from dft_mm.train.verify import newest_whole, verify

pytestmark = pytest.mark.long


def kill_all(run):
    """As a node that is taken away: everything at once, without a word."""
    for process in run.left():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.ended(30)


def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bits(runs):
    with runs.started("killed") as run:
        run.until(lambda: list(runs.path("killed").glob("checkpoints/step-*")))  # the disk may be behind the steps
        run.kill(1)
        assert run.ended() != 0
    status = runs.status("killed")
    assert status["state"] == "failed"
    assert "rank 1 (process" in status["reason"]
    assert "died at step" in status["reason"]
    code, output = runs("killed")
    assert code == 0, output
    assert "going on after step" in output
    assert_equals_whole(runs, "killed")


def test_a_killed_rank_0_is_named_by_another(runs):
    with runs.started("headless") as run:
        run.until_step(4)
        run.kill(0)
        assert run.ended() != 0
    status = runs.status("headless")
    assert (status["state"], "rank 0" in status["reason"]) == ("failed", True)


@pytest.mark.parametrize("number", range(5))
def test_killed_at_a_random_point_a_run_ends_with_the_same_bits(runs, number):
    draw, name = random.Random(number), f"random{number}"
    with runs.started(name) as run:
        run.until_step(draw.randrange(1, STEPS))
        time.sleep(draw.uniform(0, 0.3))
        kill_all(run)
    code, output = runs(name)
    assert code == 0, output
    assert_equals_whole(runs, name)


LEFT_OUT = """
import dft_mm.train.checkpoint as checkpoint
checkpoint._restore_rng = lambda state: None
"""


def test_control_a_run_whose_random_states_are_left_out_ends_with_others(runs):
    with runs.started("control") as run:
        run.until(lambda: runs.checkpoints("control"))
        kill_all(run)
    assert runs.metrics("control")[-1]["step"] < STEPS
    code, output = runs("control", prelude=LEFT_OUT)
    assert code == 0, output
    assert runs.weights("control") != runs.weights("whole")


def test_no_unfinished_checkpoint_is_accepted(runs, tmp_path):
    source = runs.path("whole") / "checkpoints"
    draw, accepted, tried = random.Random(0), 0, 0
    newest, older = sorted(source.iterdir(), reverse=True)
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    for _ in range(50):
        folder = tmp_path / str(tried)
        shutil.copytree(older, folder / older.name)
        # What a crash leaves: a prefix of the files, in a random order of writing, the last of them cut.
        order = [path for path in files if path.name != "manifest.json"]
        draw.shuffle(order)
        order.append(files[files.index(next(path for path in files if path.name == "manifest.json"))])
        there = order[: draw.randrange(1, len(order) + 1)]
        for path in there:
            (folder / newest.name / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(newest / path, folder / newest.name / path)
        last = folder / newest.name / there[-1]
        os.truncate(last, draw.randrange(last.stat().st_size))
        accepted += newest_whole(folder).name != older.name
        tried += 1
        shutil.rmtree(folder)
    print(f"\nF2: {accepted} of {tried} unfinished checkpoints accepted")
    assert accepted == 0


def test_every_changed_bit_cut_or_missing_shard_is_noticed(runs, tmp_path):
    source = runs.path("whole") / "checkpoints"
    newest = max(source.iterdir())
    shutil.copytree(newest, tmp_path / newest.name)
    draw, noticed, tried = random.Random(0), 0, 0
    shards = sorted(path for path in (tmp_path / newest.name).rglob("*.pt"))
    for number in range(40):
        path = draw.choice(shards)
        good = path.read_bytes()
        at = draw.randrange(len(good))
        if number % 4 == 0:
            path.unlink()
        elif number % 4 == 1:
            path.write_bytes(good[:at])
        else:
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :])
        noticed += verify(tmp_path / newest.name) is not None
        tried += 1
        path.write_bytes(good)
    assert verify(tmp_path / newest.name) is None
    print(f"\nF3: {noticed} of {tried} noticed")
    assert noticed == tried


def test_with_a_damaged_shard_all_ranks_fall_back_together(runs):
    with runs.started("damaged") as run:
        run.until(lambda: len(runs.checkpoints("damaged")) >= 2)
        kill_all(run)
    newest, older = sorted(runs.checkpoints("damaged"), reverse=True)[:2]
    shard = sorted((runs.path("damaged") / "checkpoints" / newest / "engine").glob("*rank_1*optim*"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    code, output = runs("damaged")
    assert code == 0, output
    assert f"{newest} is damaged and not used" in output
    assert f"from {runs.path('damaged') / 'checkpoints' / older}" in output
    assert_equals_whole(runs, "damaged")


SLOW_START = """
import dft_mm.train.run as run, time
load = run.load_data
def slow(*arguments):
    open({flag!r}, "w").close()
    time.sleep(20)
    return load(*arguments)
run.load_data = slow
"""


@pytest.mark.parametrize("moment", ["loading", "stepping"])
@pytest.mark.parametrize("to", ["launcher", "rank 0", "rank 1", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_at_any_moment_to_anybody_is_a_clean_stop(runs, number, to, moment):
    name = f"{signal.Signals(number).name}-{to.replace(' ', '')}-{moment}"
    flag = runs.folder / f"{name}.flag"
    prelude = SLOW_START.format(flag=str(flag)) if moment == "loading" else None
    with runs.started(name, prelude=prelude) as run:
        if moment == "loading":
            run.until(flag.exists)
            time.sleep(0.5)
        else:
            run.until_step(3)
        start = time.monotonic()
        if to == "group":
            os.killpg(run.launcher.pid, number)
        elif to == "launcher":
            run.launcher.send_signal(number)
        else:
            run.kill(int(to[-1]), number)
        run.ended(60)
        took = time.monotonic() - start
    status = runs.status(name)
    print(f"\nF4: {name}: {took:.1f} s, {status}")
    assert status["state"] == "stopped", run.output()[-3000:]
    assert took < 12  # 10 s, and what the launcher takes to look
    if moment == "stepping":
        assert f"step-{status['step']:08d}" in runs.checkpoints(name)
        assert [line["step"] for line in runs.metrics(name)] == list(range(1, status["step"] + 1))


def test_the_same_examples_come_in_the_same_steps_on_1_2_and_4_ranks(runs):
    told = {}
    for ranks in (1, 4):
        name = f"ranks{ranks}"
        with runs.started(name, ranks=ranks) as run:
            run.until(lambda name=name: runs.checkpoints(name))
            kill_all(run)
        code, output = runs(name, ranks=2)  # and goes on with another number
        assert code == 0, output
        told[ranks] = runs.metrics(name)
    for one, two, four in zip(told[1], runs.metrics("whole"), told[4], strict=True):
        for key in ("step", "tokens", "supervised_tokens", "examples", "epoch"):
            assert one[key] == two[key] == four[key]
        # dropout draws other numbers on other ranks
        assert one["ce"] == pytest.approx(two["ce"], rel=0.2)


FULL = ("model.lora=null", "optim.lr=1e-3", "optim.projector_lr=3e-4", "optim.vision_lr=1e-4", "optim.weight_decay=0.1")


@pytest.mark.parametrize(("stage", "before", "after"), [(3, 2, 1), (3, 1, 2), (2, 2, 1), (2, 1, 2), (0, 2, 1)])
def test_on_another_number_of_ranks_weights_are_equal_to_rounding(runs, repo, stage, before, after):
    config = runs.folder / f"zero{stage}.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}))
    words, name = (*FULL, f"deepspeed={config}"), f"from{before}to{after}at{stage}"
    code, output = runs(f"{name}-whole", *words, ranks=2)
    assert code == 0, output
    code, output = runs(name, "--stop-after", "6", *words, ranks=before)
    assert runs.status(name)["state"] == "stopped", output
    code, output = runs(name, *words, ranks=after)
    assert code == 0, output
    ours, theirs = (load_file(runs.path(run) / "export/model.safetensors") for run in (name, f"{name}-whole"))
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
    print(f"\nF6: stage {stage}, {before} to {after} ranks: greatest difference of a weight {worst:.1e}")
    assert worst < 5e-6  # of steps of 1e-3


def test_twenty_random_faults_in_one_run_leave_no_trace(runs):
    draw, name, faults, steps = random.Random(7), "soaked", [], "train.max_steps=90"
    code, output = runs("long", steps)
    assert code == 0, output

    def damage(run):
        kill_all(run)
        shards = sorted((runs.path(name) / "checkpoints").glob("step-*/engine/*.pt"))
        if shards and len(runs.checkpoints(name)) > 1:
            newest = [path for path in shards if path.parent.parent.name == runs.checkpoints(name)[-1]]
            os.truncate(draw.choice(newest), 100)

    kinds = {
        "kill -9 of rank 0": lambda run: run.kill(0),
        "kill -9 of rank 1": lambda run: run.kill(1),
        "everything killed": kill_all,
        "SIGTERM to the launcher": lambda run: run.launcher.terminate(),
        "SIGINT to the group": lambda run: os.killpg(run.launcher.pid, signal.SIGINT),
        "SIGUSR1 to rank 1": lambda run: run.kill(1, signal.SIGUSR1),
        "a damaged checkpoint": damage,
    }
    while len(faults) < 20:
        kind = draw.choice(list(kinds))
        with runs.started(name, steps) as run:
            run.until(run.both_ranks)
            if draw.random() < 0.8:  # else while it starts
                run.until(lambda run=run: "loss head" in run.output())
                steps_done = run.step() + draw.choice([0, 1, 2])
                run.until(lambda run=run, there=steps_done: run.step() >= there)
            time.sleep(draw.uniform(0, 1.5))
            kinds[kind](run)
            run.ended(90)
        faults.append(kind)
        assert [line["step"] for line in runs.metrics(name)] == list(range(1, len(runs.metrics(name)) + 1))
        if runs.status(name)["state"] == "finished":
            break
    print(f"\nF13: {len(faults)} faults: {json.dumps(faults)}")
    code, output = runs(name, steps)
    assert code == 0, output
    assert runs.weights(name) == runs.weights("long")
    assert len(faults) == 20, "the run was over before; give it more steps"


NAN = """
import dft_mm.train.step as step
from dft_mm import dist
forward, calls = step._forward, []
def poisoned(*arguments):
    outputs = forward(*arguments)
    calls.append(1)
    return (outputs[0] * float("nan"), *outputs[1:]) if dist.rank() == 1 and len(calls) == 6 else outputs
step._forward = poisoned
"""


def test_a_nan_on_one_rank_stops_all_before_the_update(runs):
    code, output = runs("nan", "--debug", prelude=NAN)
    assert code == 1, output
    status = runs.status("nan")
    print(f"\nF11: {status}")
    assert status["state"] == "failed"
    assert f"step {status['step'] + 1}: NonFiniteError: the loss is not finite; examples: row-" in status["reason"]
    assert len(list((runs.path("nan") / "debug").iterdir())) == 2
    code, output = runs("nan")
    assert code == 0, output
    assert_equals_whole(runs, "nan")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, free):
    """Leave `free` bytes on a disk."""
    room = shutil.disk_usage(disk).free - free
    # The run may take room at the same moment, and then the disk is full before all is written: as wanted.
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        file.write(bytes(max(room, 0)))


@pytest.mark.parametrize("free", [0, 20_000, 60_000, 150_000, 400_000])
@pytest.mark.parametrize("moment", ["preparing", "saving and logging"])
def test_a_full_disk_loses_nothing(runs, small_disk, moment, free):
    name, output = f"full-{moment[:4]}-{free}", f"output={small_disk}/run"
    if moment == "preparing":
        fill(small_disk, free)
        code, told = runs(name, output)
    else:
        with runs.started(name, output) as run:
            metrics = small_disk / "run/metrics.jsonl"
            run.until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 4)
            fill(small_disk, free)
            code, told = run.ended(), run.output()
    checkpoints = sorted((small_disk / "run/checkpoints").glob("step-*"))
    problems = [verify(path) for path in checkpoints]
    print(f"\nF9: {moment}, {free} bytes: exit code {code}, {len(checkpoints)} checkpoints")
    assert not any(problems)
    if code:
        assert "No space left" in told or "make room" in told or "are free" in told, told[-3000:]
        assert "Traceback" not in told
        status = small_disk / "run/STATUS.json"
        assert not status.is_file() or json.loads(status.read_text())["state"] == "failed"
    (small_disk / "filler").unlink()
    code, told = runs(name, output)
    assert code == 0, told
    adapter = next((small_disk / "run/export").glob("*model.safetensors"))
    assert adapter.read_bytes() == next((runs.path("whole") / "export").glob("*model.safetensors")).read_bytes()
