"""A run from recipe to export: meet, prepare, tell what is ahead, learn, end."""

import os
from contextlib import ExitStack
from pathlib import Path

from dft_mm import dist
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.model.folder import resolve
from dft_mm.model.processing import load_processing
from dft_mm.signals import StopRequests
from dft_mm.train.deepspeed_config import deepspeed_config
from dft_mm.train.feed import load_data
from dft_mm.train.lifecycle import reported
from dft_mm.train.run_folder import locked_run, open_run, state_of
from dft_mm.train.tracking import check_installed
from dft_mm.workers import being_imported_by_a_worker


def train(
    recipe: Recipe,
    stop_after: int | None = None,
    accept_changes: bool = False,
    debug: bool = False,
    requests: StopRequests | None = None,
) -> None:
    """Train, or go on where the run stopped; ends with `export/` and STATUS `finished`.

    Every rank calls it.

    Args:
        stop_after: stop after this step as if a signal had come.
        accept_changes: go on though the recipe is another than that of the run's checkpoints.
        debug: write the micro-batches of a step that is not finite into the run folder.
        requests: signals that ask to stop, where the caller notes them already.

    Raises Stopped after committing a checkpoint, InputError for what the user has to mend.
    """
    if being_imported_by_a_worker():
        raise InputError("a data worker imports this script: call train under `if __name__ == \"__main__\":`")
    config = deepspeed_config(recipe)  # before the ranks meet: what is wrong with it is said at once
    folder = recipe.run_dir
    # The collator has compared pictures and their tokens; transformers would do so on the device, and wait for it.
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"
    with ExitStack() as held:
        requests = requests or held.enter_context(StopRequests())
        dist.init()
        dist.setup_logging()
        dist.on_main(lambda: check_installed(recipe.log.trackers))
        dist.on_main(lambda: held.enter_context(locked_run(folder)) and None)
        dist.on_main(lambda: open_run(folder, recipe, config, accept_changes))
        _check_shared(folder)
        if dist.on_main(lambda: state_of(folder)) == "finished":
            log.info("%s is finished; its result is in %s", recipe.name, folder / "export")
            return
        with reported(recipe, requests) as run:
            processing = load_processing(dist.on_main(lambda: resolve(recipe.model.path)))
            data = load_data(recipe, processing)
            log.info("%s: %s; %s", recipe.name, data.summary, _length(recipe, data.plan.steps))
            from dft_mm.train.loop import learn  # takes seconds to import: whoever waits knows by now what for

            learn(recipe, config, processing, data, run, stop_after, debug)
        log.info("%s: finished after %d steps; its result is in %s", recipe.name, run.step, folder / "export")


def _length(recipe: Recipe, steps: int) -> str:
    """How long the run is, and by which setting."""
    most = recipe.train.max_steps
    epochs = f"train.epochs {recipe.train.epochs}"
    if most is None or steps < most:
        beyond = "" if most is None else f", which come before train.max_steps {most}"
        return f"{steps} steps ({epochs}{beyond})"
    return f"{steps} steps (train.max_steps; {epochs})"


def _check_shared(folder: Path) -> None:
    """Checkpoints are written by all ranks and verified by one."""
    ranks = dist.gather_objects((folder / "recipe.yaml").is_file())
    if not all(ranks):
        raise InputError(
            f"output: rank {ranks.index(False)} does not see {folder}, which rank 0 has made; all nodes have to share "
            "the file system of the run folder: give another `output`"
        )
