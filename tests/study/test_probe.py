"""Probes of tiny models against float64, and against what training says of the same rows."""

import json
import math
import re
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from prepared import processing, rows
from transformers import AutoModelForCausalLM

from dft_mm.__main__ import main
from dft_mm.config import load_recipe
from dft_mm.data.dataset import Dataset
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.model.builtin import builtin_folder
from dft_mm.model.load import load_model
from dft_mm.model.processing import load_processing
from dft_mm.study.advice import FACTS_KEPT, FACTS_TOKENS, advise, source_advice
from dft_mm.study.probabilities import choose_rows
from dft_mm.study.probe import effective_token_ratio, labels, probe, signal_kept, to_text, write_html
from dft_mm.study.token_kinds import kinds_of, token_kind
from dft_mm.train.feed import load_data, train_batches
from dft_mm.train.module import Trainable
from dft_mm.train.step import train_step

# The tiny model says the same token again, so repetitions have a high probability and changes a low one.
ANSWERS = (
    "7777 + + + + yes yes yes go go go", "far far far , , , , 3333333 red red", "= = = = = no no no no",
    "1122 * * * * maybe maybe , , sun sun 888 555",
)  # fmt: skip


def save(model, folder):
    """A model folder with the built-in text model's tokenizer; returns it."""
    folder.mkdir(exist_ok=True)
    for file in builtin_folder("tiny-lm").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """The built-in text model with sharper predictions: its probabilities fill all of the histogram."""
    folder = tmp_path_factory.mktemp("models") / "sharp"
    model = load_model("builtin:tiny-lm")
    with torch.no_grad():
        model.model.norm.weight.mul_(12)
    return save(model, folder)


_load_processing = cache(load_processing)


@pytest.fixture(autouse=True)
def _tokenizers_are_loaded_once(monkeypatch):
    """Qwen's takes a second each time."""
    monkeypatch.setattr("dft_mm.study.probe.load_processing", lambda path: _load_processing(str(path)))


