"""A talk in the terminal: the same prompts as an evaluation, pictures by path, and nothing that ends it unasked."""

import io

import pytest
import torch
from PIL import Image

from dft_mm.__main__ import main
from dft_mm.evaluate.backends import prompts
from dft_mm.evaluate.backends.hf import HuggingFace
from dft_mm.evaluate.requests import BackendOptions, Generation, Request
from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Question
from dft_mm.study.chat import Conversation

TOKENS = 5


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a red square.png"
    Image.new("RGB", (84, 84), "red").save(path)
    return path


@pytest.fixture(scope="module")
def model():
    """Weights that say more than one token again and again, which the conversations of these tests share."""
    model = HuggingFace(BackendOptions("builtin:tiny-vl", SamplingConfig())).load()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, model):
    monkeypatch.setattr(HuggingFace, "load", lambda self: model)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def talk(monkeypatch, capsys):
    """Lines through a pipe, or typed: (exit code, standard output, standard error)."""

    def talk(*lines, words=(), model="builtin:tiny-vl", typed=False):
        monkeypatch.setattr("sys.stdin", (Terminal if typed else io.StringIO)("".join(f"{line}\n" for line in lines)))
        code = main(["chat", "--model", model, "--max-tokens", str(TOKENS), *words])
        return code, *capsys.readouterr()

    return talk


def conversation(**options):
    return Conversation("builtin:tiny-vl", SamplingConfig(max_tokens=TOKENS), **options)


def part(text):
    return {"type": "text", "text": text}


def asked(talk, number):
    """What the model was shown with a question."""
    (prompt,) = [prompt for (_, key), prompt in talk._backend.prompts._prompts.items() if key == str(number)]
    return prompt


def test_a_chat_is_asked_and_answers_as_an_evaluation(picture):
    talk, pieces = conversation(system="Be brief."), []
    talk.add_image(str(picture))
    answer = talk.ask("What is shown?", pieces.append)
    backend = HuggingFace(BackendOptions("builtin:tiny-vl", SamplingConfig(max_tokens=TOKENS)))
    messages = [
        {"role": "system", "content": [part("Be brief.")]},
        {"role": "user", "content": [{"type": "image"}, part("What is shown?")]},
    ]
    request = Request("b", Question("1", messages, "", (picture.name,), str(picture.parent)), 0, 0)
    ((_, (expected,)),) = backend.generate(backend.plan([request]), lambda: False)
    assert asked(talk, 1).ids == backend.prompts.of(request).ids
    assert answer.text == expected.text
    assert "".join(pieces) == answer.text


def test_what_was_said_stays_in_the_conversation_until_it_is_reset(picture, monkeypatch):
    monkeypatch.setattr(HuggingFace, "stream", lambda self, request, say: Generation("", "A square.", "stop", 3))
    talk = conversation()
    talk.add_image(str(picture))
    talk.ask("What is shown?", lambda piece: None)
    talk.ask("And why?", lambda piece: None)
    shown = asked(talk, 2).text
    places = [shown.index(part) for part in ("<|image_pad|>", "What is shown?", "A square.", "And why?")]
    assert places == sorted(places)
    talk.reset()
    talk.ask("Hello", lambda piece: None)
    assert "What is shown?" not in asked(talk, 3).text
    assert "<|image_pad|>" not in asked(talk, 3).text


def test_through_a_pipe_each_line_is_a_question(talk, picture):
    code, out, err = talk("one", "", f"/image '{picture}'", "two", "/quit", "three")
    assert code == 0, err
    assert all(line.startswith("(cut after") for line in err.splitlines())
    same = conversation()
    first = same.ask("one", lambda piece: None).text
    same.add_image(str(picture))
    assert out == f"{first}\n{same.ask('two', lambda piece: None).text}\n"


def test_what_cannot_be_done_is_told_in_the_terminal_and_the_chat_goes_on(talk, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (900, 4)).save(tmp_path / "line.png")
    code, out, err = talk(
        f"/image {tmp_path}/none.png", f"/image {tmp_path}/broken.png", f"/image {tmp_path}/line.png",
        f"/image {tmp_path}", "/imagine", "Hello", typed=True,
    )  # fmt: skip
    assert code == 0, err
    _, none, broken, line, folder, usage, *_ = err.splitlines()
    assert "there is no file" in none
    assert "no picture of a known format" in broken
    assert "above 200 : 1" in line
    assert "folder" in folder
    assert usage.startswith("/imagine is not known. A line is a question. /image PATH")
    assert out.replace("> ", "").strip()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/image ./none.png", "there is no file"), ("/imagine", "/imagine is not known"),
        ("word " * 60, "the context of"),
    ],
)
def test_through_a_pipe_what_cannot_be_done_ends_the_chat(talk, monkeypatch, line, told):
    monkeypatch.setattr(prompts, "_context", lambda folder: 60)
    code, out, err = talk(line, "What is shown?")
    assert (code, out) == (2, "")
    assert told in err


def test_a_text_model_is_shown_no_picture(talk, picture):
    code, _, err = talk(f"/image {picture}", model="builtin:tiny-lm")
    assert (code, err) == (2, "dft-mm: this is a text model, which sees no pictures\n")


def test_an_answer_that_is_cut_says_so(talk, monkeypatch):
    cut = Generation("", "so", "length", TOKENS)
    monkeypatch.setattr(HuggingFace, "stream", lambda self, request, say: say("so") or cut)
    _, out, err = talk("one")
    assert out == "so\n"
    assert "(cut after 5 tokens; --max-tokens" in err


def test_ctrl_c_stops_an_answer_and_not_the_chat(talk, monkeypatch):
    seen = []

    def stream(self, request, say):
        seen.append(request.question.text)
        say("half an ")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return Generation("", "half an answer", "stop", 3)

    monkeypatch.setattr(HuggingFace, "stream", stream)
    code, out, err = talk("one", "two", typed=True)
    assert code == 0, err
    assert err.splitlines()[1:] == ["(stopped)"]
    assert out == "> half an \n> half an \n> \n"
    assert seen == ["one", "one\nhalf an \ntwo"]


def test_ctrl_c_ends_a_chat_through_a_pipe(talk, monkeypatch):
    asked = []

    def stream(self, request, say):
        asked.append(request.question.text)
        raise KeyboardInterrupt

    monkeypatch.setattr(HuggingFace, "stream", stream)
    with pytest.raises(KeyboardInterrupt):
        talk("one", "two")
    assert asked == ["one"]


def test_an_answer_is_written_as_the_model_wrote_it(talk, monkeypatch):
    text = "\tfor\tit:\r\n\x07\x0b[bold]\u2009:smile:"
    answer = Generation("", text, "stop", TOKENS)
    monkeypatch.setattr(HuggingFace, "stream", lambda self, request, say: say(text) or answer)
    assert talk("one")[1] == f"{text}\n"


def test_a_question_that_does_not_fit_is_told_and_forgotten(talk, monkeypatch):
    monkeypatch.setattr(prompts, "_context", lambda folder: 60)
    _, out, err = talk("word " * 60, "Hello", typed=True)
    assert "the context of" in err
    assert out.replace("> ", "").strip()


def test_a_model_that_is_not_there_is_wrong_input(talk):
    code, _, err = talk("one", model="./nothing")
    assert code == 2
    assert "./nothing" in err
