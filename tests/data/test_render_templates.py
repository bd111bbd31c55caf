"""Any chat template is honoured as it is, or refused."""

import random
from datetime import datetime

import pytest
from conversations import CHATML, TURNS, official, say, small_tokenizer, supervised_segments
from official_templates import LLAMA3, LLAMA3_2, OFFICIAL, R1_DISTILL
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dft_mm.data.render import Renderer, RenderError
from dft_mm.errors import InputError
from dft_mm.model.processing import load_processing


@pytest.fixture(scope="module")
def llama_tokenizer():
    """With a post-processor that would add a BOS of its own, as Llama 3's has."""
    special = ["<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = small_tokenizer(special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    bos = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def small():
    tokenizer = small_tokenizer(
        ["<|im_start|>", "<|image_pad|>", "<|quad_start|>", "<|quad_end|>"], eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    """A tokenizer for each published template: Qwen2.5's own, and small ones that hold the control tokens."""
    made = {"Qwen2.5": load_processing("builtin:tiny-lm").tokenizer}
    for name, it in OFFICIAL.items():
        special = [AddedToken(t, special=True, normalized=False, rstrip=it.swallows) for t in it.special]
        made.setdefault(name, small_tokenizer(special, **it.names))
    return made


WORDS = ["two", " lines", "\n\nof", " text", "3.14", " é", "e\u0301", "数学", "😀", "User: x\n\nAssistant:", "[/INST]"]


def conversations(it, seed=0, count=200):
    """Random ones whose answers begin with a letter: what melts into the prompt before is another matter."""
    draw = random.Random(seed)
    for _ in range(count):
        system = it.system and draw.random() < 0.3
        messages = [say("system", "Be " + "".join(draw.choices(WORDS, k=3)))] if system else []
        for _ in range(draw.randint(1, 4)):
            question = "".join(draw.choices(WORDS, k=draw.randint(0, 5)))
            answer = "a" + "".join(draw.choices(WORDS, k=draw.randint(0, 6)))
            messages += [say("user", question), say("assistant", answer + draw.choice(["", "\n", "  "]))]
        yield messages


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_published_template_is_honoured(name, tokenizers):
    """Ids are those of the whole rendering; learned are the answers, with what the model has to write before them."""
    it, tokenizer = OFFICIAL[name], tokenizers[name]
    names = {"date_string": "26 Jul 2024"} if name == "Llama 3.2" else {}
    renderer, last = Renderer(tokenizer, it.template), Renderer(tokenizer, it.template, supervise="last_answer")
    for messages in conversations(it):
        rendered = renderer.render(messages)
        assert rendered.ids.tolist() == official(tokenizer, it.template, messages, **names)
        answers = [m["content"][0]["text"] for m in messages if m["role"] == "assistant"]
        answers = [answer.strip() if it.trims else answer for answer in answers]
        generated = [it.generated if n == len(answers) - 1 or not it.thinks else "" for n in range(len(answers))]
        expected = [
            tokenizer(before + answer + it.end, add_special_tokens=False).input_ids
            for before, answer in zip(generated, answers)
        ]
        assert supervised_segments(rendered) == expected
        assert supervised_segments(last.render(messages)) == expected[-1:]


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name not in ("R1 distilled", "Phi-3")])
def test_what_comes_before_an_answer_is_the_generation_prompt(name, tokenizers):
    it, tokenizer = OFFICIAL[name], tokenizers[name]
    names = {"date_string": "26 Jul 2024"} if name == "Llama 3.2" else {}
    renderer = Renderer(tokenizer, it.template)
    for messages in conversations(it, seed=1, count=20):
        for turns in range(len(messages) % 2 + 2, len(messages) + 1, 2):
            rendered = renderer.render(messages[:turns])
            prompt = official(tokenizer, it.template, messages[: turns - 1], add_generation_prompt=True, **names)
            assert rendered.ids[: len(prompt)].tolist() == prompt
            assert rendered.supervised[len(prompt)]
            assert not rendered.supervised[len(prompt) - 1]


@pytest.mark.parametrize("name", ["Mistral", "Gemma"])
def test_a_role_that_a_template_does_not_know_is_named(name, tokenizers):
    with pytest.raises(RenderError, match=r"[Rr]ole"):
        Renderer(tokenizers[name], OFFICIAL[name].template).render([say("system", "s"), *TURNS])


@pytest.mark.parametrize("name", ["Qwen3", "R1 distilled"])
def test_thoughts_that_a_template_takes_out_are_refused_and_not_lost(name, tokenizers):
    renderer = Renderer(tokenizers[name], OFFICIAL[name].template)
    with pytest.raises(RenderError, match="changes the text"):
        renderer.render([say("user", "q"), say("assistant", "<think>\na\n</think>\n\nb"), *TURNS])


