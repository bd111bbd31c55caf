"""Examples → one padded micro-batch, with a blank picture where it has none."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from dft_mm.batch import IGNORE_INDEX, Batch, Example
from dft_mm.data.images import ImageSettings
from dft_mm.data.patches import blank_patches


class Collator:
    """Makes micro-batches for one model.

    Args:
        pad_token_id: what stands at padded positions; nothing attends to them, so None (a tokenizer without) is 0.
        image_token_id: the id of a merged patch, for families with vision; else None.
        images: what pictures were cut with, for families with vision.
    """

    def __init__(
        self, pad_token_id: int | None, image_token_id: int | None, images: ImageSettings | None = None
    ) -> None:
        if image_token_id is not None and images is None:
            raise ValueError(f"image_token_id is {image_token_id}: images, the settings of pictures, are wanted too")
        self._pad = pad_token_id or 0
        self._image = image_token_id
        self._settings = images if image_token_id is not None else None

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pad the examples on the right; none at all gives a micro-batch from which nothing is learned.

        With vision, a micro-batch without pictures gets a blank one after the last token of its shortest row, where
        no real token sees it: under ZeRO-3 all ranks must run the vision tower, or none.
        """
        ids = [example.ids for example in examples] or [torch.tensor([self._pad])]
        labels = [_labels(example) for example in examples] or [torch.tensor([IGNORE_INDEX])]
        pictures = [example for example in examples if example.patches is not None]
        patches = [example.patches for example in pictures]
        grids = [example.image_grid_thw for example in pictures]
        if self._settings is not None and not pictures:
            shortest = min(range(len(ids)), key=lambda row: len(ids[row]))
            ids[shortest] = torch.cat([ids[shortest], torch.tensor([self._image])])
            labels[shortest] = torch.cat([labels[shortest], torch.tensor([IGNORE_INDEX])])
            blank = (1, self._settings.merge_size, self._settings.merge_size)  # the smallest picture: one token
            patches, grids = [blank_patches(blank, self._settings)], [torch.tensor([blank])]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self._pad)
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        # Without token types Qwen2.5-VL falls back to one-dimensional positions and says nothing.
        types = None if self._image is None else ((input_ids == self._image) & (attention_mask == 1)).long()
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        of_example, at = (padded != IGNORE_INDEX).nonzero(as_tuple=True)
        policies = torch.tensor([example.policy for example in examples] or [0], dtype=torch.uint8)
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            rows=of_example * input_ids.shape[1] + at - 1,
            targets=padded[of_example, at],
            sequences=torch.unique_consecutive(of_example, return_inverse=True)[1],
            example_ids=tuple(example.id for example in examples),
            tokens=sum(len(example.ids) for example in examples),
            policy=policies[of_example] if policies.any() else None,
            lost=tuple(f"{example.id}: {example.lost}" for example in examples if example.lost),
            lost_tokens=sum(example.lost_tokens for example in examples),
            mm_token_type_ids=types,
            patches=torch.cat(patches) if patches else None,
            image_grid_thw=torch.cat(grids) if grids else None,
            image_mean=self._settings.image_mean if self._settings else (),
            image_std=self._settings.image_std if self._settings else (),
            temporal_patch_size=self._settings.temporal_patch_size if self._settings else 1,
        )


def _labels(example: Example) -> torch.Tensor:
    labels = example.ids.masked_fill(~example.supervised, IGNORE_INDEX)
    labels[0] = IGNORE_INDEX  # nothing stands before it that could predict it
    return labels
