"""The backend `openai` against a server that misbehaves as told."""

import base64
import email.utils
import io
import json
import os
import signal
import time

import numpy as np
import pytest
import requests
from PIL import Image
from scripted_server import reply, serving
from started import ended, started, until

from dft_mm.data.images import load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.backends import openai
from dft_mm.evaluate.connection import why
from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite

KEY = "sk-very-secret-4711"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(openai, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def _suite(data, task="gsm8k", sampling=None, **bench):
    benchmark = {"task": task, "data": str(data), **bench}
    return Suite.model_validate({"name": "s", "sampling": sampling or {}, "benchmarks": [benchmark]})


def _lines(out):
    return [json.loads(line) for line in (out / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_is_asked_and_what_is_recorded(sums, tmp_path):
    suite = _suite(sums, sampling={"temperature": 0.7, "top_p": 0.9, "max_tokens": 77, "samples": 2})
    cut = {3: [reply("cut at", "length")], 4: [reply("nobody counted", usage=False)] * 2}
    with serving(cut) as server:
        results = evaluate(suite, "my-model", tmp_path, url=server.url + "/")
    lines = _lines(tmp_path)
    assert [line["id"] for line in lines] == [str(n) for n in range(1, 8) for _ in range(2)]
    by_question = {}
    for _, question, path, headers, body in server.asked:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert {key: body[key] for key in ("model", "temperature", "top_p", "max_tokens")} == {
            "model": "my-model", "temperature": 0.7, "top_p": 0.9, "max_tokens": 77,
        }  # fmt: skip
        assert "stop" not in body
        by_question.setdefault(str(question), set()).add(body["seed"])
    for line in lines:
        assert line["seed"] in by_question[line["id"]]
    third = [line for line in lines if line["id"] == "3"]
    assert sorted((line["text"], line["finish_reason"]) for line in third) == [
        ("It is \\boxed{6}.", "stop"),
        ("cut at", "length"),
    ]
    assert all((line["tokens"], line["prompt_tokens"]) == (5, 11) for line in lines if line["id"] != "4")
    assert all(line["tokens"] is None and "prompt_tokens" not in line for line in lines if line["id"] == "4")
    assert results["usage"] == {"prompt_tokens": 12 * 11, "completion_tokens": 12 * 5, "answers": 12}
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == {"path": "my-model", "sha256": None}
    assert manifest["backend"]["served_model"] == "my-model"


def test_pictures_are_those_of_training(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 128))
    image.putpixel((3, 4), (0, 0, 255, 0))
    image.save(data / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.linear_gradient("L").resize((50, 20)).convert("RGB").save(data / "b.jpg", exif=exif)
    rows = [{"id": n, "problem": "Which?", "answer": "7", "image_path": n} for n in ("a.png", "b.jpg")]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving() as server:
        evaluate(_suite(data, "digits"), "m", tmp_path / "out", url=server.url, concurrency=1)
    for (_, _, _, _, body), row in zip(server.asked, rows):
        part = next(part for part in body["messages"][-1]["content"] if part["type"] == "image_url")
        head, _, content = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        sent = Image.open(io.BytesIO(base64.b64decode(content)))
        assert sent.mode == "RGB"
        assert np.array_equal(np.array(sent), np.array(load_image(row["image_path"], data)))


def test_a_completion_is_asked_without_a_chat_and_cut_at_its_stop_text(sums, tmp_path):
    prompt = {"user": "Q: {question}\nA:", "completion": True, "stop": ["\n\n", "Q:"]}
    with serving({1: [reply("It is \\boxed{2}. Q: What next?\n\n", "length")]}) as server:
        evaluate(_suite(sums, limit=2, prompt=prompt), "m", tmp_path, url=server.url)
    assert {path for _, _, path, _, _ in server.asked} == {"/v1/completions"}
    body = next(body for _, question, _, _, body in server.asked if question == 1)
    assert body["prompt"].startswith("Q: What is 1 + 1?")
    assert body["stop"] == ["\n\n", "Q:"]
    assert (_lines(tmp_path)[0]["text"], _lines(tmp_path)[0]["finish_reason"]) == ("It is \\boxed{2}. ", "stop")


TROUBLE = {
    "500": (500, {}, "boom"),
    "503": (503, {}, {"error": {"message": "overloaded"}}),
    "408": (408, {}, ""),
    "429": (429, {"Retry-After": "0"}, {"error": "slow down"}),
    "reset": "reset",
    "slow": 3.0,
    "garbage": "<html>no JSON",
    "no choices": {"choices": []},
    "error inside": {"error": {"message": "inside"}},
    "no text": reply(None),
    "filtered": reply("", "content_filter"),
    "tools": reply("x", "tool_calls"),
    "not an object": [1],
}


def test_what_may_go_better_the_next_time_is_tried_again(sums, tmp_path):
    script = {n: [each] for n, each in enumerate(TROUBLE.values(), 1)}
    data = tmp_path / "test.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in script]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(script) as server:
        results = evaluate(_suite(data), "m", tmp_path / "out", url=server.url, request_timeout=0.5)
    assert results["benchmarks"]["gsm8k"]["status"] == {"correct": len(TROUBLE)}
    assert set(server.counts.values()) == {2}


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("500", "status 500.*boom"), ("429", "429.*slow down"), ("reset", "ConnectionError|Connection"),
        ("slow", "within 0.3 s.*--request-timeout"), ("garbage", "not JSON.*no JSON"), ("no choices", "no choices"),
        ("no text", "no text"), ("filtered", "content_filter"), ("tools", "tool_calls"),
    ],
)  # fmt: skip
def test_trouble_that_does_not_end_names_the_question_and_keeps_the_rest(sums, tmp_path, trouble, words):
    suite = _suite(sums)
    with serving({4: [TROUBLE[trouble]] * 3}) as server:
        with pytest.raises(InputError, match=rf"(?s)/v1/chat/completions.*question '4'.*3 attempts.*({words})"):
            evaluate(suite, "m", tmp_path, url=server.url, concurrency=2, retries=2, request_timeout=0.3)
        assert server.counts[4] == 3
        kept = {line["id"] for line in _lines(tmp_path)}
        assert {"1", "2", "3"} <= kept
        assert "4" not in kept
        before = server.counts.copy()
        evaluate(suite, "m", tmp_path, url=server.url)
    again = {str(question) for question, count in server.counts.items() if count > before[question]}
    assert again == {"1", "2", "3", "4", "5", "6", "7"} - kept


def test_a_server_that_is_not_there_is_told_at_once_and_in_few_words(sums, tmp_path, caplog):
    with serving() as server:
        pass
    with pytest.raises(InputError, match=r"in 3 attempts, at last: connection refused\. What"):
        evaluate(_suite(sums), "m", tmp_path, url=server.url, retries=2)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"{server.url}: no answer yet (connection refused); trying again up to 2 times"]


