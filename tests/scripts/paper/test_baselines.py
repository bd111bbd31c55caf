"""The baselines of Table 2 through TRL, two steps each on a tiny model."""

import argparse
import json
import math

import pytest

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from scripts.paper import baselines

PROBLEMS = [(f"What is {a} plus {b}?", a + b) for a, b in ((2, 3), (4, 5), (6, 1), (3, 3))]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: t\nmodel: {path: builtin:tiny-lm, dtype: float32, gradient_checkpointing: false}\n"
        "data: {train: [{path: x.jsonl, format: problem_solution}], max_length: 128}\n"
    )
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def given(recipe, **changes):
    own = {"recipe": recipe, "batch": None, "micro": 4, "max_tokens": 2048, "steps": None, "vllm": False, "out": recipe}
    return argparse.Namespace(**own | changes)


@pytest.mark.parametrize(
    ("method", "rate", "answers", "warmup"), [("dpo", 1e-6, 128, 0.05), ("grpo", 1e-6, 4 * 256, 0.1)]
)
def test_settings_are_those_of_the_paper(recipe, method, rate, answers, warmup):
    told = baselines._arguments(load_recipe(recipe), given(recipe, method=method))
    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] == answers
    assert (told["learning_rate"], told["warmup_steps"]) == (rate, warmup)
    assert told.get("num_generations", 4) == 4


def test_a_micro_batch_that_does_not_part_the_batch_is_told(recipe):
    with pytest.raises(InputError, match="--micro 3: 128 answers of a step do not part"):
        baselines._arguments(load_recipe(recipe), given(recipe, method="dpo", micro=3))


def test_the_reward_is_one_for_a_right_answer():
    texts = [r"so \boxed{72}", r"so \boxed{71}", "no idea", r"\boxed{\frac{144}{2}}"]
    assert baselines.right([[{"role": "assistant", "content": text}] for text in texts], ["72"] * 4) == [1, 0, 0, 1]


def test_pairs_without_a_text_are_told(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
    with pytest.raises(InputError, match=r"pairs\.jsonl:1: no text 'rejected'"):
        baselines._pairs(path)


@pytest.mark.long
@pytest.mark.parametrize("method", ["dpo", "grpo", "rloo"])
def test_two_steps_and_a_model_that_is_asked(recipe, tmp_path, method):
    pytest.importorskip("trl")
    from dft_mm.__main__ import main

    questions = write(tmp_path / "q.jsonl", [{"problem": p, "answer": str(a)} for p, a in PROBLEMS])
    pairs = [{"prompt": p, "chosen": rf"\boxed{{{a}}}", "rejected": rf"\boxed{{{a + 1}}}"} for p, a in PROBLEMS]
    data = write(tmp_path / "pairs.jsonl", pairs) if method == "dpo" else questions
    out = tmp_path / method
    words = [method, str(recipe), "--data", str(data), "--out", str(out), "--steps", "2", "--batch", "2"]
    assert baselines.main([*words, "--micro", "2", "--max-tokens", "8"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    if method == "dpo":  # -log sigmoid(0): nothing is preferred before the first update
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    else:
        assert "reward" in lines[0]
    assert json.loads((out / "export/dft_mm.json").read_text())["method"] == method
    scoring = ["eval", "smoke", "sampling.max_tokens=4", "--model", str(out / "export"), "--out", str(out / "scores")]
    assert main(scoring) == 0
