"""Rows → this rank's micro-batches: prepared once, planned for all ranks, made ahead of the step."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dft_mm import dist
from dft_mm.batch import Batch
from dft_mm.config import LossConfig, Recipe
from dft_mm.data.collate import Collator
from dft_mm.data.dataset import Dataset
from dft_mm.data.images import ImageSettings
from dft_mm.data.plan import Load, Mixture, Plan, heldout_micro_batches
from dft_mm.data.preparing.manifest import still_holds, summary
from dft_mm.data.preparing.prepare import prepare
from dft_mm.data.render import Renderer
from dft_mm.dist import log
from dft_mm.model.folder import check_whole
from dft_mm.model.processing import Processing
from dft_mm.workers import begin_data_worker, deaf_to_stop_signals

_CPU = torch.device("cpu")
_AHEAD = 4  # micro-batches that a worker may have ready: held-out passes and checkpoints give it the time to make them


@dataclass(frozen=True)
class RunData:
    """What a run learns from and measures on."""

    train: Dataset
    heldout: Dataset | None
    plan: Plan
    collate: Collator
    losses: tuple[LossConfig, ...]
    """What the policies of batches number."""
    end_id: int
    """The token that ends an answer."""
    summary: str
    """How many rows there are, and what became of those that are not learned from."""
    fingerprint: str


def image_settings(recipe: Recipe, processing: Processing) -> ImageSettings | None:
    """What pictures are cut with; None for text models."""
    if processing.image_config is None:
        return None
    return ImageSettings.of(processing.image_config, recipe.data.min_pixels, recipe.data.max_pixels)


def make_renderer(recipe: Recipe, processing: Processing) -> Renderer:
    """What turns a recipe's conversations into a model's tokens."""
    images = image_settings(recipe, processing)
    merge_size = images.merge_size if images else None
    return Renderer(
        processing.tokenizer, processing.chat_template, processing.image_token, merge_size, recipe.data.supervise
    )


def make_collator(recipe: Recipe, processing: Processing) -> Collator:
    pad_id, image_id, window_size = processing.tokenizer.pad_token_id, processing.image_token_id, processing.window_size
    return Collator(pad_id, image_id, image_settings(recipe, processing), window_size, recipe.data.pack)


def prepare_data(recipe: Recipe, processing: Processing) -> dict[str, Any]:
    """Read and check all rows once, into RUN/data; returns the manifest. Nothing is read again when nothing changed."""
    check_whole(processing.folder)  # else an adapter fails only when weights are loaded, after all rows were read
    folder = recipe.run_dir / "data"
    begun = any((recipe.run_dir / "checkpoints").glob("step-*"))
    manifest = still_holds(folder, recipe.data, recipe.seed, recipe.model.path, begun)
    if manifest is None:
        images = image_settings(recipe, processing)
        model = recipe.model.path, processing.folder
        manifest = prepare(recipe.data, make_renderer(recipe, processing), images, folder, recipe.seed, model, begun)
    return manifest


def load_data(recipe: Recipe, processing: Processing, world_size: int | None = None) -> RunData:
    """Prepared data of a run and the plan of its steps; rank 0 prepares, all ranks read.

    `world_size`: the plan is for so many ranks; default: those that there are.
    """
    manifest = dist.on_main(lambda: prepare_data(recipe, processing))
    images = image_settings(recipe, processing)
    folder = recipe.run_dir / "data"
    losses = losses_of(recipe)
    policies = [losses.index(source.loss or recipe.loss) for source in recipe.data.train]
    train = Dataset(folder, "train", images, policies)
    heldout = Dataset(folder, "heldout", images)
    _tell_missing_pictures(recipe, train)
    plan = Plan(
        Mixture(train.sources, [source.weight for source in recipe.data.train], recipe.seed),
        Load(train.lengths, train.patches * processing.family.patch_cost),
        batch_size=recipe.optim.batch_size,
        epochs=recipe.train.epochs,
        world_size=world_size or dist.world_size(),
        micro_tokens=recipe.train.micro_tokens,
        pack=recipe.data.pack,
        max_steps=recipe.train.max_steps,
    )
    collate = make_collator(recipe, processing)
    measured = heldout if len(heldout) else None
    return RunData(
        train, measured, plan, collate, losses, manifest["end_id"], summary(manifest), manifest["fingerprint"]
    )


def _tell_missing_pictures(recipe: Recipe, train: Dataset) -> None:
    """Of a source whose pictures have a folder and are in no row: a column by another name would be passed over."""
    for number, source in enumerate(recipe.data.train):
        own = train.sources == number
        if source.images and own.any() and not train.patches[own].any():
            log.warning(
                "%s: none of its %d rows has a picture, though `images` is given; is their column called image, images "
                "or image_path? Other names: format: columns (see docs/formats.md)",
                source.path, int(own.sum()),
            )  # fmt: skip


def losses_of(recipe: Recipe) -> tuple[LossConfig, ...]:
    """The recipe's loss, then those that sources have instead."""
    return tuple(dict.fromkeys([recipe.loss, *(source.loss or recipe.loss for source in recipe.data.train)]))