def test_control_tokens_that_swallow_white_space_do_so(tokenizers):
    """As they do when the tokenizer gets the whole rendering."""
    tokenizer, template = tokenizers["Phi-3"], OFFICIAL["Phi-3"].template
    messages = [say("user", " \n\u3000two"), say("assistant", "\n\n of"), say("user", "\x1f"), say("assistant", "  ")]
    rendered = Renderer(tokenizer, template).render(messages)
    assert rendered.ids.tolist() == official(tokenizer, template, messages)
    assert [tokenizer.decode(ids) for ids in supervised_segments(rendered)] == ["of<|end|>", "<|end|>"]


def test_tokens_do_not_change_from_day_to_day(llama_tokenizer):
    rendered = Renderer(llama_tokenizer, LLAMA3_2).render(TURNS)
    text = llama_tokenizer.decode(rendered.ids)
    assert "Today Date: 26 Jul 2024\n" in text
    assert datetime.now().strftime("%d %b %Y") not in text


def test_a_template_that_cannot_do_without_todays_date_is_refused(small):
    with pytest.raises(InputError, match="current date"):
        Renderer(small, "{{ strftime_now('%Y') }}" + CHATML)


def test_a_conversation_asked_otherwise_than_it_is_written_is_said(small, tokenizers, caplog):
    ask = "{% if add_generation_prompt %}<|im_start|>HEAD\n{% endif %}"
    for template, tokenizer, warned in (
        (CHATML + ask.replace("HEAD", "assistant"), small, False),
        (CHATML + ask.replace("HEAD", "bot"), small, True),
        (CHATML, small, False),
        (CHATML + "<|quad_end|>", small, False),  # it has no generation prompt
        (R1_DISTILL, tokenizers["R1 distilled"], True),
    ):
        caplog.clear()
        Renderer(tokenizer, template)
        assert ("generation prompt" in caplog.text) == warned


def test_a_template_without_a_generation_prompt_learns_from_the_answer_on(small):
    """Whatever stands before an answer was written by the template, and nobody asks the model to write it."""
    rendered = Renderer(small, CHATML).render(TURNS)
    assert [small.decode(s) for s in supervised_segments(rendered)] == ["one<|im_end|>", "two<|im_end|>"]


def test_pieces_that_each_get_a_space_are_refused():
    backend = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "<unk>": 2}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(InputError, match="space before each piece"):
        Renderer(tokenizer, OFFICIAL["Mistral"].template)


def test_llama_3_trims_and_has_one_bos(llama_tokenizer):
    renderer = Renderer(llama_tokenizer, LLAMA3)
    messages = [
        say("system", "  the assistant answers "),
        say("user", "\n two lines\n"),
        say("assistant", " of text\n\n"),
        say("user", "then?"),
        say("assistant", "three <|eot_id|>"),
    ]
    rendered = renderer.render(messages)
    bos, eot = llama_tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>"])
    assert (rendered.ids == bos).sum() == 1
    assert rendered.ids[0] == bos
    assert (rendered.ids == eot).sum() == 5
    decoded = [llama_tokenizer.decode(s) for s in supervised_segments(rendered)]
    assert decoded == ["of text<|eot_id|>", "three <|eot_id|><|eot_id|>"]
    assert supervised_segments(rendered)[1].count(eot) == 1
    honest = [*messages[:4], say("assistant", "three\n")]
    assert renderer.render(honest).ids.tolist() == official(llama_tokenizer, LLAMA3, honest)


def test_a_template_that_trims_only_some_messages_is_honoured(small):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | trim if m.role == 'user' else m.content }}<|im_end|>{% endfor %}"
    )
    messages = [say("user", " q "), say("assistant", " a ")]
    rendered = Renderer(small, template).render(messages)
    assert small.decode(rendered.ids) == "<|im_start|>user\nq<|im_end|><|im_start|>assistant\n a <|im_end|>"
    assert small.decode(rendered.ids[rendered.supervised]) == " a <|im_end|>"


def test_a_template_of_the_users_own_is_honoured(small):
    template = (
        "<|im_start|>### Lesson\n{% for m in messages %}{% if m.role == 'user' %}Q{{ loop.index }}: {{ m.content }}"
        "<|quad_start|>{% else %}{{ m.content }}<|quad_end|>{% endif %}{% endfor %}"
    )
    rendered = Renderer(small, template).render(TURNS)
    assert rendered.ids.tolist() == official(small, template, TURNS)
    assert [small.decode(s) for s in supervised_segments(rendered)] == ["one<|quad_end|>", "two<|quad_end|>"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("{{ m.content | upper }}", "changes the text"),
        ("{{ m.content.split('</think>')[-1] }}", "changes the text"),
        ("{{ m.content }}{{ m.content }}", "repeats"),
        ("{% if m.role != 'assistant' %}{{ m.content }}{% endif %}", "leaves out"),
        ("{{ raise_exception('no such turn') }}", "no such turn"),
    ],
)
def test_a_template_that_edits_what_was_said_is_refused(small, edit, message):
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\nCONTENT<|im_end|>\n{% endfor %}".replace(
        "CONTENT", edit
    )
    messages = [say("user", "q"), say("assistant", "<think>a</think>b")]
    with pytest.raises((InputError, RenderError), match=message):
        Renderer(small, template).render(messages)


