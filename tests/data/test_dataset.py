import base64
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prepared import good, rows, run, settings, source
from torch.utils.data import DataLoader

from dft_mm.config import DataConfig
from dft_mm.data.dataset import Dataset
from dft_mm.data.patches import to_patches


def opened(tmp_path, *more, count=6, **options):
    data = rows(tmp_path, *more, count=count)
    run(tmp_path / "data", data, **options)
    return Dataset(tmp_path / "data", "train", settings(DataConfig(train=[data])))


def test_an_example_has_its_tokens_and_pictures(tmp_path):
    dataset = opened(tmp_path)
    for index in range(6):
        example = dataset[index]
        ids, supervised = dataset.tokens(index)
        assert example.id == f"a:{index}"
        assert (example.ids.dtype, example.supervised.dtype) == (torch.int64, torch.bool)
        assert example.ids.tolist() == ids.tolist()
        assert example.supervised.tolist() == supervised.tolist()
        if index % 2:
            assert example.patches is None
            assert example.image_grid_thw is None
        else:
            picture = Image.open(tmp_path / f"images/{index}.png").convert("RGB")
            patches, grid = to_patches([picture], settings(DataConfig(train=[source(tmp_path / "a.jsonl")])))
            assert torch.equal(example.patches, patches)
            assert example.image_grid_thw.tolist() == grid.tolist() == [[1, 4 + 2 * index, 6]]
        example.ids[0] = 0  # examples are the caller's own, never the file's
    assert dataset[0].ids[0] != 0


def test_meta_says_where_an_example_comes_from(tmp_path):
    dataset = opened(tmp_path, "\n", good(9, ["0.png", "2.png"]) | {"id": "two"})
    file = str(tmp_path / "a.jsonl")
    assert {key: dataset.meta(6)[key] for key in ("id", "file", "line", "row")} == {
        "id": "two", "file": file, "line": 8, "row": 6,
    }  # fmt: skip
    paths = [str(tmp_path / "images" / name) for name in ("0.png", "2.png")]
    assert dataset.meta(6)["images"] == [{"path": paths[0], "grid": [1, 4, 6]}, {"path": paths[1], "grid": [1, 8, 6]}]
    assert dataset.meta(1)["images"] == []


def test_more_rows_than_one_batch_of_the_file(tmp_path):
    dataset = opened(tmp_path, *[good(n % 7) for n in range(600)], count=0)
    assert len(dataset) == len(dataset.lengths) == 600
    for index in (0, 255, 256, 511, 512, 599):
        assert dataset.meta(index)["row"] == index
        assert len(dataset[index].ids) == dataset.lengths[index]
        assert dataset[index].supervised[1:].sum() == dataset.supervised[index]
    assert (dataset.lengths.dtype, dataset.supervised.dtype) == (np.int64, np.int64)


def test_an_empty_split_is_empty(tmp_path):
    opened(tmp_path)
    heldout = Dataset(tmp_path / "data", "heldout", None)
    assert (len(heldout), heldout.lengths.tolist()) == (0, [])


def test_a_picture_in_the_row_itself_is_kept_with_the_data(tmp_path):
    rows(tmp_path, count=1)
    content = (tmp_path / "images/0.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    dataset = opened(tmp_path, good(1, uri), good(1, [uri, "0.png"]), count=1)
    assert torch.equal(dataset[1].patches, dataset[0].patches)
    assert torch.equal(dataset[2].patches, torch.cat([dataset[0].patches] * 2))
    (tmp_path / "a.jsonl").unlink()
    assert torch.equal(dataset[1].patches, dataset[0].patches)


@pytest.mark.parametrize("change", ["vanished", "broken", "other size", "other pixels", "link"])
def test_a_picture_that_is_no_longer_the_same_leaves_its_row_unlearned(tmp_path, change):
    dataset = opened(tmp_path)
    path = tmp_path / "images/2.png"
    image = Image.open(path)
    image.load()
    before = dataset[2].patches
    path.unlink()
    if change == "broken":
        path.write_bytes(b"no picture")
    elif change == "other size":
        image.crop((0, 0, 56, 56)).save(path)
    elif change == "other pixels":
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    elif change == "link":
        path.symlink_to("/etc/hostname")
    lost = dataset[2]
    assert "2.png" in lost.lost
    assert lost.lost_tokens == dataset.supervised[2] > 0
    assert not lost.supervised.any()
    assert lost.ids.tolist() == dataset.tokens(2)[0].tolist()  # the slot stays as it was planned
    assert (lost.patches.shape, lost.patches.unique().numel()) == (before.shape, 1)
    path.unlink(missing_ok=True)
    image.save(path)
    assert torch.equal(dataset[2].patches, before)


def test_a_worker_process_maps_the_file_itself(tmp_path):
    dataset = opened(tmp_path, *[good(400)] * 50)
    packed = pickle.dumps(dataset)
    assert len(packed) < 2000
    assert torch.equal(pickle.loads(packed)[3].ids, dataset[3].ids)
    for index, example in enumerate(DataLoader(dataset, batch_size=None, sampler=range(6), num_workers=1)):
        assert torch.equal(example.ids, dataset[index].ids)


def test_the_index_is_mapped_and_not_read(tmp_path):
    dataset = opened(tmp_path)
    index = json.loads((tmp_path / "data/manifest.json").read_text())["files"]["index.arrow"]
    assert index == (tmp_path / "data/index.arrow").stat().st_size
    assert str(tmp_path / "data/index.arrow") in Path("/proc/self/maps").read_text()
    assert len(dataset) == 6
