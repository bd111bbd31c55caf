"""Examples → one padded micro-batch, with a blank picture where it has none."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from dft_mm.batch import IGNORE_INDEX, Batch, Example

_BLANK_PATCHES, _BLANK_GRID = (4, 1176), (1, 2, 2)  # 2 x 2 patches: the smallest picture, one merged token


class Collator:
    """Makes micro-batches for one model.

    Args:
        pad_token_id: what stands at padded positions; nothing attends to them, so None (a tokenizer without) is 0.
        image_token_id: the id of a merged patch, for families with vision; else None.
    """

    def __init__(self, pad_token_id: int | None, image_token_id: int | None) -> None:
        self._pad = pad_token_id or 0
        self._image = image_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pad the examples on the right; none at all gives a micro-batch from which nothing is learned.

        With vision, a micro-batch without pictures gets a blank one after the last token of its shortest row, where
        no real token sees it: under ZeRO-3 all ranks must run the vision tower, or none.
        """
        ids = [example.ids for example in examples] or [torch.tensor([self._pad])]
        labels = [_labels(example) for example in examples] or [torch.tensor([IGNORE_INDEX])]
        pictures = [example for example in examples if example.pixel_values is not None]
        pixels = [example.pixel_values for example in pictures]
        grids = [example.image_grid_thw for example in pictures]
        if self._image is not None and not pictures:
            shortest = min(range(len(ids)), key=lambda row: len(ids[row]))
            ids[shortest] = torch.cat([ids[shortest], torch.tensor([self._image])])
            labels[shortest] = torch.cat([labels[shortest], torch.tensor([IGNORE_INDEX])])
            pixels, grids = [torch.zeros(_BLANK_PATCHES)], [torch.tensor([_BLANK_GRID])]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self._pad)
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        # Without token types Qwen2.5-VL falls back to one-dimensional positions and says nothing.
        types = None if self._image is None else ((input_ids == self._image) & (attention_mask == 1)).long()
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            example_ids=tuple(example.id for example in examples),
            tokens=sum(len(example.ids) for example in examples),
            mm_token_type_ids=types,
            pixel_values=torch.cat(pixels) if pixels else None,
            image_grid_thw=torch.cat(grids) if grids else None,
        )


def _labels(example: Example) -> torch.Tensor:
    labels = example.ids.masked_fill(~example.supervised, IGNORE_INDEX)
    labels[0] = IGNORE_INDEX  # nothing stands before it that could predict it
    return labels
