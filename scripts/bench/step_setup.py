"""What the contestants of `step` share: a model of random weights, rows of the sizes of real ones, their plan."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedModel

from dft_mm.batch import IGNORE_INDEX, Example, normalise
from dft_mm.config import Recipe
from dft_mm.data.images import ImageSettings
from dft_mm.model.builtin import builtin_folder
from dft_mm.model.folder import read_family
from dft_mm.model.freeze import freeze
from dft_mm.model.processing import Processing, load_processing
from dft_mm.study.work import Shape
from dft_mm.train.feed import RunData, image_settings, load_data
from scripts.bench.measure import REPO

ROW_SHAPES = Path(__file__).parent / "row_shapes.json"
"""Kind of rows → [tokens of the question without its pictures, tokens of the answer, [rows, columns] of patches of each
picture] of each row, as `packing` found them in real data.
"""
QWEN_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "tie_word_embeddings": True, "image_token_id": 151655, "video_token_id": 151656,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645,
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "spatial_merge_size": 2,
        "temporal_patch_size": 2, "tokens_per_second": 2,
    },
}  # fmt: skip
QWEN_1_5B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    name: str
    kind: str
    """Of the rows: vl or text."""
    config: dict[str, Any] | None
    """config.json; None: that of the built-in tiny model."""
    dtype: str
    freeze: list[str]
    max_length: int
    micro_tokens: int
    batch_size: int
    padded_rows: int = 8
    """Rows of a peer's micro-batch: TRL's default."""
    shrink: int = 1
    """Rows have this fraction of their real size."""


class PaddedInputs:
    """Examples → what transformers' collators and image processors hand to a model, padded on the right; `labels` are
    aligned with input_ids, and nothing is worked out in advance.
    """

    def __init__(self, pad_id: int, image_id: int | None, images: ImageSettings | None) -> None:
        self._pad, self._image, self._images = pad_id, image_id, images

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        def padded(rows: Iterable[Tensor], value: int) -> Tensor:
            return pad_sequence(list(rows), batch_first=True, padding_value=value)

        labels = (example.ids.masked_fill(~example.supervised, IGNORE_INDEX) for example in examples)
        inputs = {
            "input_ids": padded((example.ids for example in examples), self._pad),
            "attention_mask": padded((torch.ones_like(example.ids) for example in examples), 0),
            "labels": padded(labels, IGNORE_INDEX),
        }
        shown = [example for example in examples if example.patches is not None]
        if self._images is not None:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._image).long()
        if shown:
            patches, images = torch.cat([example.patches for example in shown]), self._images
            inputs["pixel_values"] = normalise(patches, images.image_mean, images.image_std, images.temporal_patch_size)
            inputs["image_grid_thw"] = torch.cat([example.image_grid_thw for example in shown])
        return inputs


@dataclass(frozen=True)
class Setup:
    """All that contestants share."""

    setting: Setting
    recipe: Recipe
    """At ZeRO-3, packed."""
    processing: Processing
    data: RunData
    padded: PaddedInputs
    """What peers make of examples."""
    device: torch.device
    folder: Path
    """For what a contestant writes."""
    model: PreTrainedModel
    """Its shapes, for the count of operations; on the meta device."""

    def shapes(self, step: int) -> Iterator[Shape]:
        """Of the examples of a step."""
        for index in self.data.plan.examples(step):
            example = self.data.train[int(index)]
            grids = example.image_grid_thw
            yield Shape(len(example.ids), int(example.supervised.sum()), [] if grids is None else grids.tolist())

    def in_order(self, step: int) -> list[np.ndarray]:
        """The examples of a step as they come, so many a micro-batch: the plan of trainers that do not sort."""
        order = self.data.plan.examples(step)
        return np.split(order, range(self.setting.padded_rows, len(order), self.setting.padded_rows))


def set_up(setting: Setting, folder: Path, device: torch.device) -> Setup:
    """Write rows, pictures and model below `folder` and prepare them."""
    write_rows(folder / "data", setting)
    path = write_model(folder / "model", setting, device)
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "output": str(folder / "run"),
            "deepspeed": str(REPO / "ds_configs/zero3.json"),
            "model": {"path": str(path), "dtype": setting.dtype, "freeze": setting.freeze},
            "data": {
                "train": [{"path": str(folder / "data/rows.jsonl"), "format": "messages"}],
                "max_length": setting.max_length,
                "pack": True,
            },
            "optim": {"batch_size": setting.batch_size, "lr": 1e-6},
            "train": {"micro_tokens": setting.micro_tokens, "epochs": 100},
        }
    )
    processing = load_processing(path)
    data = load_data(recipe, processing)
    with torch.device("meta"):
        model = empty_model(path, torch.bfloat16)
    if setting.freeze:
        freeze(model, processing.family, setting.freeze)
    padded = PaddedInputs(
        processing.tokenizer.pad_token_id, processing.image_token_id, image_settings(recipe, processing)
    )
    return Setup(setting, recipe, processing, data, padded, device, folder, model)


def write_rows(folder: Path, setting: Setting) -> None:
    """rows.jsonl, in the layout `messages`, and its pictures."""
    folder.mkdir(parents=True)
    shapes = json.loads(ROW_SHAPES.read_text(encoding="utf-8"))[setting.kind]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, (question, answer, pictures) in enumerate(shapes):
            names = [f"{number}-{place}.jpg" for place in range(len(pictures))]
            for name, (rows, columns) in zip(names, pictures):
                write_picture(folder / name, max(4, rows // setting.shrink), max(4, columns // setting.shrink))
            asked, said = (" ".join(["a"] * max(1, count // setting.shrink)) for count in (question, answer))
            turns = [("user", "<image>" * len(names) + asked), ("assistant", said)]
            row = {"messages": [{"role": role, "content": text} for role, text in turns]}
            file.write(json.dumps(row | ({"images": names} if names else {})) + "\n")


def write_picture(path: Path, rows: int, columns: int) -> None:
    """A JPEG of so many patches."""
    across, down = np.meshgrid(np.linspace(0, 255, 14 * columns), np.linspace(0, 255, 14 * rows))
    pixels = np.stack([across, down, across * down % 256], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=85)


def write_model(folder: Path, setting: Setting, device: torch.device) -> Path:
    """A folder of random weights with Qwen's tokenizer: the built-in one, or one of the setting's size."""
    builtin = builtin_folder("tiny-vl" if setting.kind == "vl" else "tiny-lm")
    if setting.config is None:
        return builtin
    folder.mkdir(parents=True)
    for file in builtin.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(setting.config), encoding="utf-8")
    with torch.device(device):
        model = empty_model(folder, getattr(torch, setting.dtype))
    model.save_pretrained(folder)
    return folder


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config.json, made on the device of the context, without reading weights."""
    model_class = getattr(transformers, read_family(folder).model_class)
    return model_class._from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
