"""A whole evaluation from answers made elsewhere: files, statuses, and what is refused."""

import json
import shutil

import pytest
from asked import load_questions

from dft_mm.errors import InputError
from dft_mm.evaluate.answering import model_hash
from dft_mm.evaluate.requests import seed_of
from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


def _suite(*benchmarks, **sampling):
    return Suite.model_validate({"name": "s", "sampling": sampling, "benchmarks": list(benchmarks)})


def _answers(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _answer(id, text, sample=0, benchmark="gsm8k", **more):
    return {"benchmark": benchmark, "id": id, "sample": sample, "text": text, **more}


def _json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_of_the_contract_is_written(sums, model, tmp_path):
    texts = [r"\boxed{2}", r"\boxed{5}", "", "Let me", "The answer is 10.", "#### 12", r"so \boxed{14}"]
    rows = [_answer(str(n), text) for n, text in enumerate(texts, 1)]
    rows[3]["finish_reason"] = "length"
    replay = _answers(tmp_path / "a.jsonl", rows)
    out = tmp_path / "out"
    returned = evaluate(_suite({"task": "gsm8k", "data": str(sums)}), model, out, replay=replay)
    assert returned == json.loads((out / "results.json").read_text(encoding="utf-8"))
    entry = returned["benchmarks"]["gsm8k"]
    assert returned["suite"] == "s"
    assert returned["model"] == str(model)
    assert entry["status"] == {"correct": 4, "no_answer": 1, "truncated": 1, "wrong": 1}
    assert entry["samples"] == 1
    assert entry["metrics"]["avg@1"]["value"] == pytest.approx(4 / 7)
    assert set(entry["metrics"]["avg@1"]) == {"value", "se", "ci95", "n"}
    generations, scores = _json_lines(out / "generations.jsonl"), _json_lines(out / "scores.jsonl")
    assert set(generations[0]) == {"benchmark", "id", "sample", "prompt", "text", "finish_reason", "tokens", "seed"}
    assert set(scores[0]) >= {"benchmark", "id", "sample", "status", "extracted", "gold", "detail"}
    assert [line["text"] for line in generations] == texts
    assert "What is 1 + 1?" in generations[0]["prompt"]
    assert [line["status"] for line in scores[:4]] == ["correct", "wrong", "no_answer", "truncated"]
    assert (scores[0]["extracted"], scores[0]["gold"]) == ("2", "2")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert {"suite", "model", "backend", "data_sha256", "versions"} == set(manifest)
    assert "57.1" in (out / "results.md").read_text(encoding="utf-8")


def test_real_rows_with_known_answers(shared, model, tmp_path):
    data = shared / "data/text_math"
    suite = _suite(
        {"task": "gsm8k", "data": str(data / "gsm8k"), "limit": 200},
        {"task": "math500", "data": str(data / "math_oai/test.jsonl"), "name": "math"},
    )
    rows, expected = [], {}
    for benchmark in suite.benchmarks:
        questions = load_questions(benchmark.task, benchmark.data, benchmark.limit)
        path = data / ("gsm8k" if benchmark.task == "gsm8k" else "math_oai") / "test.jsonl"
        originals = _json_lines(path)
        for number, (question, row) in enumerate(zip(questions, originals)):
            text, status = [
                # The published solution in full: it ends with the box or with `####`.
                (row["answer"] if benchmark.task == "gsm8k" else row["solution"], "correct"),
                (rf"It is \boxed{{{question.gold} + 1}}", "wrong"),
                ("", "no_answer"),
                ("We first consider", "truncated"),
            ][number % 4]
            more = {"finish_reason": "length"} if status == "truncated" else {}
            if status == "wrong" and not question.gold.isdigit():
                text, status = r"It is \boxed{123454321}", "wrong"
            rows.append(_answer(question.id, text, benchmark=benchmark.key, **more))
            expected[benchmark.key, question.id] = status
    evaluate(suite, model, tmp_path / "out", replay=_answers(tmp_path / "a.jsonl", rows))
    scores = _json_lines(tmp_path / "out/scores.jsonl")
    assert {score["id"] for score in scores if score["benchmark"] == "math"} >= {"test/precalculus/807.json"}
    wrong = [score for score in scores if score["status"] != expected[score["benchmark"], score["id"]]]
    assert wrong == []
    assert len(scores) == 600


def test_a_missing_answer_names_its_id(sums, model, tmp_path):
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), "1") for n in (1, 2, 3, 5, 6, 7)])
    with pytest.raises(InputError, match=r"a\.jsonl.*'gsm8k', id '4', sample 0"):
        evaluate(_suite({"task": "gsm8k", "data": str(sums)}), model, tmp_path / "out", replay=replay)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "1", "text": "x"}, "benchmark"),
        (_answer("1", None), "text"),
        (_answer("1", "x", finish_reason="tired"), "finish_reason"),
        ([], "answer"),
        (_answer("1", "twice"), "twice"),
    ],
)
def test_a_wrong_line_of_the_replay_file_is_named(sums, model, tmp_path, row, words):
    replay = _answers(tmp_path / "a.jsonl", [_answer("1", "x"), row])
    with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{words}"):
        evaluate(_suite({"task": "gsm8k", "data": str(sums)}), model, tmp_path / "out", replay=replay)


