"""The examples of a prepared data set, memory-mapped: a million rows take no memory until they are asked for."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from dft_mm.batch import Example
from dft_mm.data.images import ImageError, ImageSettings, decode_image, image_grid, image_hash, read_image, to_patches


class Dataset:
    """One split, in file order; its pictures are decoded when an example is taken.

    Args:
        folder: what `prepare` wrote.
        images: the settings it was prepared with; None where pictures are not wanted.
    """

    lengths: np.ndarray
    """(n,) int64 tokens of each example."""
    supervised: np.ndarray
    """(n,) int64 tokens of each that the loss counts."""

    def __init__(self, folder: Path, split: Literal["train", "heldout"], images: ImageSettings | None) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
        self._arguments = folder, split, images
        self._images = images
        heldout = np.load(folder / "heldout.npy")
        self._rows = np.flatnonzero(heldout == (split == "heldout"))
        self.lengths = self._table["length"].to_numpy()[self._rows]
        self.supervised = self._table["supervised_tokens"].to_numpy()[self._rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, self._arguments  # a worker process maps the file itself instead of being sent its content

    def __len__(self) -> int:
        return len(self._rows)

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (T,) int32 and supervised (T,) bool."""
        row = int(self._rows[index])
        ids, supervised = self._table["ids"][row].values, self._table["supervised"][row].values
        return ids.to_numpy(), supervised.to_numpy(zero_copy_only=False)

    def meta(self, index: int) -> dict[str, Any]:
        """Where an example comes from: id, source, file, line, row, images (path and grid)."""
        row = int(self._rows[index])
        where = {name: self._table[name][row].as_py() for name in ("id", "source", "file", "line", "row")}
        root = Path(self._table["image_root"][row].as_py()).absolute()
        pairs = zip(self._table["images"][row].as_py(), self._table["grids"][row].as_py())
        return where | {"images": [{"path": str(root / path), "grid": grid} for path, grid in pairs]}

    def __getitem__(self, index: int) -> Example:
        """Raises RuntimeError when a picture is no longer what it was when the data was prepared."""
        row = int(self._rows[index])
        ids, supervised = self.tokens(index)
        pixel_values = grid = None
        if len(self._table["images"][row]):
            pixel_values, grid = self._patches(row)
        return Example(
            id=self._table["id"][row].as_py(),
            source=self._table["source"][row].as_py(),
            ids=torch.from_numpy(ids.astype(np.int64)),
            supervised=torch.from_numpy(supervised.copy()),
            pixel_values=pixel_values,
            image_grid_thw=grid,
        )

    def _patches(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._images is not None
        names = ("id", "image_root", "images", "image_hashes", "grids")
        id_, root, paths, hashes, grids = (self._table[name][row].as_py() for name in names)
        pictures = []
        for path, expected, grid in zip(paths, hashes, grids):
            try:
                data = read_image(path, Path(root))
                picture = decode_image(data, path)
                same = image_hash(data) == expected and list(image_grid(*picture.size, self._images)) == grid
            except ImageError as error:
                raise RuntimeError(f"row {id_}: {Path(root, path)} was good when it was prepared: {error}") from error
            if not same:
                raise RuntimeError(
                    f"row {id_}: {Path(root, path)} is not the picture it was when it was prepared; "
                    "remove the run's data folder to prepare anew"
                )
            pictures.append(picture)
        return to_patches(pictures, self._images)
