"""The steps of a run, between its weights and its export: build, go on where it stopped, step, log, save, stop."""

import hashlib
import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dft_mm import dist
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.errors import InputError, Stopped
from dft_mm.loss.family import Objective
from dft_mm.model.folder import fingerprint
from dft_mm.model.processing import Processing
from dft_mm.progress import progress
from dft_mm.train.build import build_module
from dft_mm.train.checkpoint import Checkpoints, SaveError, load
from dft_mm.train.deepspeed_config import zero_stage
from dft_mm.train.engine import build_engine
from dft_mm.train.export import export_live
from dft_mm.train.feed import RunData, Waiting, heldout_batches, train_batches, write_batches
from dft_mm.train.lifecycle import Run
from dft_mm.train.run_folder import MetricsFile
from dft_mm.train.schedule import lr_factor
from dft_mm.train.step import NonFiniteError, heldout_pass, train_step
from dft_mm.train.telemetry import Spikes
from dft_mm.train.tracking import tracked
from dft_mm.train.verify import newest_whole, read_manifest

_GIB = 2**30


def learn(
    recipe: Recipe,
    config: dict[str, Any],
    processing: Processing,
    data: RunData,
    run: Run,
    stop_after: int | None,
    debug: bool,
) -> None:
    """From the weights to the export, on every rank; `config` is DeepSpeed's, the rest is as `train` has it."""
    found = newest_whole(run.folder / "checkpoints")
    first = read_manifest(found)["step"] + 1 if found else 1
    with run.requests.deferred():  # a worker that is half begun would complain
        batches = train_batches(data, recipe, first, dist.device())  # workers start while the weights are loaded
    run.requests.check()
    module = build_module(recipe, processing.family, config)
    engine = build_engine(module, processing.family, recipe, config)
    identity = {"model": _fingerprint(module.model), "data": data.fingerprint, "zero_stage": zero_stage(config)}
    if recipe.model.lora:
        identity["base"] = dist.on_main(lambda: fingerprint(processing.folder))
    run.step = 0
    if found:
        run.step = load(engine, found, identity)
        log.info("going on after step %d, from %s", run.step, found)
    _run_steps(engine, recipe, data, batches, identity, run, stop_after, debug)
    export_live(module, recipe, processing, run.folder / "export", run.step, data.end_id)


def _fingerprint(model: nn.Module) -> str:
    """Names, shapes and trainability of all parameters: a checkpoint fits exactly the models that share it."""
    lines = [f"{n} {tuple(getattr(p, 'ds_shape', p.shape))} {p.requires_grad}" for n, p in model.named_parameters()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _run_steps(
    engine: Any,
    recipe: Recipe,
    data: RunData,
    batches: Waiting,
    identity: dict[str, Any],
    run: Run,
    stop_after: int | None,
    debug: bool,
) -> None:
    plan, end_id, first = data.plan, data.end_id, run.step + 1
    metrics = MetricsFile(run.folder / "metrics.jsonl", run.step) if dist.is_main() else None
    sync_metrics = metrics.sync if metrics else lambda: None
    saver = Checkpoints(
        engine, run.folder / "checkpoints", identity, recipe.train.keep, sync_metrics, run.watch.alive
    )
    lost: set[str] = set()
    spikes = Spikes()
    trackers = recipe.log.trackers if metrics else []
    with (
        run.requests.deferred(),
        tracked(trackers, run.folder, run.step, run.note) as look_at_trackers,
        progress("train", plan.steps, run.step, dist.is_main()) as advance,
    ):
        for step in range(first, plan.steps + 1):
            start, batches.waited_s, batches.lost = time.perf_counter(), 0.0, []
            indices = plan.examples(step)
            factor = lr_factor(step, plan.steps, recipe.optim.warmup_ratio, recipe.optim.schedule)
            for group in engine.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            count = len(plan.micro_batches(step)[0])
            run.doing = step
            try:
                sums, grad_norm = train_step(
                    engine,
                    itertools.islice(batches, count),
                    count,
                    int(data.train.supervised[indices].sum()),
                    Objective(data.losses, step),
                    end_id,
                    stop_wanted=bool(run.requests) or step == stop_after,
                    saving=not saver.on_disk,
                    at=run.at,
                )
            except NonFiniteError as error:
                if not debug:
                    raise
                raise NonFiniteError(f"{error}; its batches are in {write_batches(data, step, run.folder)}") from error
            run.step = step
            line: dict[str, Any] = {"step": step, "epoch": plan.epochs_done(step)}
            line |= sums.metrics() | {"lr": recipe.optim.lr * factor, "grad_norm": grad_norm, "examples": len(indices)}
            line |= plan.shape(step)
            line |= _cost(time.perf_counter() - start, batches.waited_s, line["tokens"], engine.device)
            if data.heldout and (step % recipe.train.heldout_every == 0 or step == plan.steps):
                line |= heldout_pass(engine, run.watched(heldout_batches(data, recipe), "held-out rows"), end_id)
            problems = [metrics.write(line) if metrics else None, spikes.look(step, line["ce"])]
            for problem in filter(None, problems):
                run.note(problem)
            look_at_trackers()
            if sums.lost:
                names = [name for of_rank in dist.gather_objects(batches.lost) for name in of_rank]
                lost.update(names)
                shown = "; ".join(names[:3]) + " …" * (len(names) > 3)
                log.warning("step %d: %d rows not learned, their pictures are lost: %s", step, len(names), shown)
            too_many = len(lost) > recipe.data.bad_rows * len(data.train)
            advance(note=f"loss {line['loss']:.4f}  ce {line['ce']:.4f}  p {line['p_mean']:.3f}")
            last = sums.stop or too_many or step == plan.steps
            run.go_on()
            run.at("the checkpoint")
            if last or step % recipe.train.save_every == 0:
                with _saving(run, last):
                    saver.save(step)
                    if last:
                        saver.commit()
            elif saver.pending and not sums.saving:
                with _saving(run):
                    saver.commit()
            if too_many:
                raise InputError(
                    f"step {step}: the pictures of {len(lost)} of {len(data.train)} examples are gone or changed since "
                    f"the data was prepared, more than data.bad_rows ({recipe.data.bad_rows:g}) allows: "
                    f"{'; '.join(sorted(lost)[:3])}. Step {step} is saved: put them back and start the run again"
                )
            if sums.stop and step < plan.steps:
                raise Stopped(f"stopped after step {step}; the same command goes on from there")
    run.watch.rest()
    if metrics:
        metrics.close()


@contextmanager
def _saving(run: Run, last: bool = False) -> Iterator[None]:
    """A checkpoint that the disk does not take is tried again at the next time; the last one is needed."""
    try:
        yield
    except SaveError as error:
        if last:
            raise InputError(
                f"{error}. The steps since the last checkpoint are lost; make room in {run.folder}, then start the run "
                "again: it goes on from there"
            ) from error
        run.note(f"{error}; the run goes on and tries again at the next checkpoint")


def _cost(time_s: float, waited_s: float, tokens: int, device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "time_s": time_s,
        "data_wait_s": waited_s,
        "tokens_per_s": tokens / time_s,
        "memory_gib": memory / _GIB,
    }
