"""Runs and checkpoints → Hugging Face folders."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dft_mm import dist
from dft_mm.config import Recipe, load_recipe
from dft_mm.errors import InputError
from dft_mm.loss.family import FORMS
from dft_mm.model.card import model_card
from dft_mm.model.export import gather_state, write_adapter, write_model
from dft_mm.model.load import load_model
from dft_mm.model.lora import adapter_config, adapter_state, merge
from dft_mm.model.processing import Processing, load_processing
from dft_mm.sections import read_text
from dft_mm.train.module import Trainable
from dft_mm.train.run_folder import provenance
from dft_mm.train.shards import load_shard
from dft_mm.train.verify import checkpoint_name, newest_whole, read_manifest, verify


def export_live(
    module: Trainable, recipe: Recipe, processing: Processing, out: Path, step: int, end_id: int
) -> None:
    """Write the weights of a run that is in memory, or its adapter; every rank calls it.

    `end_id`: the token that ends an answer, at which the exported model is to stop.
    """
    state = gather_state(module.model, dist.is_main(), lambda name: not recipe.model.lora or ".lora_" in name)
    about = _about(recipe, processing, step)

    def write() -> None:
        card = _card(recipe, processing, _data_manifest(recipe.run_dir), step)
        if recipe.model.lora:
            peft_config = adapter_config(processing.folder, recipe.model.path, recipe.model.lora)
            write_adapter(adapter_state(state), peft_config, processing.folder, out, about, end_id, card)
        else:
            write_model(state, processing.folder, out, recipe.model.dtype, about, end_id, card)

    dist.on_main(write)


def export_checkpoint(
    run: Path, out: Path, step: int | None = None, merge_adapter: bool = False,
    scores: Callable[[int], str] = lambda step: "",
) -> int:  # fmt: skip
    """Write a run's checkpoint (the newest whole one, or that of `step`) as a Hugging Face folder; return its step.

    With LoRA this is the adapter, or the base with the adapter added when `merge_adapter`. `scores` gives a table of
    those of a step, for the model card. One process, no launcher.
    Raises InputError for a run without such a checkpoint, or an `out` that holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: there is something already; give an empty or a new folder")
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"{run} is no folder of a run that was trained: it has no recipe.yaml")
    recipe = load_recipe(run / "recipe.yaml")
    if merge_adapter and not recipe.model.lora:
        raise InputError(f"--merge: {run} has no adapter to merge; leave --merge out")
    folder = _choose(run / "checkpoints", step)
    manifest = read_manifest(folder)
    processing = load_processing(recipe.model.path)
    about = _about(recipe, processing, manifest["step"])
    data = _data_manifest(run)
    end_id = data["end_id"]
    card = _card(recipe, processing, data, manifest["step"], merge_adapter, scores(manifest["step"]))
    state = consolidate(folder, manifest["identity"]["zero_stage"])
    if not recipe.model.lora:
        write_model(state, processing.folder, out, recipe.model.dtype, about, end_id, card)
        return manifest["step"]
    adapter = adapter_state(state)
    peft_config = adapter_config(processing.folder, recipe.model.path, recipe.model.lora)
    if not merge_adapter:
        write_adapter(adapter, peft_config, processing.folder, out, about, end_id, card)
        return manifest["step"]
    with tempfile.TemporaryDirectory() as temporary:
        write_adapter(adapter, peft_config, processing.folder, Path(temporary) / "adapter", about)
        merged = merge(load_model(recipe.model.path, recipe.model.dtype), Path(temporary) / "adapter")
    write_model(merged, processing.folder, out, recipe.model.dtype, about, end_id, card)
    return manifest["step"]


def consolidate(folder: Path, stage: int) -> dict[str, Tensor]:
    """All weights of a checkpoint in float32 on the CPU, under the model's own names."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if stage == 0:
        shard = folder / "engine" / "mp_rank_00_model_states.pt"
        state = load_shard(shard, "cpu")["module"]
    else:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="engine")
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _data_manifest(run: Path) -> dict[str, Any]:
    path = run / "data" / "manifest.json"
    try:
        manifest = json.loads(read_text(path, "the run's data manifest"))
        missing = [key for key in ("end_id", "sources", "parts", "examples") if key not in manifest]
    except (ValueError, TypeError) as error:
        missing = [error]
    if missing:
        raise InputError(f"{path}: not a whole manifest ({missing[0]!r}); run `dft-mm prepare` with the recipe")
    return manifest


def _card(
    recipe: Recipe, processing: Processing, data: dict[str, Any], step: int, merged: bool = False, scores: str = ""
) -> str:
    loss = FORMS[recipe.loss.name].about
    return model_card(recipe, processing.folder, processing.family, data, step, loss, merged, scores)


def _choose(checkpoints: Path, step: int | None) -> Path:
    if step is None:
        newest = newest_whole(checkpoints)
        if newest is None:
            raise InputError(f"{checkpoints}: no whole checkpoint to export")
        return newest
    folder = checkpoints / checkpoint_name(step)
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in checkpoints.glob("step-*"))) or "none"
        raise InputError(f"--step {step}: {checkpoints} has no such checkpoint; there are {there}")
    problem = verify(folder)
    if problem:
        raise InputError(f"{folder} is damaged: {problem}")
    return folder


def _about(recipe: Recipe, processing: Processing, step: int) -> dict[str, Any]:
    """dft_mm.json: what decides this folder's scores beside its weights."""
    about: dict[str, Any] = {"step": step, "loss": recipe.loss.model_dump()}
    about["chat_template_sha256"] = hashlib.sha256((processing.chat_template or "").encode()).hexdigest()
    if processing.image_config is not None:
        about |= {"min_pixels": recipe.data.min_pixels, "max_pixels": recipe.data.max_pixels}
    return about | {"recipe": recipe.model_dump(mode="json"), "provenance": provenance()}
