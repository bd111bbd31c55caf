"""Sampled answers: which are kept, paired and counted, what is refused, and that what is kept can be learned from."""

import json

import pytest
import torch
import yaml
from PIL import Image
from started import started, until

from dft_mm.__main__ import main, parser
from dft_mm.config import load_recipe
from dft_mm.data.dataset import Dataset
from dft_mm.evaluate.mathematics.worker import MathWorker
from dft_mm.evaluate.task import Answer, Grade, Question
from dft_mm.lock import locked
from dft_mm.model.processing import load_processing
from dft_mm.study.solved import Solved, statistics
from dft_mm.train.feed import prepare_data

CUT = "cut"
"""Stands before the text of an answer that ends at the token limit."""


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_recipe(folder, model="builtin:tiny-lm", **source):
    source = source or {"path": "unused.jsonl"}
    values = {
        "name": "r", "output": str(folder / "run"), "model": {"path": model},
        "data": {"train": [source], "max_length": 512},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def sampled(tmp_path):
    """A function that samples from answers made elsewhere; returns the exit code. Questions are rows, or the gold
    answers by id; answers are lists of texts by id."""

    def run(questions, answers, *words):
        if isinstance(questions, dict):
            questions = [{"id": id_, "problem": f"Question {id_}?", "answer": gold} for id_, gold in questions.items()]
        replay = [
            {"benchmark": "sample", "id": id_, "sample": number, "text": text.removeprefix(CUT)}
            | {"finish_reason": "length" if text.startswith(CUT) else "stop"}
            for id_, texts in answers.items()
            for number, text in enumerate(texts)
        ]
        count = max(map(len, answers.values()), default=1)
        return main([
            "sample", str(make_recipe(tmp_path)), "--questions", str(write(tmp_path / "questions.jsonl", questions)),
            "--replay", str(write(tmp_path / "replay.jsonl", replay)), "--n", str(count), "--out",
            str(tmp_path / "out"), *words,
        ])  # fmt: skip

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def stats_of(out):
    return json.loads((out / "stats.json").read_text())


GOLDS = {"a": "4", "b": "7", "c": r"\frac{1}{2}", "d": "9"}
ANSWERS = {
    "a": [r"So \boxed{4}", "\nSo \\boxed{4}  ", r"Hence \boxed{4}", r"\boxed{5}"],
    "b": [r"\boxed{1}", r"\boxed{2}", r"\boxed{1}", "no idea, really"],
    "c": [CUT + r"First \boxed{\frac{1}{2}} but wait", r"It is \boxed{0.5}", r"\boxed{3}", CUT + r"so \boxed{3}"],
    "d": [r"one \boxed{9}", r"two \boxed{9}", r"three \boxed{9}", r"four \boxed{9}"],
}


def test_the_correct_ones_are_kept_and_all_are_counted(sampled, out, capsys):
    assert sampled(GOLDS, ANSWERS) == 0
    kept = lines(out / "correct.jsonl")
    assert [(row["id"], row["sample"]) for row in kept] == [
        ("a", 0), ("a", 2), ("c", 1), ("d", 0), ("d", 1), ("d", 2), ("d", 3),
    ]  # fmt: skip
    assert kept[0] == {
        "id": "a", "problem": "Question a?", "solution": r"So \boxed{4}", "sample": 0, "pass_rate": 0.75,
    }  # fmt: skip
    stats = stats_of(out)
    assert (stats["questions"], stats["samples"], stats["correct"], stats["kept"]) == (4, 16, 8, 7)
    assert (stats["duplicates"], stats["over_cap"]) == (1, 0)
    assert stats["status"] == {"correct": 8, "no_answer": 1, "truncated": 2, "wrong": 5}
    assert stats["pass_rate"] == {"a": 0.75, "b": 0.0, "c": 0.25, "d": 1.0}
    assert stats["histogram"] == [1, 1, 0, 1, 1]
    assert stats["bands"] == {
        "easy": ["a", "d"], "medium": [], "hard": ["c"], "never_solved": ["b"], "not_scored": [],
    }  # fmt: skip
    assert not (out / "pairs.jsonl").exists()
    assert [line["status"] for line in lines(out / "scores.jsonl")].count("wrong") == 5
    assert "kept 7 of 8 correct (1 said twice, 0 over the cap)" in capsys.readouterr().out


def test_a_cap_keeps_the_first_ones_of_each_question(sampled, out):
    assert sampled(GOLDS, ANSWERS, "--cap", "2") == 0
    assert [(row["id"], row["sample"]) for row in lines(out / "correct.jsonl")] == [
        ("a", 0), ("a", 2), ("c", 1), ("d", 0), ("d", 1),
    ]  # fmt: skip
    stats = stats_of(out)
    assert (stats["correct"], stats["kept"], stats["duplicates"], stats["over_cap"]) == (8, 5, 1, 2)


def test_pairs_are_of_correct_and_wrong_answers_only(sampled, out):
    answers = ANSWERS | {
        "b": [r"\boxed{1}", r"x \boxed{7}", r"\boxed{1} ", r"y \boxed{7}"],
        "d": [r"\boxed{9}", "", CUT + r"\boxed{8}", r"\boxed{9}."],
    }
    assert sampled(GOLDS, answers, "--pairs") == 0
    assert lines(out / "pairs.jsonl") == [
        {"id": "a", "prompt": "Question a?", "chosen": r"So \boxed{4}", "rejected": r"\boxed{5}"},
        {"id": "b", "prompt": "Question b?", "chosen": r"x \boxed{7}", "rejected": r"\boxed{1}"},
        {"id": "c", "prompt": "Question c?", "chosen": r"It is \boxed{0.5}", "rejected": r"\boxed{3}"},
    ]
    assert stats_of(out)["pairs"] == 3


def test_pairs_have_different_answers_up_to_the_cap(sampled, out):
    answers = {"a": [r"\boxed{1}", r"x \boxed{4}", r"\boxed{2}", r"y \boxed{4}", r"z \boxed{4}", r"\boxed{3}"]}

    def found(*words):
        assert sampled({"a": "4"}, answers, "--pairs", *words) == 0
        return [(row["chosen"], row["rejected"]) for row in lines(out / "pairs.jsonl")]

    assert found() == [
        (r"x \boxed{4}", r"\boxed{1}"), (r"y \boxed{4}", r"\boxed{2}"), (r"z \boxed{4}", r"\boxed{3}"),
    ]  # fmt: skip
    assert found("--cap", "2") == [(r"x \boxed{4}", r"\boxed{1}"), (r"y \boxed{4}", r"\boxed{2}")]
    assert sampled({"a": "4"}, answers) == 0
    assert not (out / "pairs.jsonl").exists()


def test_golds_are_read_as_the_benchmarks_have_them(sampled, out):
    rows = [
        {"question": "Sum?", "answer": "1 + 1\n#### 1,002"},
        {"problem": "Root?", "solution": r"We see that it is $\boxed{12}$.", "answer": 3.0},
        {"problem": "Half?", "solution": r"We see that it is $\boxed{12}$."},
    ]
    assert sampled(rows, {"1": [r"\boxed{1002}"], "2": [r"\boxed{3}"], "3": [r"\boxed{12}"]}) == 0
    assert [row["problem"] for row in lines(out / "correct.jsonl")] == ["Sum?", "Root?", "Half?"]
    assert [line["gold"] for line in lines(out / "scores.jsonl")] == ["1,002", "3", "12"]


def test_questions_whose_gold_cannot_be_graded_are_named_and_not_asked(sampled, out, capsys):
    rows = [
        {"id": "proof", "problem": "Show it.", "solution": "It follows."},
        {"id": "broken", "problem": "What?", "answer": r"\frac{1"},
        {"id": "good", "problem": "What?", "answer": "1"},
    ]
    assert sampled(rows, {"good": [r"\boxed{1}"]}) == 0
    stats = stats_of(out)
    assert stats["ungradable_gold"] == ["proof", "broken"]
    assert (stats["questions"], stats["kept"]) == (1, 1)
    assert "2 not asked" in capsys.readouterr().out
    assert sampled(rows[:2], {}, "--out", str(out / "other")) == 2
    assert "none of its 2 gold answers can be graded" in capsys.readouterr().err


def test_a_question_that_could_not_be_scored_has_no_pass_rate():
    question = Question("q", [], "gold", about={"problem": "?"})
    answers = [Answer(question, n, text, "stop") for n, text in enumerate("xyz")]
    stats = statistics([Solved(question, answers, [Grade(s, None) for s in ("correct", "ungradable", "timeout")])], 1)
    assert stats["pass_rate"] == {"q": None}
    assert stats["bands"]["not_scored"] == ["q"]
    assert stats["histogram"] == [0, 0, 0, 0]
    late = statistics([Solved(question, answers, [Grade(s, None) for s in ("correct", "wrong", "timeout")])], 1)
    assert late["pass_rate"] == {"q": 1 / 3}
    assert late["status"] == {"correct": 1, "timeout": 1, "wrong": 1}


def test_a_comparison_that_is_too_slow_is_neither_kept_nor_rejected(sampled, out, monkeypatch):
    monkeypatch.setattr(MathWorker, "compare", lambda *_: "timeout")
    answers = {"a": [r"\boxed{\frac{1}{\sqrt{2}}}", r"\boxed{\frac{\sqrt{2}}{2}}", r"\boxed{\frac{\sqrt{3}}{2}}"]}
    assert sampled({"a": r"\frac{1}{\sqrt{2}}"}, answers, "--pairs") == 0
    assert stats_of(out)["status"] == {"correct": 1, "timeout": 2}
    assert lines(out / "pairs.jsonl") == []


GOOD = {"problem": "What?", "answer": "1"}
MALFORMED = {
    "no problem": ({"answer": "1"}, "'problem'"),
    "no answer": ({"problem": "What?"}, "'answer'"),
    "empty answer": (GOOD | {"answer": " "}, "gold answer is empty"),
    "nothing behind ####": (GOOD | {"answer": "so ####"}, "gold answer is empty"),
    "answer of another type": (GOOD | {"answer": ["1"]}, "must be text or a number"),
    "empty problem": (GOOD | {"problem": ""}, "`problem` must be text"),
    "the same id": (GOOD | {"id": 1}, "id '1' is that of line 1"),
    "no object": ([1], "not a row"),
    "pictures that are no paths": (GOOD | {"images": [{"bytes": "x"}]}, "pictures must be paths"),
    "fewer marks than pictures": (GOOD | {"problem": "<image>?", "images": ["a.png", "b.png"]}, "1 places `<image>`"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_question_is_named_with_file_and_line(sampled, out, capsys, kind):
    row, words = MALFORMED[kind]
    assert sampled([GOOD, row], {"1": [r"\boxed{1}"]}) == 2
    said = capsys.readouterr().err
    assert "questions.jsonl:2: " in said
    assert words in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "0"], "temperature is 0: all answers would be the same"),
        (["--temperature", "-1"], "--temperature -1.0: "),
        (["--top-p", "1.5"], "--top-p 1.5: "),
        (["--max-tokens", "0"], "--max-tokens 0: "),
        (["--questions", "nothing.jsonl"], "nothing.jsonl"),
        (["--prompt", "nothing"], "prompt 'nothing'"),
        (["--backend", "hff"], "hff"),
        (["--concurrency", "3"], "not for replay"),
    ],
)
def test_wrong_options_are_one_message_and_exit_2(sampled, out, capsys, words, said):
    assert sampled({"a": "4"}, {"a": [r"\boxed{4}"] * 2}, *words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_the_folder_is_that_of_one_sampling(sampled, out, capsys):
    assert sampled(GOLDS, ANSWERS) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sampled(GOLDS, ANSWERS) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sampled(GOLDS, ANSWERS, "--max-tokens", "9") == 2
    assert "holds another sampling: sampling.max_tokens was 2048, is 9" in capsys.readouterr().err
    assert sampled(GOLDS | {"a": "5"}, ANSWERS) == 2
    assert "data_sha256.sample" in capsys.readouterr().err
    with locked(out, "sampling", ""):
        assert sampled(GOLDS, ANSWERS) == 2
    assert "another sampling works there now" in capsys.readouterr().err
    assert sampled(GOLDS, {"a": ANSWERS["a"]}, "--out", str(out / "other")) == 2
    assert "no answer for benchmark 'sample', id 'b', sample 0" in capsys.readouterr().err


def prepared(folder, source):
    """What `prepare` makes of a source: the manifest, and the texts of the examples."""
    model = "builtin:tiny-vl" if "images" in source else "builtin:tiny-lm"
    recipe, processing = load_recipe(make_recipe(folder, model, **source)), load_processing(model)
    manifest = prepare_data(recipe, processing)
    dataset = Dataset(recipe.run_dir / "data", "train", None)
    return manifest, [processing.tokenizer.decode(dataset.tokens(n)[0]) for n in range(len(dataset))]


def test_what_is_kept_can_be_learned_from_under_the_prompt_it_was_sampled_with(sampled, out, tmp_path):
    assert sampled(GOLDS, ANSWERS) == 0
    source = stats_of(out)["source"]
    assert source["format"] == "problem_solution"
    manifest, texts = prepared(tmp_path, source)
    assert manifest["examples"]["train"] == 7
    assert "reason step by step" in texts[0]
    assert "Question a?" in texts[0]
    assert "So \\boxed{4}" in texts[0]
    assert prepared(tmp_path, source | {"format": "auto"})[1] == texts


def test_words_of_a_prompt_that_training_would_not_say_are_warned_of(sampled, out, capsys):
    assert sampled(GOLDS, ANSWERS, "--prompt", "qwen_math_user") == 0
    assert "without the other words of --prompt" in capsys.readouterr().err
    assert "system" not in stats_of(out)["source"]
    assert "reason step by step" in lines(out / "generations.jsonl")[0]["prompt"]
    assert lines(out / "correct.jsonl")[0]["problem"] == "Question a?"


def test_where_nothing_is_kept_it_is_said_what_to_try(sampled, out, capsys):
    assert sampled({"a": "4"}, {"a": [r"\boxed{5}"]}, "--prompt", "qwen_math_user") == 0
    said = capsys.readouterr()
    assert lines(out / "correct.jsonl") == []
    assert "none is kept to learn from: ask more often (--n)" in said.out
    assert "learn from them with" not in said.out
    assert "without the other words" not in said.err


@pytest.fixture
def pictured(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        Image.linear_gradient("L").resize((56, 84)).convert("RGB").save(tmp_path / f"pictures/{name}.png")
    return [
        {"id": "one", "problem": "Which?", "answer": "1", "image": "a.png"},
        {"id": "two", "problem": "Is <image> like <image>?", "answer": "2", "images": ["a.png", "b.png"]},
        {"id": "none", "problem": "What is 3?", "answer": "3"},
    ]


def test_pictures_travel_to_what_is_learned(sampled, pictured, out, tmp_path):
    answers = {row["id"]: [rf"\boxed{{{row['answer']}}}", r"\boxed{0}"] for row in pictured}
    assert sampled(pictured, answers, "--pairs", "--images", str(tmp_path / "pictures")) == 0
    assert [row["images"] for row in lines(out / "correct.jsonl")] == [["a.png"], ["a.png", "b.png"], []]
    assert [row.get("images") for row in lines(out / "pairs.jsonl")] == [["a.png"], ["a.png", "b.png"], None]
    source = stats_of(out)["source"]
    assert (source["format"], source["images"]) == ("question_answer", str(tmp_path / "pictures"))
    manifest, texts = prepared(tmp_path, source)
    assert manifest["examples"]["train"] == 3
    assert [text.count("<|vision_start|>") for text in texts] == [1, 2, 0]
    assert "like<|vision_start|>" in texts[1].replace(" ", "")
    assert prepared(tmp_path, source | {"format": "auto"})[1] == texts


@pytest.fixture
def one_thread():
    """As the processes of `started` have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(folder, out, model, questions, *words):
    """Sampling from a real model, in batches of three answers."""
    recipe = make_recipe(folder, model)
    return [
        "sample", recipe, "--questions", write(folder / "questions.jsonl", questions), "--out", out,
        "--batch-size", "3", *words,
    ]  # fmt: skip


def test_killed_and_gone_on_with_the_end_is_the_same(tmp_path, capsys, one_thread):
    """A built-in model, really asked."""
    questions = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1, 5)]
    words = ("--n", "3", "--max-tokens", "30", "--pairs", "--seed", "5")

    def words_for(out):
        return [str(word) for word in command(tmp_path, out, "builtin:tiny-lm", questions, *words)]

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(words_for(whole)) == 0
    with started(words_for(out), tmp_path / "log") as child:
        until(lambda: (out / "generations.jsonl").is_file() and (out / "generations.jsonl").stat().st_size, child)
    assert not (out / "stats.json").exists()
    capsys.readouterr()
    assert main(words_for(out)) == 0
    assert "of 12 answers were there already" in capsys.readouterr().err
    names = {"manifest.json", "generations.jsonl", "scores.jsonl", "correct.jsonl", "pairs.jsonl", "stats.json"}
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()} == names
    for name in names - {"stats.json"}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = stats_of(out), stats_of(whole)
    assert one | {"source": None} == other | {"source": None}  # which names the folder
    generations = lines(out / "generations.jsonl")
    assert len({line["seed"] for line in generations}) == len(generations) == 12
    assert len({line["text"] for line in generations}) > 4  # samples of a question differ
    assert "reason step by step" in generations[0]["prompt"]
    assert sum(one["status"].values()) == one["samples"] == 12


def test_a_model_that_sees_is_shown_the_pictures(pictured, tmp_path):
    words = ("--n", "1", "--max-tokens", "2", "--temperature", "0", "--images", tmp_path / "pictures")
    assert main([str(w) for w in command(tmp_path, tmp_path / "out", "builtin:tiny-vl", pictured, *words)]) == 0
    prompts = {line["id"]: line["prompt"] for line in lines(tmp_path / "out/generations.jsonl")}
    assert {id_: prompt.count("<|image_pad|>") for id_, prompt in prompts.items()} == {"one": 1, "two": 2, "none": 0}
    pictured[0]["image"] = "../recipe.yaml"
    wrong = command(tmp_path, tmp_path / "other", "builtin:tiny-vl", pictured, *words)
    assert main([str(w) for w in wrong]) == 2


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["sample", "--help"])
    assert stop.value.code == 0
    assert "dft-mm sample RECIPE.yaml" in capsys.readouterr().out.split("example:")[1]