def test_a_name_that_nobody_knows():
    with pytest.raises(requests.ConnectionError) as raised:
        requests.get("http://no-such-host.invalid/", timeout=5, proxies={"http": ""})
    assert why(raised.value) == "name not known"
    assert why(requests.ConnectionError(OSError(32, "Broken pipe"))) == "ConnectionError: Broken pipe"
    assert why(requests.ConnectionError()) == "ConnectionError"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_when_to_come_again(sums, tmp_path, form):
    when = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    with serving({1: [(429, {"Retry-After": when}, "busy")]}) as server:
        evaluate(_suite(sums, limit=1), "m", tmp_path, url=server.url)
    first, second = (moment for moment, *_ in server.asked)
    assert 0.9 < second - first < 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, {"error": {"message": f"bad key {KEY}"}}), r"401 \(bad key \[key\]\).*--key-env"),
        ((404, {}, "no such model"), "404.*no such model.*--served-model"),
        ((400, {}, {"error": {"message": "unknown field seed"}}), "unknown field seed.*no `seed`"),
        ((400, {}, "x" * 9999), "x{400,600} …"),
        ((307, {"Location": "https://elsewhere/v1"}, ""), "https://elsewhere/v1.*--url"),
    ],
)
def test_a_refusal_ends_at_once_with_what_the_server_said(sums, tmp_path, answer, words):
    with serving({4: [answer] * 9}) as server:
        with pytest.raises(InputError, match=words) as raised:
            evaluate(_suite(sums), "m", tmp_path, url=server.url, concurrency=1)
        assert f"{server.url}/chat/completions" in str(raised.value)
    assert "question '4'" in str(raised.value)
    assert KEY not in str(raised.value)
    assert server.counts == {1: 1, 2: 1, 3: 1, 4: 1}
    assert [line["id"] for line in _lines(tmp_path)] == ["1", "2", "3"]


def test_an_empty_answer_that_the_server_gave_is_an_answer(sums, tmp_path):
    with serving({1: [reply("")]}) as server:
        evaluate(_suite(sums, limit=1), "m", tmp_path, url=server.url)
    assert _lines(tmp_path)[0]["text"] == ""
    assert server.counts == {1: 1}


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_are_under_way_at_once_up_to_the_limit(sums, tmp_path, limit):
    with serving(delay_s=0.1) as server:
        evaluate(_suite(sums), "m", tmp_path, url=server.url, concurrency=limit)
    assert server.most == limit


