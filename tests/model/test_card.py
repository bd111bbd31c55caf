"""The model card: valid for the hub, the same each time, and silent where nothing is known."""

import pytest
from huggingface_hub import ModelCard, ModelCardData

from dft_mm.config import Recipe
from dft_mm.families import FAMILIES
from dft_mm.model.card import licence_of, model_card

VISION, TEXT = FAMILIES[0], FAMILIES[1]
MANIFEST = {
    "sources": [
        {"path": "/home/somebody/rows.jsonl", "split": "train", "rows": 10, "kept": 7, "too_long": 1, "not_chosen": 0,
         "quarantined": {"broken_image": 2}},
        {"path": "org/rows", "split": "heldout", "rows": 5, "kept": 5, "too_long": 0, "not_chosen": 0,
         "quarantined": {}},
        {"path": "data/more.jsonl", "split": "train", "rows": 1, "kept": 1, "too_long": 0, "not_chosen": 0,
         "quarantined": {}},
    ],
    "parts": [
        {"file": "/home/somebody/rows.jsonl", "source": 0}, {"file": "/cache/org___rows/0.arrow", "source": 1},
        {"file": "data/more.jsonl", "source": 2},
    ],
    "examples": {"train": 7, "heldout": 5}, "tokens": 900, "supervised_tokens": 300, "images": 7,
}  # fmt: skip


def recipe(path="Qwen/Qwen2.5-VL-3B-Instruct", **sections):
    values = {"name": "my_run", "model": {"path": path, **sections.pop("model", {})}}
    return Recipe.model_validate(values | {"data": {"train": [{"path": "x"}]}} | sections)


def card(base, family=VISION, merged=False, scores="", **changes):
    return model_card(recipe(**changes), base, family, MANIFEST, 40, "DFT: w = p.", merged, scores)


def metadata(text):
    """As the hub reads it; raises where it could not."""
    read = ModelCard(text).data
    assert isinstance(read, ModelCardData)
    return read


@pytest.fixture
def base(tmp_path):
    """The folder of a base model from the hub, with a licence of its own."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE\n---\n# Base\n"
    )
    return tmp_path


def test_the_metadata_are_the_hubs(base):
    data = metadata(card(base))
    assert data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert data.datasets == ["org/rows"]
    assert (data.license, data.license_name) == ("other", "qwen-research")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert data.tags == ["dft_mm", "dft"]


def test_the_text_tells_data_training_scores_limits_and_use(base):
    text = card(base, scores="| model | math |\n|---|---:|\n| my_run | 51.0 (47.0 to 55.0) |\n")
    for part in (
        "# my_run", "| rows.jsonl | train | 10 | 7 | 1 | broken_image 2 |", "| org/rows | heldout | 5 | 5 | 0 | none |",
        "DFT: w = p.", "| learning rate | 5e-05, cosine", "| steps | 40 ", "51.0 (47.0 to 55.0)", "## Limits",
        "`qwen-research` (https://example.org/LICENSE)", "Qwen2_5_VLForConditionalGeneration.from_pretrained",
        "dft-mm chat --model DIR", "arXiv:2508.05629",
    ):  # fmt: skip
        assert part in text
    assert "None were measured" not in text


def test_what_is_not_known_is_left_out_with_a_note(tmp_path):
    text = card(tmp_path, TEXT, path=str(tmp_path), loss={"name": "sft"})
    data = metadata(text)
    assert (data.base_model, data.license, data.pipeline_tag) == (None, None, "text-generation")
    assert "says nothing of a licence" in text
    assert "add it before you publish this" in text
    assert "None were measured" in text
    assert "DFT weighs each token" not in text
    assert "pixel" not in text


def test_no_path_of_the_machine_is_told(tmp_path):
    text = card(tmp_path, path=str(tmp_path))
    assert "/home/somebody" not in text
    assert str(tmp_path) not in text
    assert f"`{tmp_path.name}`" in text


def test_an_adapter_is_loaded_by_peft_and_a_merged_one_is_not(base):
    lora = {"lora": {"rank": 4}}
    adapter = card(base, model=lora)
    assert metadata(adapter).library_name == "peft"
    assert 'PeftModel.from_pretrained(base, "DIR")' in adapter
    assert '.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct"' in adapter
    assert "LoRA, rank 4, of language" in adapter
    merged = card(base, model=lora, merged=True)
    assert metadata(merged).library_name == "transformers"
    assert "PeftModel" not in merged
    assert "its LoRA adapter added to the weights" in merged


def test_the_python_in_it_compiles(base):
    for text in (card(base), card(base, TEXT), card(base, model={"lora": {"rank": 4}})):
        blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
        assert blocks
        compile("\n".join(blocks), "card", "exec")


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "Apache License"}, {"license": "mit"}),
        ({"README.md": "# no metadata", "LICENSE": "  Apache License\n Version 2.0"}, {"license": "apache-2.0"}),
        ({"LICENSE": "Qwen RESEARCH LICENSE AGREEMENT"}, {"license": "other", "license_link": "LICENSE"}),
        ({}, {}),
    ],
)
def test_the_licence_is_that_of_the_bases_card_or_else_its_file(tmp_path, files, licence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence


@pytest.mark.parametrize(
    "card",
    [b"---\nlicense: [mit\n---\n", b"---\n- mit\n---\n", b"---\nlicense: mit\n---\n\xff\xfe"],
    ids=["no YAML", "a list", "not UTF-8"],
)
def test_a_card_that_cannot_be_read_is_told_and_the_licence_file_counts(tmp_path, card, caplog):
    (tmp_path / "README.md").write_bytes(card)
    (tmp_path / "LICENSE").write_text("Apache License")
    assert licence_of(tmp_path) == {"license": "apache-2.0"}
    (told,) = caplog.messages
    assert "README.md: what it says of a licence cannot be read" in told
    assert "\n" not in told
