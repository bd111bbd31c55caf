"""Tokenizer and chat template of a folder, or the default that is said."""

import json
import logging
import shutil

import pytest
from conversations import official, say, small_tokenizer, supervised_segments
from tiny_models import tiny_llama, tiny_vl

from dft_mm.data.render import Renderer
from dft_mm.errors import InputError
from dft_mm.model.builtin import IMAGE_PROCESSOR, builtin_folder
from dft_mm.model.export import gather_state, write_model
from dft_mm.model.load import load_model
from dft_mm.model.processing import load_processing


def test_processing_holds_what_the_family_has(folder):
    processing = load_processing(folder)
    assert processing.tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>" in processing.chat_template
    vision = processing.family.has_vision
    assert (processing.image_config is not None) == vision
    assert (processing.image_token_id == 500) == vision


@pytest.fixture
def base(tmp_path):
    """A function that makes the folder of a base model: no chat template anywhere, and this tokenizer."""

    def make(tokenizer, vision=False):
        (tiny_vl if vision else tiny_llama)(True).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        if vision:
            (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
        return tmp_path / "base"

    return make


MESSAGES = [
    say("system", "Be brief."),
    *(say("user", "one"), say("assistant", "two "), say("user", "\n3"), say("assistant", "four")),
]  # fmt: skip
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo <|im_end|>\n"
    "<|im_start|>user\n\n3<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
)
PLAIN = "Be brief.\n\nUser: one\n\nAssistant: two </s>User: \n3\n\nAssistant: four</s>"


@pytest.mark.parametrize(
    ("special", "names", "written", "learned"),
    [
        (["<|im_start|>", "<|im_end|>"], {"eos_token": "<|endoftext|>"}, CHATML, ["two <|im_end|>", "four<|im_end|>"]),
        ([], {"eos_token": "</s>"}, PLAIN, [" two </s>", " four</s>"]),
        ([], {"eos_token": "</s>", "bos_token": "<s>"}, "<s>" + PLAIN, [" two </s>", " four</s>"]),
        (["<|im_start|>"], {"eos_token": "</s>"}, PLAIN, [" two </s>", " four</s>"]),
    ],
    ids=["chatml", "plain", "plain-bos", "half-chatml"],
)
def test_a_base_model_gets_a_default_that_is_said_and_exported(
    base, special, names, written, learned, caplog, tmp_path
):
    caplog.set_level(logging.INFO, "dft_mm")
    folder = base(small_tokenizer(special, **names))
    processing = load_processing(folder)
    assert sum("no chat template" in line for line in caplog.messages) == 1
    rendered = Renderer(processing.tokenizer, processing.chat_template).render(MESSAGES)
    assert processing.tokenizer.decode(rendered.ids) == written
    assert [processing.tokenizer.decode(ids) for ids in supervised_segments(rendered)] == learned
    # What is exported says the same, to us and to plain transformers.
    write_model(gather_state(load_model(folder), True), folder, tmp_path / "out", "float32", {})
    exported = load_processing(tmp_path / "out")
    assert exported.chat_template == processing.chat_template
    assert official(exported.tokenizer, exported.tokenizer.chat_template, MESSAGES) == rendered.ids.tolist()


def test_no_default_where_nothing_could_end_an_answer(base):
    with pytest.raises(InputError, match=r"no special token that could end an answer.*chat_template\.jinja"):
        load_processing(base(small_tokenizer([])))


def test_no_default_for_a_model_of_pictures(base):
    tokenizer = small_tokenizer(["<|im_start|>", "<|im_end|>", "<|image_pad|>"], eos_token="<|im_end|>")
    with pytest.raises(InputError, match=r"has no chat template.*pictures.*chat_template\.jinja"):
        load_processing(base(tokenizer, vision=True))


def test_the_template_is_that_of_the_file_that_transformers_takes(base, caplog):
    """And when another file holds another one, somebody may have edited the wrong one: it is said."""
    caplog.set_level(logging.INFO, "dft_mm")
    folder = base(small_tokenizer([], eos_token="</s>"))
    config = json.loads((folder / "tokenizer_config.json").read_text())

    def told(template):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        caplog.clear()
        processing = load_processing(folder)
        return processing.chat_template, processing.tokenizer.chat_template, caplog.text

    assert told("A") == ("A", "A", "")
    assert told([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "B"}])[0] == "B"
    with pytest.raises(InputError, match="none of the name 'default'"):
        told([{"name": "tool_use", "template": "T"}])
    (folder / "chat_template.jinja").write_text("C")
    assert told("C") == ("C", "C", "")
    used, of_transformers, said = told("D")
    assert used == of_transformers == "C"
    assert "tokenizer_config.json holds another, which is not used" in said


def test_the_builtin_models_bring_their_own(tmp_path):
    folder = shutil.copytree(builtin_folder("tiny-lm"), tmp_path / "lm")
    assert "You are Qwen" in load_processing(folder).chat_template
    (folder / "chat_template.jinja").unlink()
    assert "You are" not in load_processing(folder).chat_template