def test_the_served_model_decides_answers_and_the_address_does_not(sums, model_folder, tmp_path):
    suite, out = _suite(sums, limit=2), tmp_path / "out"
    with serving() as first, serving() as second:
        evaluate(suite, model_folder, out, url=first.url, served_model="one")
        assert len(json.loads((out / "manifest.json").read_text())["model"]["sha256"]) == 64
        evaluate(suite, model_folder, out, url=second.url, served_model="one", concurrency=1)
        assert (sum(first.counts.values()), sum(second.counts.values())) == (2, 0)
        with pytest.raises(InputError, match=r"served_model was 'one', is 'two'"):
            evaluate(suite, model_folder, out, url=second.url, served_model="two")


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "openai"}, "--url"),
        ({"url": "localhost:8000"}, "--url localhost"),
        ({"url": "http://me:secret@host/v1"}, "password"),
        ({"url": "http://host/v1/chat/completions"}, "ends too late"),
        ({"url": "http://host/v1", "key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ({"url": "http://host/v1", "batch_size": 3}, "--batch-size is for the backend hf, vllm, not for openai"),
        ({"backend": "hf", "url": "http://host/v1"}, "--url is for the backend openai, not for hf"),
    ],
)
def test_wrong_options_are_named(sums, tmp_path, options, words):
    with pytest.raises(InputError, match=words) as raised:
        evaluate(_suite(sums), "m", tmp_path / "out", **options)
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def _command(sums, tmp_path, url, out, *more):
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"name: s\nbenchmarks: [{{task: gsm8k, data: {sums}}}]\n")
    return ["eval", suite, "--model", "m", "--out", out, "--url", url, *more]


def _count(out):
    file = out / "generations.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_killed_and_started_again_nothing_answered_is_asked_twice(sums, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    with serving(delay_s=0.2) as server:
        command = _command(sums, tmp_path, server.url, out, "--concurrency", "2")
        kept, before = set(), server.counts.copy()
        for enough in (0, 2, 5, None):
            with started(command, log) as child:
                if enough is None:
                    assert ended(child) == 0
                else:
                    until(lambda enough=enough: _count(out) >= enough if enough else server.at_once == 2, child)
                    child.kill()
                    child.join()
            assert not {n for n, count in server.counts.items() if count > before[n]} & kept
            kept, before = {int(line["id"]) for line in _lines(out)} if _count(out) else set(), server.counts.copy()
        assert sum(server.counts.values()) <= 7 + 3 * 2
    with serving() as server, started(_command(sums, tmp_path, server.url, tmp_path / "whole"), log) as child:
        assert ended(child) == 0
    assert _files(out) == _files(tmp_path / "whole")
    assert set(_files(out)) == {"manifest.json", "generations.jsonl", "scores.jsonl", "results.json", "results.md"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_under_way_and_ends_with_3(sums, tmp_path, number):
    log, out = tmp_path / "log", tmp_path / "out"
    with serving(delay_s=0.4) as server:
        command = _command(sums, tmp_path, server.url, out, "--concurrency", "3")
        with started(command, log) as child:
            until(lambda: server.at_once == 3, child)
            os.kill(child.pid, number)
            assert ended(child) == 3
        assert "3 of 7 answers" in log.read_text()
        assert "same command goes on" in log.read_text()
        assert _count(out) == 3
        with started(command, log) as child:
            assert ended(child) == 0
        assert set(server.counts.values()) == {1}


def test_the_key_is_nowhere(sums, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    script = {2: [(401, {}, f"what is {KEY}?")], 3: [(500, {}, KEY)] * 2}
    with serving(script) as server:
        command = _command(sums, tmp_path, server.url, out, "--key-env", "MY_KEY", "--debug", "--concurrency", "1")
        environment = {"MY_KEY": KEY, "OPENAI_API_KEY": ""}
        with started(command, log, environment) as child:
            assert ended(child) == 2
        with started([*command, "--retries", "0"], log, environment) as child:
            assert ended(child) == 2
        with started(command, log, environment) as child:
            assert ended(child) == 0
    assert all(headers["Authorization"] == f"Bearer {KEY}" for *_, headers, _ in server.asked)
    assert log.read_text().count("[key]") >= 2
    found = [path for path in (log, *out.rglob("*")) if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []


def test_a_second_process_in_the_same_folder_is_refused(sums, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    with serving(delay_s=30) as server:
        with started(_command(sums, tmp_path, server.url, out), log) as child:
            until(lambda: server.at_once, child)
            with pytest.raises(InputError, match=rf"{out}: another evaluation works there"):
                evaluate(_suite(sums), "m", out, url=server.url)
            child.kill()
            child.join()
        server.delay_s = 0
        evaluate(_suite(sums), "m", out, url=server.url)
    assert not (out / ".lock").exists()
