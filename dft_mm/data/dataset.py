"""The examples of a prepared data set, memory-mapped: a million rows take no memory until they are asked for."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from dft_mm.batch import Example
from dft_mm.data.images import ImageError, ImageSettings, decode_image, image_grid, image_hash, read_image
from dft_mm.data.patches import blank_patches, to_patches


class Dataset:
    """One split, or all rows, in file order; its pictures are decoded when an example is taken.

    Args:
        folder: what `prepare` wrote.
        images: the settings it was prepared with; None where pictures are not wanted.
        policies: the number of each source's loss.
    """

    lengths: np.ndarray
    """(n,) int64 tokens of each example."""
    supervised: np.ndarray
    """(n,) int64 tokens of each that the loss counts."""
    patches: np.ndarray
    """(n,) int64 picture patches of each."""
    heldout: np.ndarray
    """(n,) bool: measured, not learned from."""
    sources: np.ndarray
    """(n,) int64 number of each one's source in the recipe, those to learn from first."""

    def __init__(
        self, folder: Path, split: Literal["train", "heldout", "all"], images: ImageSettings | None,
        policies: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._arguments = folder, split, images, policies
        self._policies = policies
        self.images = images
        self._folder = folder
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._files = manifest["parts"]
        self._paths = [source["path"] for source in manifest["sources"]]
        index = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
        heldout = index["heldout"].to_numpy()
        chosen = np.flatnonzero((heldout == (split == "heldout")) | (split == "all"))
        self.heldout = heldout[chosen]
        self._ids, self._rows = index["id"], chosen
        self._part, self._at = (index[name].to_numpy()[chosen] for name in ("part", "at"))
        self.lengths, self.supervised, self.patches = (
            index[name].to_numpy()[chosen] for name in ("length", "supervised_tokens", "patches")
        )
        of_part = np.array([part["source"] for part in self._files], dtype=np.int64)
        self.sources = of_part[self._part]

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, self._arguments  # a worker process maps the files itself instead of being sent their content

    def __len__(self) -> int:
        return len(self._rows)

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (T,) int32 and supervised (T,) bool."""
        table, at = self._place(index)
        ids, supervised = table["ids"][at].values, table["supervised"][at].values
        return ids.to_numpy(), supervised.to_numpy(zero_copy_only=False)

    def meta(self, index: int) -> dict[str, Any]:
        """Where an example comes from: id, source, file, line, row, images (path and grid), overlap."""
        table, at = self._place(index)
        where = {"id": self.id(index), "source": self._paths[self.sources[index]]}
        where["file"] = self._files[self._part[index]]["file"]
        where |= {name: table[name][at].as_py() for name in ("line", "row", "overlap")}
        root = Path(table["image_root"][at].as_py()).absolute()
        pairs = zip(table["images"][at].as_py(), table["grids"][at].as_py())
        return where | {"images": [{"path": str(root / path), "grid": grid} for path, grid in pairs]}

    def id(self, index: int) -> str:
        return self._ids[int(self._rows[index])].as_py()

    def find(self, id_: str) -> int | None:
        """The index of the example with this id."""
        row = self._ids.index(id_).as_py()
        at = np.flatnonzero(self._rows == row)
        return int(at[0]) if len(at) else None

    def __getitem__(self, index: int) -> Example:
        """An example whose picture is gone or another keeps its place: its picture is blank, and it is not learned."""
        ids, supervised = self.tokens(index)
        table, at = self._place(index)
        patches = grid = lost = None
        if len(table["images"][at]):
            grids = table["grids"][at].as_py()
            grid = torch.tensor(grids)
            try:
                patches = self._patches(table, at, grids)
            except ImageError as error:
                lost = str(error)
                patches = torch.cat([blank_patches(tuple(grid), self.images) for grid in grids])
                supervised = np.zeros_like(supervised)
        return Example(
            id=self.id(index),
            source=self._paths[self.sources[index]],
            ids=torch.from_numpy(ids.astype(np.int64)),
            supervised=torch.from_numpy(supervised.copy()),
            patches=patches,
            image_grid_thw=grid,
            policy=self._policies[self.sources[index]] if self._policies else 0,
            lost=lost,
            lost_tokens=int(self.supervised[index]) if lost else 0,
        )

    def _place(self, index: int) -> tuple[pa.Table, int]:
        """The example's part, and its row there."""
        return _open(self._folder / "parts" / f"{self._files[self._part[index]]['name']}.arrow"), int(self._at[index])

    def _patches(self, table: pa.Table, at: int, grids: list[list[int]]) -> torch.Tensor:
        """(P, 588) uint8; raises ImageError when a picture is no longer what it was when the data was prepared."""
        assert self.images is not None
        root, paths, hashes, limits = (
            table[name][at].as_py() for name in ("image_root", "images", "image_hashes", "limits")
        )
        settings = [self.images.limited(*limit) for limit in limits]
        pictures = []
        for path, expected, grid, of_picture in zip(paths, hashes, grids, settings):
            data = read_image(path, Path(root))
            if image_hash(data) != expected:
                raise ImageError("changed", f"{Path(root, path)} is not the picture that it was when it was prepared")
            picture = decode_image(data, path)
            assert list(image_grid(*picture.size, of_picture)) == grid
            pictures.append(picture)
        return to_patches(pictures, settings)[0]


@functools.lru_cache(maxsize=4096)
def _open(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
