"""Real runs under DeepSpeed's launcher, to be killed, signalled and starved, and what is left of them afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import psutil
from runs import Runs

STEPS = 12
_MARK = "DFT_MM_FAULT_TEST"
_ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def _hears_sigint():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it


class FaultRuns(Runs):
    """Runs that differ in their name and what befalls them."""

    def __init__(self, folder, repo, free_port):
        super().__init__(
            folder, repo, free_port,
            model="lora: {rank: 2, dropout: 0.1}",
            data="workers: 1",
            optim="lr: 1e-2, batch_size: 4",
            train=f"max_steps: {STEPS}, epochs: 9, micro_tokens: 256, save_every: 3, hang_minutes: 1",
        )  # fmt: skip

    @contextlib.contextmanager
    def started(self, name, *words, ranks=2, prelude=None):
        """A run under way. `prelude`: Python that each rank runs before the command line, to be slow or to fail."""
        run = Started(self, name, words, ranks, prelude)
        try:
            yield run
        finally:
            for process in run.left():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def __call__(self, name, *words, **how):
        """Run to its end: (exit code, output)."""
        with self.started(name, *words, **how) as run:
            return run.ended(), run.output()


class Started:
    def __init__(self, runs, name, words, ranks, prelude):
        self.runs, self.name, self.mark = runs, name, uuid.uuid4().hex
        self.log = runs.folder / f"{name}.{self.mark[:6]}.log"
        start = ["--module", "dft_mm"]
        if prelude:
            script = runs.folder / f"{self.mark}.py"
            main = textwrap.indent(f"{prelude}\nfrom dft_mm.__main__ import entry\nentry()\n", "    ")
            script.write_text(f"if __name__ == '__main__':\n{main}")  # its data workers import it
            start = [str(script)]
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks)]
        command = [*launcher, "--master_port", str(runs.free_port()), *start, "train", str(runs.recipe), f"name={name}"]
        environment = {**_ENVIRONMENT, _MARK: self.mark, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [*command, *words], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_hears_sigint,
            )  # fmt: skip

    def output(self):
        return self.log.read_text(errors="replace")

    def left(self):
        """Its processes, data workers and all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def rank(self, number):
        """The training process of a rank: with restarts the deepest."""
        started = [p for p in self.left() if p.environ().get("RANK") == str(number) and "train" in p.cmdline()]
        return max(started, key=lambda p: len(p.parents()))

    def both_ranks(self):
        try:
            return all(self.rank(number) for number in (0, 1))
        except (ValueError, psutil.Error):  # not yet
            return False

    def step(self):
        return len(self.runs.metrics(self.name))

    def until(self, reached, seconds=120):
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"it does not get there:\n{self.output()[-3000:]}"
            assert self.launcher.poll() is None or self.left(), f"it ended before:\n{self.output()[-3000:]}"
            time.sleep(0.02)

    def until_step(self, number):
        self.until(lambda: self.step() >= number)

    def ended(self, seconds=180):
        """The launcher's exit code, when all processes of the run are gone."""
        end = time.monotonic() + seconds
        while (self.launcher.poll() is None or self.left()) and time.monotonic() < end:
            time.sleep(0.1)
        assert self.launcher.poll() is not None, f"it does not end:\n{self.output()[-3000:]}"
        assert not self.left(), f"left: {[p.cmdline() for p in self.left()]}"
        return self.launcher.returncode

    def kill(self, rank, number=signal.SIGKILL):
        self.rank(rank).send_signal(number)
