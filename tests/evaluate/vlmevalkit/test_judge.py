"""A model behind a URL as judge: VLMEvalKit's own verdicts, and what becomes of a judge that fails."""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from vlmevalkit_tables import SAMPLES, TABLES, ask, direct, drawn, grade, in_fractions, in_turn, sampled, write_table

from dft_mm.__main__ import main
from dft_mm.errors import InputError
from dft_mm.evaluate.vlmevalkit import judge as judging
from dft_mm.evaluate.vlmevalkit import process, scoring

KEY = "sk-very-secret-0123456789"


def reads_boxes(prompt):
    """A judge that does what it is asked."""
    if "Judgement:" in prompt:
        gold = prompt.rsplit("[Standard Answer]:", 1)[1].split("\n")[0].strip()
        found = prompt.rsplit("[Model_answer] :", 1)[1].split("\n")[0].strip()
        return "1" if gold == found else "0"
    boxes = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", prompt)
    return boxes[-1] if boxes else "null"


def says_no(prompt):
    """One that does not look at the answer. WeMath gets an option, or VLMEvalKit would draw one, or divide by zero."""
    return "0" if "Judgement:" in prompt else "A" if "Options:" in prompt else "Z"


@contextmanager
def judge(answer, status=200, wait=0.0, seen=None, models=(404, "")):
    """A server; `answer`: a function of the prompt, or the body as it is; `models`: what a GET is answered with."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if models is None:
                time.sleep(30)
            self.send_response(models[0])
            self.send_header("Content-Length", str(len(models[1].encode())))
            self.end_headers()
            self.wfile.write(models[1].encode())

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = request["messages"][-1]["content"]
            if seen is not None:
                seen.append((prompt, dict(self.headers), request))
            time.sleep(wait)
            found = answer(prompt) if callable(answer) else answer
            code, body = found if isinstance(found, tuple) else (status, found)
            if callable(answer) and code == 200:
                body = json.dumps({"choices": [{"message": {"content": body}}]})
            self.send_response(code)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):  # a client that no longer waits
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(scoring, "JUDGE_DEADLINE_S", 2.0)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """MathVision questions whose answers are not plain enough to be read without a judge."""
    rows = [row | {"choices": "[]"} for row in TABLES["mathvision"]()]
    folder = tmp_path_factory.mktemp("asked")
    return ask("mathvision", write_table(folder / "t.tsv", rows), folder / "work")


def _texts(questions):
    return [f"Hm, we get {question.gold} or so? I think that is what comes out." for question in questions]


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("answer", [reads_boxes, says_no])
def test_verdicts_and_tables_are_vlmevalkits_own(shared, tmp_path, tmp_path_factory, monkeypatch, kind, answer):
    monkeypatch.setenv("MY_KEY", KEY)
    tsv, questions = sampled(kind, shared, tmp_path_factory)
    _, texts = in_turn(questions)
    seen = []
    with judge(answer, seen=seen) as url:
        how = {"url": url, "model": "gpt-4o-mini", "key_env": "MY_KEY"}
        scored = grade(kind, questions, texts.values(), tmp_path / "work", judge=how)
        assert {headers["Authorization"] for _, headers, _ in seen} == {f"Bearer {KEY}"}
        assert {request["model"] for _, _, request in seen} == {"gpt-4o-mini"}  # not another by a similar name
        ours = {prompt for prompt, _, _ in seen}
        assert len(ours) > len(questions) / 2
        seen.clear()
        result = direct(tmp_path / "direct", kind, tsv, texts, judge={"url": url})
        assert ours == {prompt for prompt, _, _ in seen}
    assert {name: metric["value"] for name, metric in scored.metrics.items()} == in_fractions(kind, result)
    assert not {grade.status for grade in scored.grades} - {"correct", "wrong", "no_answer"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


FAILING = {
    "error 500": ({"answer": '{"error": "overloaded"}', "status": 500}, "HTTP 500.*overloaded"),
    "no key": ({"answer": f"Incorrect API key: {KEY}", "status": 401}, r"HTTP 401: Incorrect API key: \*\*\*"),
    "garbage": ({"answer": "<html>hello</html>"}, "not an OpenAI-compatible answer"),
    "null": ({"answer": '{"choices": [{"message": {"content": null}}]}'}, "not an OpenAI-compatible answer"),
    "slow": ({"answer": reads_boxes, "wait": 30.0}, "no whole answer within 2 s"),
    "nonsense": ({"answer": lambda prompt: "lorem ipsum dolor"}, "'lorem ipsum dolor'"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_judge_that_fails_is_no_score(asked, tmp_path, monkeypatch, hurried, kind):
    monkeypatch.setenv("MY_KEY", KEY)
    how, words = FAILING[kind]
    seen, started = [], time.monotonic()
    with judge(**how, seen=seen) as url, pytest.raises(InputError) as error:
        grade(
            "mathvision", asked, _texts(asked), tmp_path / "work", judge={"url": url, "model": "j", "key_env": "MY_KEY"}
        )
    said = str(error.value)
    assert re.search(words, said)
    assert re.search(rf"the judge j at {url} gave no verdict on 4 of 4 answers", said)
    assert "judge: rule" in said
    assert KEY not in said
    assert len(seen) <= 12
    assert time.monotonic() - started < 15


def test_nobody_at_the_url(asked, tmp_path, hurried):
    with judge(reads_boxes) as url:
        pass
    with pytest.raises(InputError, match=r"no verdict on 4 of 4.*refused"):
        grade("mathvision", asked, _texts(asked), tmp_path / "work", judge={"url": url, "model": "j"})


def test_mathverse_and_wemath_have_no_made_up_verdicts(tmp_path, tmp_path_factory, hurried):
    """VLMEvalKit takes a judge that says neither 0 nor 1 for "wrong", and draws a letter where it hears none."""
    for kind in ("mathverse", "wemath"):
        questions = drawn(kind, tmp_path_factory)
        words = r"no verdict on 10 of 10.* last one was 'maybe so'"
        with judge(lambda prompt: "maybe so") as url, pytest.raises(InputError, match=words):
            grade(kind, questions, ["I cannot tell, it may be this or that one"] * 10, tmp_path / kind,
                  judge={"url": url, "model": "j"})  # fmt: skip


def test_a_row_that_the_judge_cannot_take_is_left_out_and_told(tmp_path, hurried):
    rows = TABLES["mathvision"]()[:1] * 12
    rows = [row | {"index": str(number), "id": str(number)} for number, row in enumerate(rows)]
    questions = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work")
    texts = ["", *[f"It comes to \\boxed{{{6 if n < 8 else 7}}}, row {n}." for n in range(1, 12)]]

    def refuses_one(prompt):
        if "row 8." in prompt:
            return "\ud800\0"
        return (400, "too long") if "row 11." in prompt else "hi" if "row" not in prompt else reads_boxes(prompt)

    seen = []
    with judge(refuses_one, seen=seen) as url:
        scored = grade("mathvision", questions, texts, tmp_path / "work", judge={"url": url, "model": "j"})
    assert [each.status for each in scored.grades] == [
        "no_answer",
        *["correct"] * 7,
        "no_answer",
        "wrong",
        "wrong",
        "ungradable",
    ]
    assert all("row" in prompt or prompt == "hello" for prompt, _, _ in seen)  # nothing is asked about no answer
    assert "HTTP 400: too long" in scored.grades[-1].detail
    assert scored.metrics["Overall"]["value"] == pytest.approx(7 / 11)
    assert scored.metrics["Overall"]["n"] == 11


def test_the_same_command_scores_anew(asked, tmp_path, hurried, capsys):
    """Nothing of a judge that was down, or judged otherwise, is left for the next run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    rows = [row | {"choices": "[]"} for row in TABLES["mathvision"]()]
    lines = [
        json.dumps({"benchmark": "mathvision", "id": question.id, "text": text})
        for question, text in zip(asked, _texts(asked))
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    found = re.compile(r"we get (\S+) or so\? [^\n]*Extracted answer:$")
    moods = {
        "down": lambda prompt: (500, "down"), "strict": says_no,
        "kind": lambda prompt: match[1] if (match := found.search(prompt)) else "hi",
    }  # fmt: skip
    now = ["down"]
    with judge(lambda prompt: moods[now[0]](prompt)) as url:
        table = str(write_table(tmp_path / "t.tsv", rows))
        benchmark = {"task": "mathvision", "data": table, "judge": {"url": url, "model": "j"}}
        (tmp_path / "s.yaml").write_text(json.dumps({"name": "s", "benchmarks": [benchmark]}))
        names = {"--model": "model", "--out": "out", "--replay": "answers.jsonl"}
        command = ["eval", str(tmp_path / "s.yaml")]
        command += [word for option, name in names.items() for word in (option, str(tmp_path / name))]
        assert main(command) == 2
        assert "no verdict on 4 of 4" in capsys.readouterr().err
        assert not (tmp_path / "out/results.json").exists()
        for now[0], value in (("strict", 0.0), ("kind", 1.0)):
            assert main(command) == 0
            results = json.loads((tmp_path / "out/results.json").read_text())["benchmarks"]["mathvision"]
            assert results["metrics"]["Overall"]["value"] == value
            assert results["judge"] == "j"


def test_a_key_that_is_not_there_is_told_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="MY_KEY, and no such environment variable"):
        ask("wemath", tmp_path / "t.tsv", tmp_path, judge={"url": "http://x/v1", "model": "j", "key_env": "MY_KEY"})


