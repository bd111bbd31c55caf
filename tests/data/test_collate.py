from dataclasses import replace

import pytest
import torch

from dft_mm.batch import IGNORE_INDEX, Example
from dft_mm.data.collate import Collator
from dft_mm.data.images import ImageSettings
from dft_mm.model.attention import PACKED, pack_tower

PAD, IMAGE, START, END = 0, 10, 11, 12
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SETTINGS = ImageSettings(14, 2, 2, MEAN, STD, 3136, 100352)
WINDOW = 56


def text(id_, length, supervised=0):
    ids = torch.arange(20, 20 + length)
    return Example(id_, "test", ids, torch.arange(length) >= length - supervised)


def picture(id_, *grids, tail=4, seed=0):
    ids, patches = [21, 22], 0
    for t, h, w in grids:
        ids += [START, *[IMAGE] * (t * h * w // 4), END, 23]
        patches += t * h * w
    ids = torch.tensor(ids + list(range(30, 30 + tail)))
    values = torch.randint(256, (patches, 588), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Example(id_, "test", ids, torch.arange(len(ids)) >= len(ids) - tail, values, torch.tensor(grids))


def pixel_values(patches):
    """(P, 588) bytes → (P, 1176) float32 by the formula alone."""
    pixels = (patches.double().reshape(-1, 3, 1, 196) / 255).float()
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (MEAN, STD))
    return ((pixels - mean) / std).repeat(1, 1, 2, 1).reshape(-1, 1176)


def test_rows_are_padded_on_the_right_and_labels_stay_aligned():
    batch = Collator(PAD, None)([text("a", 3, supervised=1), text("b", 5, supervised=2)])
    assert batch.input_ids.tolist() == [[20, 21, 22, PAD, PAD], [20, 21, 22, 23, 24]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    ignored = IGNORE_INDEX
    assert batch.labels.tolist() == [[ignored, ignored, 22, ignored, ignored], [ignored, ignored, ignored, 23, 24]]
    assert batch.example_ids == ("a", "b")
    assert batch.tokens == 8
    assert batch.supervised_tokens == 3
    assert set(batch.model_inputs) == {"input_ids", "attention_mask"}
    for tensor in (batch.input_ids, batch.attention_mask, batch.labels):
        assert tensor.dtype == torch.int64


def test_the_first_token_of_a_row_is_never_a_label():
    example = text("a", 3, supervised=3)
    batch = Collator(PAD, None)([example])
    assert batch.labels.tolist() == [[IGNORE_INDEX, 21, 22]]
    assert example.ids.tolist() == [20, 21, 22]  # the data set's own tensor is left alone


def test_pictures_stand_in_row_order():
    one, two = picture("a", (1, 2, 4), (1, 4, 4), seed=1), picture("b", (1, 2, 2), seed=2)
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW)([one, text("t", 30), two])
    assert torch.equal(batch.patches, torch.cat([one.patches, two.patches]))
    assert (batch.patches.dtype, batch.patches.nbytes) == (torch.uint8, 28 * 588)
    assert torch.equal(batch.model_inputs["pixel_values"], pixel_values(batch.patches))
    assert batch.image_grid_thw.tolist() == [[1, 2, 4], [1, 4, 4], [1, 2, 2]]
    assert (batch.input_ids == IMAGE).sum(1).tolist() == [6, 0, 1]
    assert batch.tokens == len(one.ids) + 30 + len(two.ids)


def test_a_batch_without_pictures_gets_a_blank_one_after_its_shortest_row():
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW)([text("a", 5, supervised=2), text("b", 3, supervised=1)])
    assert batch.input_ids.tolist() == [[20, 21, 22, 23, 24], [20, 21, 22, IMAGE, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]] * 3
    assert batch.labels[1].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 22, IGNORE_INDEX, IGNORE_INDEX]
    assert batch.patches.shape == (4, 588)
    assert batch.model_inputs["pixel_values"].shape == (4, 1176)
    assert len(set(batch.patches.flatten().tolist())) == 1
    assert batch.image_grid_thw.tolist() == [[1, 2, 2]]
    assert batch.tokens == 8
    assert batch.supervised_tokens == 3


