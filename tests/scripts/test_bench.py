"""The benches measure what they say, in tiny sizes. They are compared with torch's own counting and with float64."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import IMAGE_ID, tiny_llama, tiny_vl
from torch.utils.flop_counter import FlopCounterMode

from dft_mm.batch import IGNORE_INDEX, Example
from dft_mm.config import OptimConfig
from dft_mm.data.images import ImageSettings
from dft_mm.data.plan import Load
from dft_mm.families import family_of
from dft_mm.model.builtin import IMAGE_PROCESSOR
from dft_mm.study import work
from dft_mm.train.module import Trainable
from scripts.bench import loss_head, measure, packing, readme, step_contestants, watch
from scripts.bench.step_setup import PaddedInputs

CPU = torch.device("cpu")


def test_contestants_take_turns_and_the_first_round_is_not_counted():
    called = []
    contestants = {name: lambda name=name: called.append(name) for name in "AB"}
    spent = measure.take_turns(contestants, 2, CPU)
    assert "".join(called) == "ABABAB"
    assert {name: len(times) for name, times in spent.items()} == {"A": 2, "B": 2}


def test_peak_memory_is_of_what_is_held_at_once():
    mib = 2**20

    def one_after_the_other():
        torch.empty(3 * mib, dtype=torch.uint8)
        torch.empty(5 * mib, dtype=torch.uint8)

    def together():
        return torch.empty(3 * mib, dtype=torch.uint8), torch.empty(5 * mib, dtype=torch.uint8)

    assert measure.peak_bytes(one_after_the_other, CPU) == 5 * mib
    assert measure.peak_bytes(together, CPU) == 8 * mib


@pytest.mark.parametrize(
    ("reached", "at_least", "line"),
    [
        (0.31, False, "C1 time ≤ 0.4: reached 0.31 yes"),
        (0.41, False, "C1 time ≤ 0.4: reached 0.41 no"),
        (0.41, True, "C1 time ≥ 0.4: reached 0.41 yes"),
        (None, False, "C1 time ≤ 0.4: not measured"),
    ],
)
def test_a_target_tells_whether_it_was_reached(reached, at_least, line):
    assert measure.verdict(measure.Target("C1", "time", 0.4, at_least).judged(reached)) == line


def test_heads_agree_with_float64():
    """So that a time is never that of something else: loss and gradients of every peer that needs no compiler."""
    peers = [loss_head.OURS, loss_head.PLAIN, "plain, compacted", loss_head.TRL, loss_head.LIGER_SCALED]
    present = {name: loss_head.CONTESTANTS[name](CPU) for name in peers}
    rows = loss_head.measure(loss_head.Case(48, 16, 96, 0.5), present, 1, CPU)
    assert [row["name"] for row in rows] == [*peers, loss_head.ROUNDED]
    assert max(row[key] for row in rows for key in loss_head.ERROR_KEYS) < 1e-5
    assert all(row["ms"] > 0 and row["extra_mib"] > 0 for row in rows[:-1])
    assert rows[0]["ours_ms"] == rows[0]["ours_extra_mib"] == 1
    limits = [reach(rows) for _, reach in loss_head.TARGETS["cpu"]]
    assert limits[0] is None  # no case with 15 % supervised
    assert limits[3] == rows[1]["ours_extra_mib"]


def test_the_exact_head_is_the_formula():
    hidden, weight, targets = loss_head.inputs(loss_head.Case(20, 8, 32, 0.5, "float64"), CPU)
    loss, of_hidden, of_weight = loss_head.exact(hidden, weight, targets, rows=3)
    p = (hidden @ weight.T).softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0][targets != IGNORE_INDEX]
    true = -(p.detach() * p.log()).sum()
    true.backward()
    torch.testing.assert_close(loss, true.detach())
    torch.testing.assert_close(of_hidden, hidden.grad)
    torch.testing.assert_close(of_weight, weight.grad)
    assert p.min() < 0.1  # as while fine-tuning: some hardly known, some certain
    assert p.max() > 0.9


def counted(run):
    """Operations of matrix products and convolutions, and those of attention's, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = found.pop("aten.bmm")
    return sum(found.values()), attention


