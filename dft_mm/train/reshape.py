"""A checkpoint of another number of ranks, through DeepSpeed's universal checkpoint.

What deepspeed 0.19.8 gets wrong there is mended: it gives all parameter groups the first one's settings, and lets them
share one step counter, which Adam then advances once a group.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dft_mm import dist
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.train.verify import ENGINE


@contextmanager
def loading_reshaped(engine: Any, checkpoint: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """The folder to load from instead, while the engine is set to load it; every rank calls it."""
    stage = manifest["identity"]["zero_stage"]
    if stage == 0:  # every rank has everything there
        yield checkpoint
        return
    log.info("%s was made by %d ranks: cut anew for %d", checkpoint, manifest["world_size"], dist.world_size())
    folder = checkpoint.with_name(f".{checkpoint.name}.reshaped")
    dist.on_main(lambda: _convert(checkpoint / ENGINE, folder / ENGINE, stage))
    own_settings = [
        {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
    ]
    engine._config.load_universal_checkpoint = True
    try:
        yield folder
    finally:
        engine._config.load_universal_checkpoint = False
    for group, settings in zip(engine.optimizer.param_groups, own_settings):
        group.update(settings)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    dist.barrier()
    dist.on_main(lambda: shutil.rmtree(folder))


def _convert(source: Path, target: Path, stage: int) -> None:
    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    command += ["--output_folder", str(target), "--num_extract_workers", "2", "--num_merge_workers", "2"]
    if stage < 3:
        command.append("--inject_missing_state")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(target.parent, ignore_errors=True)
        last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise InputError(
            f"{source.parent} could not be cut anew for another number of ranks; start with as many ranks as made it, "
            f"or make room for a second copy beside it. DeepSpeed says:\n{last}"
        )