@pytest.mark.parametrize(("image", "ids"), [(None, [[PAD]]), (IMAGE, [[PAD, IMAGE]])])
def test_an_empty_micro_batch_teaches_nothing(image, ids):
    batch = Collator(PAD, image, SETTINGS, WINDOW)([])
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.all()
    assert (batch.labels == IGNORE_INDEX).all()
    assert batch.tokens == batch.supervised_tokens == 0
    assert batch.example_ids == ()
    assert (batch.patches is None) == (image is None)
    assert ("pixel_values" in batch.model_inputs) == (image is not None)


def test_a_family_with_vision_needs_the_settings_of_its_pictures():
    for given in ({}, {"images": SETTINGS}, {"window_size": WINDOW}):
        with pytest.raises(ValueError, match="image_token_id is 10: images and window_size"):
            Collator(PAD, IMAGE, **given)


def test_pictures_that_the_tokens_do_not_have_places_for_are_refused():
    example = replace(picture("a", (1, 4, 4)), image_grid_thw=torch.tensor([[1, 4, 6]]))
    for pack in (False, True):
        with pytest.raises(ValueError, match="4 tokens of pictures, 6 merged patches"):
            Collator(PAD, IMAGE, SETTINGS, WINDOW, pack)([example])


@pytest.mark.parametrize("pack", [False, True])
def test_a_batch_goes_to_a_device_whole_but_for_the_grids(pack):
    """Whoever reads them would wait for the device."""
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW, pack)([picture("a", (1, 2, 2)), text("b", 3)])
    moved = batch.to(torch.device("meta"))
    named = moved.model_inputs | vars(moved)
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    assert {name for name, value in tensors.items() if value.device.type != "meta"} == {"image_grid_thw"}
    assert tensors.keys() > {"rows", "targets", "sequences", "image_mean", "image_std", "pixel_values"}
    assert moved.model_inputs.keys() == batch.model_inputs.keys() > {"image_window_index", "image_max_window_seqlen"}
    assert moved.example_ids == batch.example_ids


def test_packed_examples_stand_behind_each_other_in_one_row():
    batch = Collator(PAD, None, pack=True)([text("a", 3, supervised=1), text("b", 5, supervised=2), text("c", 2)])
    assert batch.input_ids.tolist() == [[20, 21, 22, 20, 21, 22, 23, 24, 20, 21]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 8, 10]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.seqlens == (3, 5, 2)
    assert batch.attention_mask is None
    assert (batch.rows.tolist(), batch.targets.tolist()) == ([1, 5, 6], [22, 23, 24])
    assert (batch.tokens, batch.example_ids) == (10, ("a", "b", "c"))
    lengths = {name: batch.model_inputs.pop(name) for name in ("max_length_q", "max_length_k")}
    assert lengths == {"max_length_q": 5, "max_length_k": 5}
    assert batch.model_inputs["cu_seq_lens_q"] is batch.model_inputs["cu_seq_lens_k"] is batch.cu_seqlens


def test_the_first_token_of_a_packed_example_is_not_learned_from_the_one_before_it():
    batch = Collator(PAD, None, pack=True)([text("a", 3, supervised=3), text("b", 2, supervised=2), text("c", 1, 1)])
    assert (batch.rows.tolist(), batch.targets.tolist()) == ([0, 1, 3], [21, 22, 21])
    assert batch.labels.tolist() == [[IGNORE_INDEX, 21, 22, IGNORE_INDEX, 21, IGNORE_INDEX]]


@pytest.mark.parametrize("pack", [False, True])
def test_each_target_knows_its_loss_and_its_example(pack):
    """`sequences` numbers the examples that have targets."""
    examples = [replace(text(n, 4, supervised=k), policy=p) for n, k, p in (("a", 1, 1), ("b", 0, 0), ("c", 2, 0))]
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW, pack)(examples)
    assert batch.policy.tolist() == [1, 0, 0]
    assert batch.policy.dtype == torch.uint8
    assert batch.sequences.tolist() == [0, 1, 1]
    assert Collator(PAD, None, pack=pack)([text("a", 3, supervised=1)]).policy is None


def test_the_blank_picture_of_packed_examples_is_a_segment_of_its_own():
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW, pack=True)([text("a", 5, supervised=2), text("b", 3, supervised=1)])
    assert batch.input_ids.tolist() == [[20, 21, 22, 23, 24, 20, 21, 22, IMAGE]]
    assert batch.seqlens == (5, 3, 1)
    assert batch.position_ids.tolist() == [[[0, 1, 2, 3, 4, 0, 1, 2, 0]]] * 4
    assert (batch.targets.tolist(), batch.tokens) == ([23, 24, 22], 8)
    assert (batch.patches.shape, batch.image_grid_thw.tolist()) == ((4, 588), [[1, 2, 2]])