@pytest.mark.parametrize("frozen", [True, False])
def test_operations_of_a_text_model_are_those_that_torch_counts(frozen):
    """Frozen layers pass the gradient on to the embedding."""
    model = tiny_llama(tied=False)
    model.config._attn_implementation = "eager"
    model.model.layers.requires_grad_(not frozen)
    ids = torch.arange(30)[None]
    linear, attention = counted(lambda: model(input_ids=ids).logits.sum().backward())
    found = work.step_operations(model, [work.Shape(30, 30)])
    assert found.pop("attention") == attention / 2  # the half that is causal
    assert sum(found.values()) == linear
    some = work.step_operations(model, [work.Shape(30, 3)])
    assert some["head"] == found["head"] / 10


@pytest.mark.parametrize("frozen", [True, False])
def test_operations_of_a_vision_model_are_those_that_torch_counts(frozen):
    model = tiny_vl(tied=False)
    model.config._attn_implementation = "eager"
    model.model.visual.requires_grad_(not frozen)
    ids = torch.cat([torch.arange(10), torch.full((24,), IMAGE_ID), torch.arange(10)])[None]
    picture = {"pixel_values": torch.randn(96, 1176), "image_grid_thw": torch.tensor([[1, 8, 12]])}
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_ID).long(), **picture}
    linear, attention = counted(lambda: model(**inputs).logits.sum().backward())
    found = work.step_operations(model, [work.Shape(44, 44, [(1, 8, 12)])])
    # Half of the text's square is causal; a picture of 8 x 12 patches is a window of 8 x 8 and one of 8 x 4.
    assert 2 * found.pop("attention") + found.pop("vision attention") == attention
    assert sum(found.values()) == linear


def test_waits_of_the_host_are_counted():
    values = torch.arange(6.0)
    with watch.host_waits(CPU) as seen:
        values.sum().item()
        values[values > 2]
        values.nonzero()
        values[torch.tensor([0, 2])] + values[:2].cumsum(0)
    assert [entry.split(" at ")[0] for entry in seen] == ["aten::_local_scalar_dense", "aten::index", "aten::nonzero"]
    assert all("test_bench.py:" in entry for entry in seen)


