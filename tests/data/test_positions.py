import random

import pytest
import torch
from tiny_models import IMAGE_ID, tiny_vl

from dft_mm.data.positions import mrope_positions, vision_layout

START, END = 502, 503


@pytest.fixture(scope="module")
def model():
    return tiny_vl(True)


def sample(pictures, texts):
    """ids of one sample: text of each length, and pictures between; a grid's tokens stand between start and end."""
    ids = []
    for number, length in enumerate(texts):
        ids += [7] * length
        if number < len(pictures):
            t, h, w = pictures[number]
            ids += [IMAGE_ID] * (t * h * w // 4)
    return torch.tensor(ids), torch.tensor(pictures).reshape(-1, 3)


def by_the_model(model, ids, grids):
    types = (ids == IMAGE_ID).int()[None]
    return model.model.get_rope_index(ids[None], mm_token_type_ids=types, image_grid_thw=grids)[0][:, 0]


def random_samples(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        frames, side = [1, 1, 1, 3], range(2, 20, 2)
        pictures = [(rng.choice(frames), rng.choice(side), rng.choice(side)) for _ in range(rng.randrange(5))]
        texts = [rng.choice([0, 1, 9]), *[rng.choice([1, 2, 17]) for _ in pictures[1:]], rng.choice([0, 1, 9])]
        yield pictures, texts if pictures else [rng.randint(1, 20)]


def test_positions_are_the_models_own(model):
    seen = set()
    for pictures, texts in random_samples(seed=3, count=200):
        ids, grids = sample(pictures, texts)
        ours = mrope_positions(ids, IMAGE_ID, grids if pictures else None, merge_size=2)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, by_the_model(model, ids, grids)), (pictures, texts)
        seen.add((len(pictures), texts[0] == 0, texts[-1] == 0))
    assert {(4, True, True), (1, True, False), (1, False, True), (0, False, False)} <= seen


def test_a_picture_directly_behind_another_begins_where_text_would():
    """The model's own function cannot tell two such pictures apart."""
    ids, grids = sample([(1, 2, 4), (1, 4, 2)], [1, 0, 2])
    assert mrope_positions(ids, IMAGE_ID, grids, merge_size=2).tolist() == [
        [0, 1, 1, 3, 3, 5, 6],
        [0, 1, 1, 3, 4, 5, 6],
        [0, 1, 2, 3, 3, 5, 6],
    ]


def test_tokens_that_are_not_those_of_the_grids_are_refused():
    ids, grids = sample([(1, 4, 4)], [2, 2])
    with pytest.raises(ValueError, match="3 tokens of pictures, 4 merged patches"):
        mrope_positions(ids[ids.ne(IMAGE_ID) | (torch.arange(8) > 2)], IMAGE_ID, grids, merge_size=2)
    ids[[1, 3]] = ids[[3, 1]]
    with pytest.raises(ValueError, match="other tokens stand between"):
        mrope_positions(ids, IMAGE_ID, grids, merge_size=2)


@torch.no_grad()
def test_a_tower_that_is_told_its_layout_computes_the_same_and_never_asks_the_grids(model, monkeypatch):
    visual, config = model.model.visual, model.config.vision_config
    for pictures, _ in random_samples(seed=5, count=12):
        if not pictures:
            continue
        grids = torch.tensor(pictures)
        pixels = torch.randn(int(grids.prod(1).sum()), 1176)
        layout = vision_layout(grids, config.spatial_merge_size, config.window_size, config.patch_size)
        for kind in ("", "_window"):
            assert layout[f"image_max{kind}_seqlen"] == max(layout[f"image_cu{kind}_seqlens"].diff().tolist())
        told = {name.removeprefix("image_"): value for name, value in layout.items()}
        # A tensor without values: whatever still asked it for one would fail.
        assert torch.equal(visual(pixels, grids.to("meta"), **told).pooler_output, visual(pixels, grids).pooler_output)
