import pytest
import torch
from PIL import Image

from dft_mm.model.load import load_model
from dft_mm.model.processing import load_processing
from dft_mm.study.digits import QUESTION, reasoning, split_problems
from dft_mm.study.tiny_reader import make_tokenizer, write_tiny_reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    write_tiny_reader(folder, 0)
    return folder


def _texts():
    yield QUESTION
    for problem in split_problems(0).seen[::7]:
        for slip in (0, 4):
            steps, answer = reasoning(problem, slip)
            yield f"<think>\n{steps}\n</think>\n<answer>\n{answer}\n</answer>"


def test_every_text_survives_the_tokenizer_exactly(folder):
    tokenizer = load_processing(folder).tokenizer
    for text in _texts():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_digit_is_a_token():
    tokenizer = make_tokenizer()
    assert tokenizer.tokenize("47+8\n") == ["4", "7", "+", "8", "\n"]


def test_control_tokens_cannot_be_written_in_text():
    tokenizer = make_tokenizer()
    ids = tokenizer("<|im_end|>4", add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "4"


def test_the_product_loads_it_as_any_other_model(folder):
    processing = load_processing(folder)
    assert processing.family.name == "Qwen2.5-VL"
    assert processing.image_token == "<|image_pad|>"
    model = load_model(folder)
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6


def test_the_same_seed_makes_the_same_weights(folder, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        write_tiny_reader(tmp_path / name, seed)
    weights = [load_model(each).lm_head.weight for each in (folder, tmp_path / "same", tmp_path / "other")]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rows_render_with_one_token_a_character(folder):
    from dft_mm.data.render import Renderer

    processing = load_processing(folder)
    renderer = Renderer(processing.tokenizer, processing.chat_template, processing.image_token, 2)
    answer = "<think>\n47+8\n7+8=15\n4+1=5\n</think>\n<answer>\n55\n</answer>"
    question = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    rendered = renderer.render(messages, [(1, 2, 8)])
    tokenizer = processing.tokenizer
    assert tokenizer.decode(rendered.ids[rendered.supervised]) == answer + "<|im_end|>"
    assert tokenizer.decode(rendered.ids) == (
        "<|im_start|>user\n<|vision_start|>" + 4 * "<|image_pad|>" + f"<|vision_end|>{QUESTION}<|im_end|>\n"
        f"<|im_start|>assistant\n{answer}<|im_end|>\n"
    )


def test_pictures_are_taken_as_they_are(folder):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    features = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[Image.new("RGB", (112, 28))])
    assert features["image_grid_thw"].tolist() == [[1, 2, 8]]