def test_a_watch_times_its_steps_and_ends():
    seen = watch.Watch(CPU, warm=1, timed=2)
    assert list(seen.timed) == [2, 3]
    while seen.left:
        with seen.step():
            (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item()
    assert len(seen.seconds) == 2
    assert len(seen.waits) == 1
    assert seen.product_rate > 0


def test_the_step_without_deepspeed_is_adamw_with_clipping():
    torch.manual_seed(0)
    modules = [Trainable(tiny_llama(tied=True)) for _ in range(2)]
    optim = OptimConfig(lr=1e-2, clip=1e-3, eps=1e-3)  # else a first step would not tell whether it was clipped
    setup = SimpleNamespace(
        device=CPU,
        recipe=SimpleNamespace(optim=optim),
        processing=SimpleNamespace(family=family_of("llama")),
    )
    engine = step_contestants.Alone(modules[0], setup)
    inputs = {"input_ids": torch.arange(40).view(2, 20)}
    parts = [(torch.arange(5) + 7 * n, torch.arange(5) + n, packing.OBJECTIVE) for n in range(2)]
    adamw = torch.optim.AdamW(modules[1].parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0)
    for number, part in enumerate(parts):
        engine.set_gradient_accumulation_boundary(number == 1)
        engine.backward(engine(*part, **inputs)[0], scale_wrt_gas=False)
        engine.step()
        modules[1](*part, **inputs)[0].backward()
    norm = torch.nn.utils.clip_grad_norm_(modules[1].parameters(), optim.clip)
    adamw.step()
    torch.testing.assert_close(engine.get_global_grad_norm(), norm)
    for mine, its in zip(*(module.parameters() for module in modules)):
        torch.testing.assert_close(mine, its, atol=1e-8, rtol=1e-5)


@pytest.fixture(scope="module")
def rows():
    """Four rows of the small vocabulary, one with two pictures."""
    draw = torch.Generator().manual_seed(0)
    images = ImageSettings.of(IMAGE_PROCESSOR, 3136, 1003520)
    examples = []
    for number, length in enumerate((12, 40, 9, 25)):
        ids = torch.randint(packing.SPECIAL, (length,), generator=draw)
        examples.append(Example(str(number), "", ids, torch.arange(length) >= length // 2))
    grids = torch.tensor([[1, 4, 6], [1, 4, 4]])
    ids = examples[1].ids.clone()
    ids[2:8] = ids[10:14] = packing.IMAGE_ID
    patches = torch.randint(256, (40, 588), generator=draw).to(torch.uint8)
    examples[1] = replace(examples[1], ids=ids, patches=patches, image_grid_thw=grids)
    load = Load(np.array([12, 40, 9, 25]), np.array([0, 8.0, 0, 0]))
    return packing.Rows(True, examples, load, images)


@pytest.mark.parametrize("vision", [True, False])
def test_all_ways_to_put_rows_together_learn_the_same(rows, vision):
    if not vision:
        rows = replace(rows, vision=False, examples=[e for e in rows.examples if e.patches is None], images=None)
        rows = replace(rows, load=Load(np.array([12, 9, 25]), np.zeros(3)))
    found, absent = packing.contestants(rows, padded_rows=2)
    true = packing.exact(rows)
    assert set(found) | {name.partition(",")[0] for name in absent} >= {packing.PACKED, packing.IN_ORDER, packing.TRL}
    for name, one in found.items():
        assert max(packing.errors(one, *true).values()) < 1e-5, name
        assert sum(each.positions for each in one.passes) >= rows.load.tokens.sum(), name
    assert len(found[packing.PACKED].passes) == 1
    assert len(found[packing.IN_ORDER].passes) == 2


def test_a_round_runs_each_micro_batch_once():
    ran = []
    contestant = SimpleNamespace(passes=[*range(11)], run=ran.extend)
    spent = packing.timed({"A": contestant, "B": SimpleNamespace(passes=[], run=lambda passes: None)}, rounds=2)
    assert sorted(ran[1:]) == sorted([*range(11)] * 2)  # after the warm-up
    assert len(spent["A"]) == len(spent["B"]) == 2


def test_peers_get_what_transformers_would_make(rows):
    inputs = PaddedInputs(0, packing.IMAGE_ID, rows.images)(rows.examples[:2])
    assert inputs["input_ids"].shape == inputs["labels"].shape == (2, 40)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 40]
    assert inputs["labels"][0].tolist() == [IGNORE_INDEX] * 6 + rows.examples[0].ids[6:].tolist() + [IGNORE_INDEX] * 28
    assert inputs["mm_token_type_ids"].sum(1).tolist() == [0, 10]
    assert inputs["pixel_values"].shape == (40, 1176)


def test_the_readme_holds_the_figures_of_the_json(tmp_path):
    rows = [{"name": "ours", "ms": 12.0}, {"name": "plain", "ms": 1234.0}]
    target = measure.Target("C1", "time", 0.4).judged(0.31)
    found = measure.Found("b", {}, measure.machine(CPU), {"name": "", "ms": "ms"}, rows, [target], {"peer": "no GPU"})
    measure.report(found, tmp_path / "b_cpu.json")
    (tmp_path / "graders.json").write_text('{"rows": 3}')
    text = f"# Benches\n\nwords\n\n{readme.HEADING}\nold figures\n"
    made = readme.rewritten(text, tmp_path)
    assert made.startswith(f"# Benches\n\nwords\n\n{readme.HEADING}\n\n### b_cpu\n")
    assert "old figures" not in made
    assert "- C1 time ≤ 0.4: reached 0.31 yes" in made
    assert "- not run: peer: no GPU" in made
    assert "| plain | 1,234 |" in made
    assert f"torch {torch.__version__}" in made
    assert readme.rewritten(made, tmp_path) == made


def test_the_readme_in_the_repository_is_up_to_date():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.rewritten(text, measure.RESULTS) == text, "run: python -m scripts.bench.readme"


def test_sizes_of_real_rows(repo):
    shapes = json.loads((repo / "scripts/bench/row_shapes.json").read_text())
    assert {kind: len(rows) for kind, rows in shapes.items()} == {"vl": 400, "text": 400}
    assert all(rows % 2 == columns % 2 == 0 for _, _, pictures in shapes["vl"] for rows, columns in pictures)