def test_a_template_is_refused_for_the_row_it_edits_and_no_other(small):
    """Templates of reasoning models cut thoughts out of earlier answers."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}<|im_end|>\n{% endfor %}"
    )
    renderer = Renderer(small, template)
    thought = say("assistant", "<think>a</think>b")
    assert renderer.render([say("user", "q"), thought]).supervised.any()
    with pytest.raises(RenderError) as caught:
        renderer.render([say("user", "q"), thought, *TURNS[2:]])
    assert caught.value.reason == "template"


def test_what_a_template_adds_to_some_texts_only_is_noticed(small):
    renderer = Renderer(small, CHATML + "{% if 'think' in messages[-1].content %}tail{% endif %}")
    with pytest.raises(RenderError) as caught:
        renderer.render([say("user", "q"), say("assistant", "think")])
    assert caught.value.reason == "template"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"no chat template.*chat_template\.jinja"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "does not end an answer"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n<|im_end|>{% endfor %}", "does not end an answer"),
        ("{% for m in messages %}<|im_start|>{{ m.role", "template"),
        ("{% for m in messages %}<|im_start|>{{ m.role + ' ' + m.content }}<|im_end|>{% endfor %}", "piece by piece"),
    ],
)
def test_a_template_that_cannot_be_learned_from_is_refused_at_once(small, template, message):
    with pytest.raises(InputError, match=message):
        Renderer(small, template)


def test_a_picture_token_that_text_could_forge_is_refused(small):
    with pytest.raises(InputError, match="no special token"):
        Renderer(small, CHATML, "<tool_call>", 2)


def test_a_placeholder_without_frame_spans_itself(small):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ '<|image_pad|>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
    )
    rendered = Renderer(small, template, "<|image_pad|>", 2).render(
        [say("user", "x", None, None, "y"), say("assistant", "z")], [(1, 2, 4), (1, 4, 4)]
    )
    image = rendered.ids == small.convert_tokens_to_ids("<|image_pad|>")
    assert [image[start:end].all() and end - start for start, end in rendered.image_spans] == [2, 4]


def test_text_that_the_vocabulary_itself_turns_into_a_control_token_is_refused():
    words = ["<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "\n", "1", "a"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    renderer = Renderer(
        tokenizer, "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    rendered = renderer.render([say("user", "1\nunheard of"), say("assistant", "a")])
    assert tokenizer.convert_ids_to_tokens(rendered.ids) == [
        *("<|im_start|>", "user", "\n", "1", "\n", "<unk>", "<|im_end|>"),
        *("<|im_start|>", "assistant", "\n", "a", "<|im_end|>"),
    ]
    with pytest.raises(RenderError, match="im_end") as caught:
        renderer.render([say("user", "1\n<|im_end|>\na"), say("assistant", "a")])
    assert caught.value.reason == "control_token"


def test_the_last_answer_alone_can_be_learned(small):
    renderer = Renderer(small, CHATML, supervise="last_answer")
    rendered = renderer.render(TURNS)
    assert rendered.ids.tolist() == official(small, CHATML, TURNS)
    assert [small.decode(s) for s in supervised_segments(rendered)] == ["two<|im_end|>"]


def test_a_template_without_picture_places_is_noticed(small):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[-1].text or m.content }}<|im_end|>{% endfor %}"
    )
    renderer = Renderer(small, template, "<|image_pad|>", 2)
    with pytest.raises(RenderError, match="0 places for 1 pictures"):
        renderer.render([say("user", None, "x"), say("assistant", "y")], [(1, 2, 2)])


def test_a_template_that_drops_a_picture_is_noticed(small):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '<|image_pad|>' if m.content is not string }}"
        "{{ m.content[-1].text or m.content }}<|im_end|>{% endfor %}"
    )
    renderer = Renderer(small, template, "<|image_pad|>", 2)
    assert renderer.render([say("user", None, "x"), say("assistant", "y")], [(1, 2, 2)]).image_spans
    for grids in ([(1, 2, 2)], [(1, 2, 2)] * 2):
        with pytest.raises(RenderError) as caught:
            renderer.render([say("user", None, None, "x"), say("assistant", "y")], grids)
        assert caught.value.reason == "image_count"


def test_the_fingerprint_follows_everything_that_decides_ids(small, llama_tokenizer):
    other = small_tokenizer(["<|im_start|>"], eos_token="<|im_end|>")
    prints = [
        Renderer(small, CHATML, "<|image_pad|>", 2).fingerprint,
        Renderer(small, CHATML).fingerprint,
        Renderer(small, CHATML, "<|image_pad|>", 1).fingerprint,
        Renderer(small, CHATML, "<|image_pad|>", 2, "last_answer").fingerprint,
        Renderer(small, CHATML + " ", "<|image_pad|>", 2).fingerprint,
        Renderer(other, CHATML).fingerprint,
        Renderer(llama_tokenizer, LLAMA3).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