def test_samples_of_a_question_are_kept_apart(sums, model, tmp_path):
    rows = [_answer("1", r"\boxed{2}", 0), _answer("1", r"\boxed{3}", 1)]
    rows += [_answer("2", r"\boxed{4}", n) for n in (0, 1)]
    suite = _suite({"task": "gsm8k", "data": str(sums), "limit": 2}, temperature=1.0, samples=2)
    entry = evaluate(suite, model, tmp_path / "out", replay=_answers(tmp_path / "a.jsonl", rows))
    metrics = entry["benchmarks"]["gsm8k"]["metrics"]
    assert metrics["avg@2"]["value"] == 0.75
    assert metrics["pass@2"]["value"] == 1.0
    assert metrics["avg@2"]["n"] == 2


def test_another_evaluation_in_the_same_folder_is_refused(sums, model, tmp_path):
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), r"\boxed{2}") for n in range(1, 8)])
    benchmark = {"task": "gsm8k", "data": str(sums)}
    out = tmp_path / "out"
    first = evaluate(_suite(benchmark), model, out, replay=replay)
    for name in ("generations.jsonl", "results.json"):  # as a killed process leaves them
        (out / f".{name}.4711").write_text("half")
    assert evaluate(_suite(benchmark), model, out, replay=replay) == first
    assert not list(out.glob(".*"))

    elsewhere = shutil.copytree(model, tmp_path / "moved")
    moved = evaluate(_suite(benchmark), elsewhere, out, replay=replay)
    assert moved["benchmarks"] == first["benchmarks"]

    with pytest.raises(InputError, match=r"max_tokens was 1024, is 7.*--out"):
        evaluate(_suite(benchmark, max_tokens=7), model, out, replay=replay)
    (elsewhere / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"model\.sha256"):
        evaluate(_suite(benchmark), elsewhere, out, replay=replay)
    other = tmp_path / "other.jsonl"
    other.write_text(sums.read_text(encoding="utf-8").replace("apples", "pears"), encoding="utf-8")
    with pytest.raises(InputError, match=r"data_sha256\.gsm8k"):
        evaluate(_suite(benchmark | {"data": str(other)}), model, out, replay=replay)
    changed = _answers(tmp_path / "b.jsonl", [_answer(str(n), r"\boxed{3}") for n in range(1, 8)])
    with pytest.raises(InputError, match="answers_sha256"):
        evaluate(_suite(benchmark), model, out, replay=changed)


@pytest.fixture
def adapter(tmp_path):
    """A function that makes the folder of an adapter of a base."""

    def adapter(base):
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
        return folder

    return adapter


def test_another_base_below_the_same_adapter_is_another_model(model, adapter):
    asked = str(adapter(model))
    first = model_hash(asked, "hf")
    assert model_hash(asked, "hf") == first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert model_hash(asked, "hf") != first


def test_answers_from_elsewhere_to_an_adapter_need_no_base(sums, adapter, tmp_path):
    asked = adapter("./a/base/that/is/not/here")
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), r"\boxed{2}") for n in range(1, 8)])
    suite, out = _suite({"task": "gsm8k", "data": str(sums)}), tmp_path / "out"
    for _ in range(2):  # the second time it is the same model
        evaluate(suite, asked, out, replay=replay)
    (asked / "adapter_model.safetensors").write_bytes(b"another adapter")
    with pytest.raises(InputError, match=r"model\.sha256"):
        evaluate(suite, asked, out, replay=replay)


def test_changed_generations_are_noticed(sums, model, tmp_path):
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), r"\boxed{2}") for n in range(1, 8)])
    suite, out = _suite({"task": "gsm8k", "data": str(sums)}), tmp_path / "out"
    evaluate(suite, model, out, replay=replay)
    lines = (out / "generations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    foreign = lines[0].replace('"id": "1"', '"id": "99"')
    for wrong in ([*lines, foreign], lines + lines[:1], ["{}\n", *lines[1:]]):
        (out / "generations.jsonl").write_text("".join(wrong), encoding="utf-8")
        with pytest.raises(InputError, match=r"generations\.jsonl"):
            evaluate(suite, model, out, replay=replay)


def test_a_folder_with_other_things_in_it_is_left_alone(sums, model, tmp_path):
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), "1") for n in range(1, 8)])
    with pytest.raises(InputError, match="not empty"):
        evaluate(_suite({"task": "gsm8k", "data": str(sums)}), model, model, replay=replay)


def test_backends_are_named_and_fit_their_options(sums, model, tmp_path):
    suite = _suite({"task": "gsm8k", "data": str(sums)})
    with pytest.raises(InputError, match=r"there are .*hf, .*replay"):
        evaluate(suite, model, tmp_path / "out", backend="hff")
    with pytest.raises(InputError, match="--replay FILE"):
        evaluate(suite, model, tmp_path / "out", backend="replay")
    with pytest.raises(InputError, match="not for hf"):
        evaluate(suite, model, tmp_path / "out", backend="hf", replay=tmp_path / "a.jsonl")


def test_seeds_differ_and_never_change():
    assert seed_of(0, "gsm8k", "1", 0) == seed_of(0, "gsm8k", "1", 0)
    keys = [(s, b, i, n) for s in (0, 1) for b in ("a", "b") for i in ("1", "2") for n in (0, 1)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_odd_text_survives(sums, model, tmp_path):
    texts = ["\ud800 \\boxed{2}", "\u2028\\boxed{4}\x85", "\0\r\n\\boxed{6}"]
    replay = _answers(tmp_path / "a.jsonl", [_answer(str(n), text) for n, text in enumerate(texts, 1)])
    suite, out = _suite({"task": "gsm8k", "data": str(sums), "limit": 3}), tmp_path / "out"
    for _ in range(2):
        entry = evaluate(suite, model, out, replay=replay)["benchmarks"]["gsm8k"]
        assert entry["status"] == {"correct": 3}