@pytest.mark.parametrize(("image", "lengths"), [(None, (1,)), (IMAGE, (1, 1))])
def test_an_empty_packed_micro_batch_teaches_nothing(image, lengths):
    batch = Collator(PAD, image, SETTINGS, WINDOW, pack=True)([])
    assert batch.seqlens == lengths
    assert batch.tokens == batch.supervised_tokens == 0
    assert (batch.example_ids, (batch.patches is None)) == ((), image is None)


def test_a_tokenizer_without_a_padding_token_will_do():
    batch = Collator(None, None)([text("a", 2), text("b", 3)])
    assert batch.input_ids.tolist() == [[20, 21, 0], [20, 21, 22]]


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    text_config = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision_config = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
        "fullatt_block_indexes": [1], "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text_config, vision_config=vision_config, image_token_id=IMAGE, video_token_id=13,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).double().eval()


def alone(model, example):
    """The model's own call for one conversation, with positions from its own function, nothing of ours."""
    ids = example.ids[None]
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    pixels = {}
    if example.patches is not None:
        types = (ids == IMAGE).int()
        positions = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=example.image_grid_thw)[0]
        pixels = {"pixel_values": pixel_values(example.patches), "image_grid_thw": example.image_grid_thw}
    return model(input_ids=ids, position_ids=positions, use_cache=False, **pixels).logits[0]


MIXED = [
    [picture("a", (1, 4, 6), seed=1), text("b", 9), picture("c", (1, 2, 2), (1, 8, 4), seed=3), text("d", 31)],
    [text("a", 7), text("b", 12), text("c", 7)],
    [text("a", 6)],
    [picture("a", (1, 6, 8), tail=9, seed=4)],
]


WAYS = {"padded": (False, "sdpa"), "packed": (True, PACKED), "packed, plain sdpa": (True, "sdpa")}


@pytest.fixture(params=WAYS)
def called(request, model):
    """Examples → the logits of each, by a batch of all of them; the plain way of packed rows makes a mask."""
    pack, implementation = WAYS[request.param]
    collate = Collator(PAD, IMAGE, SETTINGS, WINDOW, pack)

    def call(examples):
        batch = collate(examples)
        model.set_attn_implementation(implementation)
        pack_tower(model)
        logits = model(**batch.model_inputs, use_cache=False).logits
        model.set_attn_implementation("sdpa")
        return logits[0].split(batch.seqlens) if pack else logits

    return call


@pytest.mark.parametrize("examples", MIXED, ids=["mixed", "text only", "one text", "one picture"])
@torch.no_grad()
def test_an_example_in_a_batch_means_what_it_means_alone(model, called, examples):
    for example, logits in zip(examples, called(examples)):
        expected = alone(model, example)
        assert expected.abs().max() > 0.5  # the comparison has something to compare
        torch.testing.assert_close(logits[: len(example.ids)], expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_pictures_and_their_places_matter_to_this_model(model):
    """Otherwise the test above could not fail."""
    example = picture("a", (1, 4, 6), seed=1)
    inputs = Collator(PAD, IMAGE, SETTINGS, WINDOW)([example]).model_inputs
    right = model(**inputs, use_cache=False).logits
    flat = inputs | {"position_ids": torch.arange(len(example.ids)).expand(3, 1, -1)}
    assert (model(**flat, use_cache=False).logits - right).abs().max() > 1e-2
    other = inputs | {"pixel_values": -inputs["pixel_values"]}
    assert (model(**other, use_cache=False).logits - right).abs().max() > 1e-2


def test_the_model_is_not_asked_for_positions(model, monkeypatch):
    """It would have to wait for the device."""
    monkeypatch.setattr(model.model, "get_rope_index", None)
    batch = Collator(PAD, IMAGE, SETTINGS, WINDOW)(MIXED[0])
    assert model(**batch.model_inputs, use_cache=False).logits.isfinite().all()


def test_an_empty_micro_batch_runs_through_the_model(called):
    (logits, *_) = called([])
    assert logits.isfinite().all()