def test_a_judge_that_is_not_there_is_told_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(judging, "_CONTACT_S", 0.5)

    def asking(url):
        ask("wemath", tmp_path / "no.tsv", tmp_path, judge={"url": url, "model": "j", "key_env": "MY_KEY"})

    for models, words in ((None, "nothing came within 0.5 s"), ((401, f"bad {KEY}"), r"HTTP 401: bad \*\*\*")):
        with judge(reads_boxes, models=models) as url, pytest.raises(InputError) as error:
            asking(url)
        assert re.search(rf"wemath: the judge j at {url} does not answer \({words}\).*judge: rule", str(error.value))
    with pytest.raises(InputError, match=r"does not answer \(connection refused\)"):
        asking(url)
    for models in ((200, "{}"), (404, ""), (500, "")):
        with judge(reads_boxes, models=models) as url, pytest.raises(InputError, match=r"no\.tsv cannot be read"):
            asking(url)


def test_code_in_an_answer_is_never_run(tmp_path, monkeypatch):
    """VLMEvalKit gives whole answers, and what a judge read, to `eval`."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OTHER_SECRET", KEY)
    mark = tmp_path / "touched"
    texts = [
        f"__import__('os').system('env > {mark}')",
        f"[c for c in ().__class__.__base__.__subclasses__() if open('{mark}', 'w').write(str(c))]",
        "9**9**9**9",
        "6",
    ]
    rows = [TABLES["mathvision"]()[0] | {"index": str(number)} for number in range(4)]
    questions = ask("mathvision", write_table(tmp_path / "t.tsv", rows), tmp_path / "work")
    with judge(lambda prompt: texts[0] if "__import__" in prompt else "1") as url:
        how = {"url": url, "model": "j", "key_env": "MY_KEY"}
        started = time.monotonic()
        scored = grade("mathvision", questions, texts, tmp_path / "work", judge=how)
    assert time.monotonic() - started < 30
    assert [each.status for each in scored.grades] == ["wrong", "wrong", "wrong", "correct"]
    assert not mark.exists()
    assert scored.metrics["Overall"]["value"] == 0.25


def test_the_child_knows_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = {}
    real = process.subprocess.Popen

    def popen(*arguments, **more):
        given.update(more["env"])
        return real(*arguments, **more)

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    ask("wemath", write_table(tmp_path / "t.tsv", TABLES["wemath"]()), tmp_path / "work")
    assert given["PRED_FORMAT"] == "tsv"
    assert KEY not in given.values()
    assert not {"RANK", "WORLD_SIZE", "OPENAI_API_KEY"} & given.keys()