@pytest.fixture
def recipe(tmp_path, sharp):
    """A recipe file of two sources; a function loads it with changes."""
    sources = []
    for name, answers in (("a", ANSWERS), ("b", ANSWERS[::-1])):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"{name} {number}?", "completion": text * 2} for number, text in enumerate(answers)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources.append({"path": str(path), "format": "prompt_completion"})
    values = {
        "name": "p", "output": str(tmp_path / "run"), "model": {"path": str(sharp), "dtype": "float32"},
        "data": {"train": sources, "max_length": 128}, "train": {"micro_tokens": 128},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _oracle(recipe):
    """Probabilities in float64 of the supervised tokens, row by row and without packing; the tokens; each row's
    share of SFT's gradient that is left."""
    model = AutoModelForCausalLM.from_pretrained(recipe.model.path, dtype=torch.float64)
    dataset = Dataset(recipe.run_dir / "data", "train", None)
    p, targets, kept = [], [], []
    for index in range(len(dataset)):
        ids, supervised = (torch.tensor(values) for values in dataset.tokens(index))
        with torch.no_grad():
            of_next = model(ids[None].long()).logits[0].softmax(-1)[:-1].gather(1, ids[1:, None].long())[:, 0]
        p.append(of_next[supervised[1:]])
        targets.append(ids[1:][supervised[1:]])
        kept.append(float((p[-1] * (1 - p[-1])).sum() / (1 - p[-1]).sum()))
    return torch.cat(p).numpy(), torch.cat(targets).tolist(), kept


def test_all_figures_are_those_of_a_float64_softmax(recipe, capsys):
    assert main(["probe", str(recipe), "--rows", "99", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    p, targets, kept = _oracle(load_recipe(recipe))
    hist = np.histogram(p, bins=10, range=(0, 1))[0]
    assert np.count_nonzero(hist) >= 6  # else this proves little
    assert (report["tokens"], report["p_hist"]) == (len(p), hist.tolist())
    assert report["p_mean"] == pytest.approx(p.mean(), rel=1e-5)
    assert report["ce"] == pytest.approx(-np.log(p).mean(), rel=1e-5)
    assert report["effective_token_ratio"] == pytest.approx(p.sum() ** 2 / (len(p) * (p**2).sum()), rel=1e-5)
    texts = [processing("builtin:tiny-lm").tokenizer.decode([target]) for target in targets]
    patterns = {"numbers": r"\s*\d+", "operators": r"\s*[+=*]+", "words": r"\s*[a-z]+", "punctuation": r"\s*,*\s*"}
    for kind, pattern in patterns.items():
        of_kind = p[[bool(re.fullmatch(pattern, text)) for text in texts]]
        assert len(of_kind) > 10
        assert report["classes"][kind]["tokens"] == len(of_kind)
        assert report["classes"][kind]["p_mean"] == pytest.approx(of_kind.mean(), rel=1e-5)
    ends = p[[text == "<|im_end|>" for text in texts]]
    assert report["control_tokens"]["tokens"] == len(ends) == 8
    assert report["eos_p"] == pytest.approx(ends.mean(), rel=1e-5)
    assert [source["tokens"] for source in report["sources"]] == [len(p) // 2] * 2
    for source, of_source in zip(report["sources"], (kept[:4], kept[4:])):
        assert source["signal_kept"] == pytest.approx(np.median(of_source), rel=1e-4)


class _Engine:
    """A step's numbers without an update."""

    def __init__(self, module):
        self.module, self.device = module, torch.device("cpu")
        self.set_gradient_accumulation_boundary = self.step = lambda *_: None
        self.zero_optimization_stage = lambda: 3
        self.was_step_applied = lambda: True
        self.get_global_grad_norm = lambda: 1.0

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def backward(self, loss, scale_wrt_gas):
        loss.backward()


def test_a_probe_of_the_rows_of_a_runs_first_step_has_its_numbers(recipe):
    loaded = load_recipe(recipe, ["optim.batch_size=8"])
    report = probe(loaded, 8)
    data = load_data(loaded, _load_processing(loaded.model.path))
    count, tokens = len(data.plan.micro_batches(1)[0]), int(data.train.supervised.sum())
    engine = _Engine(Trainable(load_model(loaded.model.path, packed=True)))
    sums, _ = train_step(
        engine, train_batches(data, loaded, 1), count, tokens, Objective(data.losses, 1), data.end_id
    )
    metrics = sums.metrics()
    assert report["p_hist"] == metrics["p_hist"]
    assert report["tokens"] == metrics["supervised_tokens"]
    for key in ("p_mean", "ce", "eos_p"):
        assert report[key] == pytest.approx(metrics[key], rel=1e-6)
    assert report["p_mean"] == pytest.approx(metrics["weight_mean"], rel=1e-6)  # of DFT


def test_pictures_and_padding_change_nothing(tmp_path):
    source = rows(tmp_path, count=6)
    values = {"name": "v", "model": {"path": "builtin:tiny-vl", "dtype": "float32"}}
    values["data"] = {"train": [source], "max_length": 512, "bad_rows": 0.5}
    path = tmp_path / "v.yaml"
    path.write_text(yaml.safe_dump(values))
    packed, padded = (
        probe(load_recipe(path, [f"output={tmp_path}/run", f"data.pack={pack}"])) for pack in ("true", "false")
    )
    assert packed["rows"] == 6
    assert packed["p_mean"] == pytest.approx(padded["p_mean"], rel=1e-5)
    assert packed["ce"] == pytest.approx(padded["ce"], rel=1e-6)
    (tmp_path / "images/0.png").unlink()
    assert probe(load_recipe(path, [f"output={tmp_path}/run"]))["rows"] == 5  # prepared anew, without it


def test_random_weights_are_named_as_such(recipe, capsys):
    assert main(["probe", str(recipe), "--model", "builtin:tiny-lm", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["advice"] == "warmup"
    assert "random" in report["reasons"][0]
    assert "guessing among 151,936 tokens (11.93)" in report["reasons"][0]
    assert report["p_mean"] < 1e-4
    assert report["ignored_examples"] == 1.0
    assert report["p_hist"] == [report["tokens"]] + [0] * 9


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "numbers"), (" 12", "numbers"), ("1,000", "numbers"), ("½", "numbers"), ("٣", "numbers"),
        ("+", "operators"), (" =", "operators"), ("−", "operators"), ("-", "operators"), ("×", "operators"),
        ("^{", "operators"), ("\\frac", "operators"), (" \\times", "operators"), ("→", "operators"),
        (" the", "words"), ("x", "words"), ("x2", "words"), ("\\text", "words"), ("三", "words"), ("é", "words"),
        ("\N{REPLACEMENT CHARACTER}", "words"), ("<think>", "words"),
        (".", "punctuation"), (" (", "punctuation"), ("\n\n", "punctuation"), ("", "punctuation"), ("$", "punctuation"),
        ("\\", "punctuation"), ("😀", "punctuation"),
    ],
)  # fmt: skip
def test_a_token_is_what_its_text_is(text, kind):
    assert token_kind(text) == kind


def test_control_tokens_are_no_content():
    tokenizer = processing("builtin:tiny-lm").tokenizer
    seven, end = tokenizer.encode("7")[0], tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert kinds_of(tokenizer, {seven, end}) == {seven: "numbers", end: None}


class _Sources:
    def __init__(self, *sizes):
        self.sources = np.repeat(np.arange(len(sizes)), sizes)

    def __len__(self):
        return len(self.sources)


def _counts(sample, dataset, number):
    return np.bincount(dataset.sources[sample], minlength=number).tolist()


def test_a_sample_is_the_same_each_time_and_in_a_larger_one():
    dataset = _Sources(1000)
    small, large = choose_rows(dataset, [1.0], 20, 0), choose_rows(dataset, [1.0], 50, 0)
    assert len(set(small.tolist())) == 20
    assert small.tolist() == sorted(small.tolist()) == choose_rows(dataset, [1.0], 20, 0).tolist()
    assert set(small.tolist()) < set(large.tolist())
    assert small.tolist() != choose_rows(dataset, [1.0], 20, 1).tolist()
    assert small.tolist() != list(range(20))


def test_sources_have_shares_as_in_an_epoch_and_small_ones_enough():
    dataset = _Sources(3000, 1000, 40, 5)
    counts = _counts(choose_rows(dataset, [1.0, 1.0, 1.0, 1.0], 256, 0), dataset, 4)
    assert sum(counts) == 256
    assert counts[2:] == [16, 5]
    assert counts[0] == pytest.approx(3 * counts[1], abs=3)
    weighted = _counts(choose_rows(dataset, [1.0, 3.0, 1.0, 1.0], 256, 0), dataset, 4)
    assert weighted[0] == pytest.approx(weighted[1], abs=1)
    assert _counts(choose_rows(dataset, [1.0] * 4, 9999, 0), dataset, 4) == [3000, 1000, 40, 5]
    assert sum(_counts(choose_rows(dataset, [1.0] * 4, 2, 0), dataset, 4)) == 2


def test_ratio_and_kept_signal_by_hand():
    assert effective_token_ratio(np.array([0.5, 0.5])) == 1.0
    assert effective_token_ratio(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25
    assert effective_token_ratio(np.zeros(3)) == 1.0
    assert signal_kept(np.array([0.25, 0.25])) == 0.25
    assert signal_kept(np.array([1.0, 1.0, 0.1])) == pytest.approx(0.1)  # what is known already does not hide the rest
    assert signal_kept(np.ones(2)) == 1.0


def _source(path="a", rows=10, kept=0.25, length=100.0, p=0.5, loss="dft"):
    source = {"path": path, "rows": rows, "signal_kept": kept, "answer_tokens": length, "p_mean": p, "p_median": p}
    source["loss"] = loss
    return source | {"advice": source_advice(source)}


def _advice(*sources, p=0.5, median=0.5, ce=1.5):
    figures = {"p_mean": p, "p_median": median, "ce": ce, "vocabulary": 50_000, "effective_token_ratio": 0.6}
    return advise(figures | {"ignored_examples": 0.1}, sources)


def test_reasoning_is_for_dft_and_a_minority_of_facts_for_sft():
    assert _advice(_source())[0] == "dft"
    advice, reasons = _advice(_source(), _source("b", 8, FACTS_KEPT - 0.01, FACTS_TOKENS))
    assert advice == "dft"
    assert re.search(r"b: looks like facts.*answers of 128 tokens.*keeps 17%.*`loss: sft`$", reasons[1])
    assert "it has that already" in _advice(_source(), _source("b", 8, 0.1, 5, loss="sft"))[1][1]


def test_facts_alone_are_for_sft():
    advice, reasons = _advice(_source("b", 12, 0.1, 5.0), _source(rows=10))
    assert advice == "sft"
    assert reasons[0].startswith("55% of the rows")
    # Neither a short answer that is expected nor a long one that is not is a fact to learn by heart.
    assert _advice(_source(kept=0.3, length=5.0))[0] == "dft"
    assert _advice(_source(kept=0.1, length=200.0))[0] == "dft"


def test_a_weak_model_is_warmed_up_whatever_its_sources():
    for figures in ({"p": 0.1}, {"median": 0.01}, {"ce": math.log(50_000)}):
        advice, reasons = _advice(_source(kept=0.1, length=5.0), **figures)
        assert advice == "warmup"
        assert "weights each token's gradient by p" in reasons[-1]
    assert "too weak there" in _advice(_source(), _source("b", p=0.01))[1][1]


def test_models_after_training_are_laid_over_the_base(recipe, sharp, tmp_path, capsys):
    run = tmp_path / "runs/done"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: done")
    (run / "export").symlink_to(sharp)
    loaded = load_recipe(recipe)
    alone = probe(loaded, 4)
    before = (tmp_path / "run/data/manifest.json").stat()
    report = probe(loaded, 4, "builtin:tiny-lm", [str(run)])
    (after,) = report["after"]
    assert {key: after[key] for key in ("p_hist", "p_mean", "classes")} == {
        key: alone[key] for key in ("p_hist", "p_mean", "classes")
    }
    assert report["p_mean"] < 1e-4 < after["p_mean"]
    assert labels(report) == ["before", "after"]
    assert labels(report | {"after": [after, after | {"model": "x/dft/export"}]}) == [
        "before", "after done", "after dft",
    ]  # fmt: skip
    text = to_text(report)
    assert "before: builtin:tiny-lm" in text
    assert f"after: {run}/export" in text
    assert max(map(len, text.splitlines()[:30])) < 120
    page = tmp_path / "probe.html"
    write_html(report, "<p>", page)
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "&lt;p&gt;: token probabilities" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert html.count(">before<") >= 3
    assert main(["probe", str(recipe), "--rows", "2", "--html", str(tmp_path / "new/p.html")]) == 0
    assert "advice: " in capsys.readouterr().out
    assert (tmp_path / "new/p.html").is_file()
    assert (tmp_path / "run/data/manifest.json").stat() == before  # another model never prepares the rows anew


def test_an_adapter_is_put_on_the_recipes_model(recipe, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    loaded = load_recipe(recipe)
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(loaded.model.path), config)
    model.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(load_model(loaded.model.path), tmp_path / "adapter").merge_and_unload()
    save(merged, tmp_path / "merged")
    report = probe(loaded, 4, after=[str(tmp_path / "adapter"), str(tmp_path / "merged")])
    adapter, whole = report["after"]
    assert adapter["p_mean"] == pytest.approx(whole["p_mean"], rel=1e-6)
    assert abs(adapter["p_mean"] - report["p_mean"]) > 1e-4


def test_models_that_cannot_be_probed_are_refused(recipe, tmp_path, sharp, capsys):
    loaded = load_recipe(recipe)
    run = tmp_path / "young"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: young")
    with pytest.raises(InputError, match=r"--after .*young: the run has not written its model yet"):
        probe(loaded, after=[str(run)])
    with pytest.raises(InputError, match=r"--model: .*nothing-there"):
        probe(loaded, model="./nothing-there")
    with pytest.raises(InputError, match="--after builtin:tiny-vl: its tokenizer or chat template"):
        probe(loaded, after=["builtin:tiny-vl"])
    other = shutil.copytree(sharp, tmp_path / "other")
    with (other / "chat_template.jinja").open("a") as template:
        template.write("{# changed #}{{ '' }}")
    assert main(["probe", str(recipe), "--model", str(other)]) == 2
    assert "its tokenizer or chat template is not that of model.path" in capsys.readouterr().err


def test_weights_that_give_no_numbers_are_refused(recipe, sharp, tmp_path):
    model = load_model(sharp)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    broken = save(model, tmp_path / "broken")
    with pytest.raises(InputError, match="not finite"):
        probe(load_recipe(recipe), model=str(broken))
