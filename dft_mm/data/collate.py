"""Examples → one micro-batch: packed one behind the other into one row, or padded; with a blank picture where it has
none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dft_mm.batch import Batch, Example
from dft_mm.data.images import ImageSettings
from dft_mm.data.patches import blank_patches
from dft_mm.data.positions import mrope_positions, vision_layout


class Collator:
    """Makes micro-batches for one model.

    Args:
        pad_token_id: what stands at padded positions; nothing attends to them, so None (a tokenizer without) is 0.
        image_token_id: the id of a merged patch, for families with vision; else None.
        images: what pictures were cut with, for families with vision.
        window_size: side of a window of the vision tower's attention, in pixels, for families with vision.
        pack: one row of all examples, which attention has to keep apart, rather than a padded row for each.
    """

    def __init__(
        self,
        pad_token_id: int | None,
        image_token_id: int | None,
        images: ImageSettings | None = None,
        window_size: int | None = None,
        pack: bool = False,
    ) -> None:
        if image_token_id is not None and (images is None or window_size is None):
            raise ValueError(f"image_token_id is {image_token_id}: images and window_size are wanted too")
        self._pad = pad_token_id or 0
        self._image = image_token_id
        self._settings = images if image_token_id is not None else None
        self._window_size = window_size
        self._join = self._packed if pack else self._padded
        self._with_blank = self._blank_segment if pack else self._blank_at_the_end

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One micro-batch; of no examples at all, one from which nothing is learned.

        With vision, a micro-batch without pictures gets a blank one where no real token sees it: under ZeRO-3 all ranks
        must run the vision tower, or none.

        Raises:
            ValueError: an example's tokens of pictures are not those of its grids.
        """
        shown = list(examples) or [_unsupervised([self._pad])]
        if self._settings is not None and all(example.patches is None for example in shown):
            shown = self._with_blank(shown)
        fields, learned, owner = self._join(shown)
        at = learned.nonzero()[:, 0]
        policies = torch.tensor([example.policy for example in shown], dtype=torch.uint8)
        return Batch(
            **fields,
            **(self._pictures(shown) if self._settings else {}),
            rows=at - 1,
            targets=fields["input_ids"].flatten()[at],
            sequences=torch.unique_consecutive(owner[at], return_inverse=True)[1],
            policy=policies[owner[at]] if policies.any() else None,
            example_ids=tuple(example.id for example in examples),
            tokens=sum(len(example.ids) for example in examples),
            lost=tuple(f"{example.id}: {example.lost}" for example in examples if example.lost),
            lost_tokens=sum(example.lost_tokens for example in examples),
        )

    def _packed(self, shown: Sequence[Example]) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Fields of a batch; which of its flattened positions are learned, and whose they are."""
        lengths = tuple(len(example.ids) for example in shown)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        if self._settings is not None:
            # Text positions go first: by them other attention functions than ours find the samples, too.
            positions = torch.cat([positions, torch.cat(self._mrope(shown), dim=1)])[:, None]
        fields = {
            "input_ids": torch.cat([example.ids for example in shown])[None],
            "position_ids": positions,
            "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
            "seqlens": lengths,
        }
        owner = torch.repeat_interleave(torch.arange(len(shown)), torch.tensor(lengths))
        return fields, torch.cat([_learned(example) for example in shown]), owner

    def _padded(self, shown: Sequence[Example]) -> tuple[dict[str, Any], Tensor, Tensor]:
        """As `_packed`; padded on the right."""
        ids = pad_sequence([example.ids for example in shown], batch_first=True, padding_value=self._pad)
        fields = {
            "input_ids": ids,
            "attention_mask": pad_sequence([torch.ones_like(example.ids) for example in shown], batch_first=True),
        }
        if self._settings is not None:
            fields["position_ids"] = pad_sequence([of_row.T for of_row in self._mrope(shown)]).permute(2, 1, 0)
        learned = pad_sequence([_learned(example) for example in shown], batch_first=True)
        return fields, learned.flatten(), torch.arange(len(shown)).repeat_interleave(ids.shape[1])

    def _mrope(self, shown: Sequence[Example]) -> list[Tensor]:
        merge_size = self._settings.merge_size
        return [mrope_positions(e.ids, self._image, e.image_grid_thw, merge_size) for e in shown]

    def _blank(self) -> Example:
        """The smallest picture, which is one token."""
        grid = (1, self._settings.merge_size, self._settings.merge_size)
        pictures = {"patches": blank_patches(grid, self._settings), "image_grid_thw": torch.tensor([grid])}
        return replace(_unsupervised([self._image]), **pictures)

    def _blank_segment(self, shown: list[Example]) -> list[Example]:
        return [*shown, self._blank()]

    def _blank_at_the_end(self, shown: list[Example]) -> list[Example]:
        """Behind the last token of the shortest row, which costs no longer rows if there is a longer one."""
        blank = self._blank()
        at = min(range(len(shown)), key=lambda row: len(shown[row].ids))
        joined = {name: torch.cat([getattr(e, name) for e in (shown[at], blank)]) for name in ("ids", "supervised")}
        joined |= {"patches": blank.patches, "image_grid_thw": blank.image_grid_thw}
        return [*shown[:at], replace(shown[at], **joined), *shown[at + 1 :]]

    def _pictures(self, shown: Sequence[Example]) -> dict[str, Any]:
        """Fields of a batch."""
        settings = self._settings
        grids = torch.cat([example.image_grid_thw for example in shown if example.patches is not None])
        return {
            "patches": torch.cat([example.patches for example in shown if example.patches is not None]),
            "image_grid_thw": grids,
            "vision_layout": vision_layout(grids, settings.merge_size, self._window_size, settings.patch_size),
            "image_mean": torch.tensor(settings.image_mean),
            "image_std": torch.tensor(settings.image_std),
            "temporal_patch_size": settings.temporal_patch_size,
        }


def _learned(example: Example) -> Tensor:
    """(T,) bool: without the first token, which has nothing before it that could predict it."""
    learned = example.supervised.clone()
    learned[0] = False
    return learned


def _unsupervised(ids: list[int]) -> Example:
    return Example("", "", torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool))
