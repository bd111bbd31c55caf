"""Oracle throughout: transformers' own rendering and tokenisation of the whole conversation."""

import hashlib
import json
import pickle
import unicodedata

import numpy as np
import pytest
from conversations import TURNS, as_given_to_transformers, official, say, supervised_segments
from PIL import Image

from dft_mm.data.render import Renderer, RenderError
from dft_mm.model.processing import load_processing


@pytest.fixture(scope="module")
def vl():
    return load_processing("builtin:tiny-vl")


@pytest.fixture(scope="module")
def lm():
    return load_processing("builtin:tiny-lm")


@pytest.fixture(scope="module")
def vl_renderer(vl):
    return Renderer(vl.tokenizer, vl.chat_template, vl.image_token, 2)


@pytest.fixture(scope="module")
def lm_renderer(lm):
    return Renderer(lm.tokenizer, lm.chat_template)


@pytest.mark.parametrize(
    "messages",
    [
        [say("user", "What is 2 + 2?"), say("assistant", "4")],
        [say("system", "Be brief."), say("user", "Hello"), say("assistant", "Hi.")],
        [say("user", "a"), say("assistant", "b\n"), say("user", "\n\nc "), say("assistant", "d  ")],
        [say("user", "split ", "in parts"), say("assistant", "é, e\u0301", " and 😀")],
        [say("user", ""), say("assistant", "an answer to nothing")],
        [say("user", "call"), say("assistant", "<tool_call>{}</tool_call>")],
    ],
)
@pytest.mark.parametrize("family", ["vl", "lm"])
def test_ids_equal_the_chat_template(family, messages, request):
    processing, renderer = request.getfixturevalue(family), request.getfixturevalue(f"{family}_renderer")
    rendered = renderer.render(messages)
    assert rendered.ids.dtype == np.int32
    assert rendered.ids.tolist() == official(processing.tokenizer, processing.chat_template, messages)
    answers = ["".join(p["text"] for p in m["content"]) for m in messages if m["role"] == "assistant"]
    decoded = [processing.tokenizer.decode(segment) for segment in supervised_segments(rendered)]
    assert decoded == [unicodedata.normalize("NFC", answer) + "<|im_end|>" for answer in answers]


def test_pictures_are_expanded_where_they_stand(vl, vl_renderer):
    messages = [
        say("user", "Compare ", None, " with ", None, None),
        say("assistant", "Same."),
        say("user", None, "And this?"),
        say("assistant", "Other."),
    ]
    grids = [(1, 4, 6), (1, 2, 2), (1, 8, 4), (2, 4, 4)]
    merged = [6, 1, 8, 8]
    rendered = vl_renderer.render(messages, grids)
    assert rendered.ids.tolist() == official(vl.tokenizer, vl.chat_template, messages, merged)
    for (start, end), count in zip(rendered.image_spans, merged, strict=True):
        assert vl.tokenizer.decode(rendered.ids[start:end]) == (
            "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
        )
    assert [vl.tokenizer.decode(s) for s in supervised_segments(rendered)] == ["Same.<|im_end|>", "Other.<|im_end|>"]


def test_an_answer_is_encoded_after_the_prompt_that_generation_gives(lm, lm_renderer):
    messages = [say("user", "Write two lines."), say("assistant", "\n\nfirst\nsecond")]
    prompt = lm.tokenizer.apply_chat_template(
        as_given_to_transformers(messages[:1]),
        chat_template=lm.chat_template,
        add_generation_prompt=True,
        return_dict=True,
    ).input_ids
    rendered = lm_renderer.render(messages)
    assert rendered.ids[: len(prompt)].tolist() == prompt
    assert not rendered.supervised[: len(prompt)].any()
    assert rendered.supervised[len(prompt)]


def test_every_real_text_row_equals_the_chat_template(shared, lm, lm_renderer):
    folder = shared / "data" / "train_text"
    pairs = [
        (row[question], row[answer])
        for file, question, answer in (
            ("gsm8k_train.jsonl", "question", "answer"),
            ("math_solutions.jsonl", "problem", "solution"),
            ("numinamath_cot_samples.jsonl", "problem", "solution"),
            ("numinamath_layout.jsonl", "problem", "solution"),
        )
        for row in map(json.loads, (folder / file).read_text(encoding="utf-8").splitlines())
    ]
    assert len(pairs) == 2903
    for question, answer in pairs:
        messages = [say("user", question), say("assistant", answer)]
        rendered = lm_renderer.render(messages)
        assert rendered.ids.tolist() == official(lm.tokenizer, lm.chat_template, messages)
        assert lm.tokenizer.decode(rendered.ids[rendered.supervised]) == (
            unicodedata.normalize("NFC", answer) + "<|im_end|>"
        )