def train_batches(data: RunData, recipe: Recipe, first_step: int, device: torch.device = _CPU) -> "Waiting":
    """This rank's micro-batches of all steps from `first_step`, made ahead by worker processes; on a GPU copied ahead,
    too.
    """
    steps = range(first_step, data.plan.steps + 1)
    sampler = _Lazy(lambda: itertools.chain.from_iterable(data.plan.micro_batches(s)[dist.rank()] for s in steps))
    on_gpu = device.type == "cuda"
    loader = _loader(data.train, sampler, data.collate, recipe.data.workers, pin_memory=on_gpu)
    with deaf_to_stop_signals():
        batches = iter(loader)
    return Waiting(copied_ahead(batches, device) if on_gpu else batches)


def heldout_batches(data: RunData, recipe: Recipe) -> Iterator[Batch]:
    """This rank's share of one pass over the held-out rows."""
    groups = heldout_micro_batches(data.heldout.lengths, dist.world_size(), recipe.train.micro_tokens, recipe.data.pack)
    return iter(_loader(data.heldout, groups[dist.rank()], data.collate, workers=0))


def write_batches(data: RunData, step: int, folder: Path) -> Path:
    """This rank's micro-batches of a step, made anew, for a person to look at: torch.load(…, weights_only=False)."""
    path = folder / "debug" / f"step-{step:08d}-rank-{dist.rank():05d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = data.plan.micro_batches(step)[dist.rank()]
    torch.save([vars(data.collate([data.train[int(index)] for index in group])) for group in groups], path)
    return path.parent


class _Lazy:
    """An iterable that begins anew each time it is iterated, as DataLoader wants of a batch sampler."""

    def __init__(self, make: Callable[[], Iterator[np.ndarray]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._make()


def _loader(
    dataset: Dataset, sampler: Iterable[np.ndarray], collate: Collator, workers: int, pin_memory: bool = False
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=_AHEAD if workers else None,
        # This process has threads, and a fork keeps for ever the locks that they hold at its moment.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=begin_data_worker,
        # Else it draws from torch's own state: once more in a run that goes on than in one that was not stopped.
        generator=torch.Generator(),
    )


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a GPU. The copy of each has begun before the one before it is handed over, on a stream of its own:
    on that of the computation it would wait until that is through.
    """
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        waiting = copied
    if waiting:
        yield _arrived(*waiting)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which does not begin with it before it is there."""
    stream = torch.cuda.current_stream(batch.input_ids.device)
    stream.wait_event(event)
    batch.record_stream(stream)
    return batch


class Waiting:
    """An iterator that adds up how long it kept the training step waiting, and what its batches lack."""

    def __init__(self, inner: Iterator[Batch]) -> None:
        self._inner = inner
        self.waited_s = 0.0
        self.lost: list[str] = []
        """Examples whose pictures were not there any more."""

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            batch = next(self._inner)
        finally:
            self.waited_s += time.perf_counter() - start
        self.lost += batch.lost
        return batch
