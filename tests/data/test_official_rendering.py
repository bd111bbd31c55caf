"""Every real row that is kept, prepared as for a run, against the official rendering of the same messages.

Oracles: the published chat templates through transformers' own apply_chat_template, the tokenizer over the whole text,
and the tokens of a picture by transformers' image processor from a size that Pillow alone read.
"""

import functools
import io
import unicodedata
from pathlib import Path

import pytest
from conversations import official, supervised_segments
from PIL import Image, ImageOps
from prepared import processing, settings
from reading import learned
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dft_mm.config import DataConfig, SourceConfig
from dft_mm.data.dataset import Dataset
from dft_mm.data.layouts.choose import choose_layout
from dft_mm.data.layouts.rows import parse
from dft_mm.data.preparing.prepare import prepare
from dft_mm.data.reading import files
from dft_mm.data.records import BadRow
from dft_mm.data.render import Rendered, Renderer

# file, or files of one row each: rows that are kept, answers learned in them, their pictures
PICTURED = {
    "mathverse/testmini.json": (130, 130, 130),
    "mathvision/test_special.jsonl": (21, 21, 21),
    "mathvision/testmini.jsonl": (60, 60, 60),
    "train_geometry3k/*/data.json": (10, 10, 10),
    "train_iconqa/choose_img/*/data.json": (30, 30, 109),
    "train_iconqa/choose_txt/*/data.json": (30, 30, 30),
    "train_iconqa/fill_in_blank/*/data.json": (30, 30, 30),
    "train_llamafactory_demo/mllm_demo.json": (6, 12, 8),
    "train_llamafactory_demo/v1_multimodal_demo.jsonl": (24, 48, 32),
    "train_qwenvl_demo/single_images.json": (3, 3, 3),
    "train_scienceqa/problems.json": (110, 110, 110),
    "train_tabmwp/problems.json": (350, 350, 350),
    "train_vlaa_thinking/examples.jsonl": (5, 5, 5),
    "vlmevalkit_tsv/MathVerse_SAMPLE.tsv": (25, 25, 25),
    "vlmevalkit_tsv/MathVision_SAMPLE.tsv": (20, 20, 20),
    "vlmevalkit_tsv/WeMath_SAMPLE.tsv": (24, 24, 24),
    "wemath/data/testmini.json": (108, 108, 108),
    "wethink_layout/wethink_layout.jsonl": (453, 453, 453),
}
TEXT = {
    "mathverse/testmini_text_only.json": (300, 300, 0),
    "mathverse/visualizer_items.json": (26, 26, 0),
    "text_math/aime24/test.jsonl": (30, 30, 0),
    "text_math/amc23/test.jsonl": (40, 40, 0),
    "text_math/gsm8k/test.jsonl": (700, 700, 0),
    "text_math/math_oai/test.jsonl": (400, 400, 0),
    "text_math/minerva_math/test.jsonl": (222, 222, 0),
    "text_math/olympiadbench/test.jsonl": (575, 575, 0),
    "train_llamafactory_demo/alpaca_en_demo.json": (200, 200, 0),
    "train_llamafactory_demo/dpo_en_demo.json": (60, 60, 0),
    "train_llamafactory_demo/glaive_toolcall_en_demo.json": (40, 133, 0),
    "train_llamafactory_demo/identity.json": (91, 91, 0),
    "train_llamafactory_demo/kto_en_demo.json": (38, 38, 0),
    "train_llamafactory_demo/reason_tool_use_demo.jsonl": (25, 64, 0),
    "train_llamafactory_demo/v1_dpo_demo.jsonl": (10, 10, 0),
    "train_llamafactory_demo/v1_sft_demo.jsonl": (150, 150, 0),
    "train_text/aime_1983_2023.json": (300, 300, 0),
    "train_text/gsm8k_train.jsonl": (1500, 1500, 0),
    "train_text/math_solutions.jsonl": (700, 700, 0),
    "train_text/numinamath_cot_samples.jsonl": (3, 3, 0),
    "train_text/numinamath_layout.jsonl": (700, 700, 0),
    "train_text/ultrafeedback_pairs.jsonl": (400, 400, 0),
}
MIN_PIXELS, MAX_PIXELS = 3136, 1003520  # the recipe's own
OFFICIAL_IMAGES = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


@functools.cache  # making one takes half a second
def renderer(model):
    made = processing(model)
    return Renderer(made.tokenizer, made.chat_template, made.image_token, 2)


def kept(pattern, folder, model):
    """[(conversation, folder of its pictures, ids and mask)] of the rows that preparing keeps."""
    config = DataConfig(train=[{"path": str(pattern)}], bad_rows=1.0, max_length=32768)
    images = settings(config) if processing(model).image_config else None
    manifest = prepare(config, renderer(model), images, folder / "data", 0)
    dataset = Dataset(folder / "data", "all", images)
    read = {}
    for path in files.find_files(SourceConfig(path=str(pattern))):
        records = [record for part in files.split(path, 1000, folder) for record in files.read(part)]
        good = [record.value for record in records[:20] if not isinstance(record.value, BadRow)]
        layout = choose_layout(SourceConfig(path=str(path)), path, good)
        read |= {(str(path), record.row): (record.value, layout) for record in records}
    assert manifest["sources"][0]["rows"] == len(read)
    rows = []
    for index in range(len(dataset)):
        where = dataset.meta(index)
        value, layout = read[where["file"], where["row"]]
        rows.append((parse(value, layout), Path(layout.images), Rendered(*dataset.tokens(index), ())))
    return rows


def tokens_of(picture, root):
    """Merged patches, by transformers and Pillow."""
    source = io.BytesIO(picture.source) if isinstance(picture.source, bytes) else root / picture.source
    limits = {"min_pixels": picture.min_pixels or MIN_PIXELS, "max_pixels": picture.max_pixels or MAX_PIXELS}
    with Image.open(source) as image:
        width, height = ImageOps.exif_transpose(image).size
    return OFFICIAL_IMAGES.get_number_of_image_patches(height, width, limits) // OFFICIAL_IMAGES.merge_size**2


def compare(pattern, folder, model, template):
    """(rows, answers, pictures), after each row was compared."""
    rows, tokenizer = kept(pattern, folder, model), processing(model).tokenizer
    answers = pictures = 0
    for conversation, root, ours in rows:
        merged = [tokens_of(picture, root) for picture in conversation.images]
        theirs = official(tokenizer, template, conversation.messages, merged)
        assert ours.ids.tolist() == theirs, conversation.messages
        spans = [tokenizer.decode(ids) for ids in supervised_segments(ours)]
        assert spans == [unicodedata.normalize("NFC", text) + "<|im_end|>" for text in learned(conversation)]
        answers, pictures = answers + len(spans), pictures + len(merged)
    return len(rows), answers, pictures


@pytest.mark.parametrize("name", PICTURED | TEXT)
def test_a_row_is_to_qwen2_5_vl_what_its_template_and_processor_make_of_it(shared, tmp_path, name):
    template = (shared / "models/qwen2.5-vl/chat_template.jinja").read_text(encoding="utf-8")
    counts = compare(shared / "data" / name, tmp_path, "builtin:tiny-vl", template)
    assert counts == (PICTURED | TEXT)[name]


@pytest.mark.parametrize("name", TEXT)
def test_a_row_is_to_qwen2_5_what_its_template_makes_of_it(shared, tmp_path, name):
    template = (Path(__file__).parent / "layouts" / "qwen2_5_instruct.jinja").read_text(encoding="utf-8")
    counts = compare(shared / "data" / name, tmp_path, "builtin:tiny-lm", template)
    assert counts == TEXT[name]