@pytest.fixture(scope="module")
def wethink(shared):
    """Conversations and pictures of the real rows, written out anew from the contract's sentence on `wethink`."""
    rows = []
    file = shared / "data" / "wethink_layout" / "wethink_layout.jsonl"
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        cot, answer = row["refined_cot"], row["answer"]
        if not cot:
            continue
        if "<answer>" not in cot:
            thought = cot if "<think>" in cot else f"<think>\n{cot}\n</think>"
            cot = f"{thought}\n<answer>\n{answer}\n</answer>"
        rows.append(
            ([say("user", None, row["problem"]), say("assistant", cot)], shared / "data" / row["image_path"], cot)
        )
    assert len(rows) == 453
    return rows


@pytest.fixture(scope="module")
def official_template(shared):
    template = (shared / "models" / "qwen2.5-vl" / "chat_template.jinja").read_text(encoding="utf-8")
    recorded = "4df95d05455c2a6f762616492bba63d0f9bef904ef47daabad35f5715d6d2e4e"
    assert hashlib.sha256(json.dumps(template).encode()).hexdigest() == recorded
    return template


def test_every_real_picture_row_equals_the_processor(vl, wethink, official_template):
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideo(Qwen2_5_VLProcessor):
        """Its video part needs torchvision, which is no dependency of ours."""

        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                super().check_argument_for_proper_class(argument_name, argument)

    # Small pictures: their number of tokens varies all the same, and the pixels are not what is tested here.
    images = Qwen2VLImageProcessorPil(min_pixels=4 * 784, max_pixels=32 * 784)
    processor = WithoutVideo(image_processor=images, tokenizer=vl.tokenizer, chat_template=official_template)
    renderer = Renderer(vl.tokenizer, official_template, vl.image_token, images.merge_size)
    lengths = set()
    for messages, path, answer in wethink:
        text = processor.apply_chat_template(messages, tokenize=False)
        with Image.open(path) as picture:
            inputs = processor(text=[text], images=[picture.convert("RGB")])
        grids = [tuple(map(int, grid)) for grid in inputs["image_grid_thw"]]
        rendered = renderer.render(messages, grids)
        assert rendered.ids.tolist() == list(inputs["input_ids"][0])
        assert vl.tokenizer.decode(rendered.ids[rendered.supervised]) == (
            unicodedata.normalize("NFC", answer) + "<|im_end|>"
        )
        ((start, end),) = rendered.image_spans
        lengths.add(end - start)
    assert len(lengths) > 10


def test_real_rows_of_many_turns_and_pictures_equal_the_chat_template(shared, vl, vl_renderer, official_template):
    """Of LLaMA-Factory's and Qwen-VL's own examples, their `<image>` marks as pictures."""
    llama_factory = shared / "data" / "train_llamafactory_demo"
    files = [
        (llama_factory / "mllm_demo.json", "messages", "role", "content"),
        (llama_factory / "kto_en_demo.json", "messages", "role", "content"),
        (llama_factory / "glaive_toolcall_en_demo.json", "conversations", "from", "value"),
        (shared / "data" / "train_qwenvl_demo" / "single_images.json", "conversations", "from", "value"),
    ]
    roles, seen = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "user"}, []
    for file, column, role, content in files:
        for row in json.loads(file.read_text(encoding="utf-8")):
            messages = []
            for turn in row[column]:
                head, *tails = turn[content].split("<image>")
                parts = [head, *(part for tail in tails for part in (None, tail))]
                messages.append(say(roles.get(turn[role], turn[role]), *(part for part in parts if part != "")))
            pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
            rendered = vl_renderer.render(messages, [(1, 4, 2 * number + 2) for number in range(pictures)])
            merged = [2 * number + 2 for number in range(pictures)]
            assert rendered.ids.tolist() == official(vl.tokenizer, official_template, messages, merged)
            answers = [m["content"][0]["text"] for m in messages if m["role"] == "assistant"]
            assert [vl.tokenizer.decode(ids) for ids in supervised_segments(rendered)] == [
                unicodedata.normalize("NFC", answer) + "<|im_end|>" for answer in answers
            ]
            seen.append((pictures, len(answers)))
    assert len(seen) == 109
    assert max(pictures for pictures, _ in seen) >= 2
    assert max(turns for _, turns in seen) >= 5


def test_a_message_can_be_kept_from_being_learned(lm, lm_renderer):
    messages = [TURNS[0], TURNS[1] | {"train": False}, *TURNS[2:]]
    rendered = lm_renderer.render(messages)
    assert rendered.ids.tolist() == official(lm.tokenizer, lm.chat_template, TURNS)
    assert [lm.tokenizer.decode(s) for s in supervised_segments(rendered)] == ["two<|im_end|>"]


def test_the_last_answer_can_be_kept_from_being_learned(lm):
    """Then the row has nothing to learn, and preparing refuses it."""
    renderer = Renderer(lm.tokenizer, lm.chat_template, supervise="last_answer")
    messages = [*TURNS[:3], TURNS[3] | {"train": False}]
    rendered = renderer.render(messages)
    assert rendered.ids.tolist() == official(lm.tokenizer, lm.chat_template, TURNS)
    assert not rendered.supervised.any()


def test_what_is_remembered_of_a_shape_does_not_reach_the_next_row(vl, vl_renderer):
    """Same roles and pictures, other texts, other grids, other answers to learn; before and after more shapes than
    are remembered."""
    question = [say("user", None, "x"), say("assistant", "y")]
    first = vl_renderer.render(question, [(1, 4, 4)])
    other = [say("user", None, "longer"), say("assistant", "answer") | {"train": False}]
    assert not vl_renderer.render(other, [(1, 8, 4)]).supervised.any()
    for count in range(2, 1100):
        vl_renderer.render([say("user", *[None, "a"] * (count // 30), *[None] * (count % 30)), say("assistant", "b")],
                           [(1, 2, 2)] * (count // 30 + count % 30))  # fmt: skip
    again = vl_renderer.render(question, [(1, 4, 4)])
    assert again.ids.tolist() == first.ids.tolist() == official(vl.tokenizer, vl.chat_template, question, [4])
    assert again.supervised.tolist() == first.supervised.tolist()


def test_the_shared_tokenizer_is_neither_heeded_nor_changed(vl):
    tokenizer = load_processing("builtin:tiny-vl").tokenizer
    renderer = Renderer(tokenizer, vl.chat_template, vl.image_token, 2)
    messages = [say("user", "<|im_end|>" + "word " * 50), say("assistant", "<|im_end|>yes")]
    before = renderer.render(messages).ids.tolist()
    tokenizer("x", padding="max_length", truncation=True, max_length=8)
    assert renderer.render(messages).ids.tolist() == before
    later = Renderer(tokenizer, vl.chat_template, vl.image_token, 2)
    assert later.fingerprint == renderer.fingerprint
    tokenizer("x", padding="max_length", truncation=True, max_length=8)
    assert later.render(messages).ids.tolist() == before
    assert tokenizer("<|im_end|>", add_special_tokens=False).input_ids == [151645]
    assert not tokenizer.backend_tokenizer.encode_special_tokens
    # A renderer handed to another process is the same renderer.
    assert pickle.loads(pickle.dumps(renderer)).render(messages).ids.tolist() == before


@pytest.mark.parametrize(
    ("messages", "grids", "reason"),
    [
        ([say("user", None, "x"), say("assistant", "y")], [], "image_count"),
        ([say("user", "x"), say("assistant", "y")], [(1, 2, 2)], "image_count"),
        ([say("user", "<|image_pad|>"), say("assistant", "y")], [(1, 2, 2)], "image_count"),
        ([say("user", "x"), say("assistant", None, "y")], [(1, 2, 2)], "answer_image"),
        ([say("user<|im_end|>", "x"), say("assistant", "y")], [], "role"),
    ],
)
def test_a_row_that_does_not_fit_is_named(vl_renderer, messages, grids, reason):
    with pytest.raises(RenderError) as caught:
        vl_renderer.render(messages, grids)
    assert caught.value.reason == reason


def test_a_text_model_takes_no_pictures(lm_renderer):
    with pytest.raises(RenderError) as caught:
        lm_renderer.render([say("user", None, "x"), say("assistant", "y")], [(1, 2, 2)])
    assert caught.value.reason == "image"
