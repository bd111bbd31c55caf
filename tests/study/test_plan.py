"""The plan of a run beside the run itself, and beside what DeepSpeed says of its own memory."""

import json
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from rows import write_wethink
from started import done

from dft_mm.__main__ import main
from dft_mm.config import load_recipe
from dft_mm.loss.family import Objective
from dft_mm.model.attention import segment_attention
from dft_mm.model.processing import load_processing
from dft_mm.study import plan as planning
from dft_mm.study import rehearsal
from dft_mm.study.memory import Shapes, Weight, per_rank
from dft_mm.study.plan import DEVICES, heaviest, launch_line, plan, to_text
from dft_mm.study.rehearsal import Event, rehearse, skeleton
from dft_mm.train.build import build_module
from dft_mm.train.feed import load_data
from scripts.bench.measure import peak_bytes

CPU = torch.device("cpu")
NOTHING = [Event(0, True, False, 0, 0)]


@pytest.fixture
def recipe_file(tmp_path, repo):
    """A function that writes a recipe for a built-in model."""

    def write(model="builtin:tiny-vl", more=""):
        rows = write_wethink(tmp_path / "data", text_every=4 if "vl" in model else 1)
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"""
name: planned
output: {tmp_path}/{{name}}
deepspeed: {repo}/ds_configs/zero3.json
model: {{path: "{model}", dtype: float32, gradient_checkpointing: false}}
data:
  train: [{{path: {rows}, format: wethink, images: {tmp_path}/data/images}}]
  heldout_fraction: 0.2
  max_length: 256
  workers: 0
optim: {{lr: 1e-3, batch_size: 7}}
train: {{epochs: 2, micro_tokens: 512}}
{more}"""
        )
        return path

    return write


@pytest.mark.parametrize("model", ["builtin:tiny-lm", "builtin:tiny-vl"])
def test_steps_and_tokens_are_those_of_the_run(recipe_file, tmp_path, capsys, model):
    path = recipe_file(model)
    assert main(["plan", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    code, output = done(["train", path], tmp_path, {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "planned/metrics.jsonl").read_text().splitlines()]
    assert told["steps"] == len(lines)
    assert told["tokens"] == sum(line["tokens"] for line in lines)


def test_parts_add_up_and_the_launch_line_is_complete(recipe_file):
    path = recipe_file()
    told = plan(load_recipe(path), 2, "A100", path, ["optim.lr=1e-5"])
    parts = dict(told["bytes_per_gpu"])
    assert parts.pop("total") == sum(parts.values())
    assert {"parameters", "gradients", "optimizer", "activations", "loss_head", "gathered", "framework"} <= set(parts)
    assert told["fits"]
    assert told["launch"] == f"deepspeed --num_gpus 2 --module dft_mm train {path} optim.lr=1e-5"
    assert [row["gpus"] for row in told["scaling"]] == [2**power for power in range(11)]
    assert told["scaling"][0]["efficiency"] == 1
    assert told["launch"] in to_text(told)


def of_deepspeed(numel, stage, gpus):
    if stage == 3:
        return estimate_zero3_model_states_mem_needs(numel, 0, gpus, 1, cpu_offload=False, cpu_offload_params=False)[1]
    # It counts gradients of 16 bits beside those of 32, which live in a bucket here.
    return estimate_zero2_model_states_mem_needs(numel, gpus, 1, cpu_offload=False)[1] - 2 * numel // gpus


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize("stage", [2, 3])
def test_states_are_those_of_deepspeeds_own_estimate(stage, gpus):
    shapes = Shapes((Weight(8_000_000, 2, True), Weight(16_000_000, 2, True)), {0: (0, 1)})
    parts, _ = per_rank(shapes, NOTHING, {"stage": stage}, gpus)
    lasting = sum(parts[kind] for kind in ("parameters", "gradients", "optimizer"))
    assert lasting == of_deepspeed(24_000_000, stage, gpus)


def test_offloaded_states_wait_in_host_memory():
    shapes = Shapes((Weight(8_000_000, 2, True),), {0: (0,)})
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    parts, host = per_rank(shapes, NOTHING, zero, 2)
    assert (parts["parameters"], parts["gradients"], parts["optimizer"], parts["update"]) == (0, 0, 0, 0)
    assert host == {"gradients": 16_000_000, "optimizer": 48_000_000, "parameters": 8_000_000}


def test_frozen_weights_have_neither_gradients_nor_moments():
    shapes = Shapes((Weight(8_000_000, 2, True), Weight(16_000_000, 2, False)), {0: (0, 1)})
    parts, _ = per_rank(shapes, NOTHING, {"stage": 2}, 4)
    assert parts["gradients"] == 4 * 2_000_000
    assert parts["optimizer"] == 12 * 2_000_000
    assert parts["parameters"] == 2 * 24_000_000


def test_weights_are_gathered_for_the_modules_at_work_only():
    weights = tuple(Weight(1000, 2, True) for _ in range(4))
    shapes = Shapes(weights, {place: (place,) for place in range(4)})
    forward = [Event(place, begins, False, 0, 0) for place in range(4) for begins in (True, False)]
    zero = {
        "stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0, "reduce_bucket_size": 0,
    }  # fmt: skip
    assert per_rank(shapes, forward, zero, 2)[0]["gathered"] == 0  # the update takes more
    frozen = Shapes(tuple(Weight(1000, 2, False) for _ in weights), shapes.of_module)
    assert per_rank(frozen, forward, zero, 2)[0]["gathered"] == 1 * 2000
    one, two = ({"stage3_prefetch_bucket_size": size} for size in (1000, 2000))
    assert per_rank(frozen, forward, zero | one, 2)[0]["gathered"] == 2 * 2000
    assert per_rank(frozen, forward, zero | two, 2)[0]["gathered"] == 4 * 2000  # two, and the buffer they came in
    assert per_rank(frozen, forward, zero, 1)[0]["gathered"] == 0
    assert per_rank(frozen, forward, zero, 2, gpu=False)[0]["gathered"] == 2 * 2000  # gloo's copy


def of_gradients(*numbers):
    return [Event(0, False, True, 0, 0, number) for number in numbers]


# Elements of the weights; elements of a bucket; what two ranks hold in float32 and in bfloat16 when they hold most.
REDUCTIONS = {
    # A full bucket is put in the order of its owners, again in float32.
    "stage 3, a bucket": (3, (40, 40, 40), 100, 400 + 4 * 80, 400 + 4 * 80),
    # The large one waits as it is, which the pass counts until the next has come, and is sent as float32.
    "stage 3, one that no bucket holds": (3, (200, 40), 100, 400 + 4 * 200, 400 + 2 * 200 + 4 * 200),
    "stage 3, the same and odd": (3, (201, 40), 100, 400 + 4 * 201 + 4 * 202, 400 + 2 * 201 + 4 * 201 + 4 * 202),
    # Buckets are of the model's type; pieces of 60 and 20 for the two ranks are put end to end, and sent as float32.
    "stage 2, a bucket": (2, (40, 40, 40), 100, 400 + 4 * 80, 200 + 2 * 80 + 4 * 80),
    # 120 and 80 are sent one after the other, as they lie.
    "stage 2, one that no bucket holds": (2, (200, 40), 100, 400 + 4 * 200, 200 + 2 * 200 + 4 * 120),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_gradients_are_reduced_bucket_by_bucket(case):
    stage, numels, capacity, *wanted = REDUCTIONS[case]
    events = of_gradients(*range(len(numels)))
    zero = {"stage": stage, "reduce_bucket_size": capacity, "stage3_param_persistence_threshold": 10**6}
    for size, bytes_ in zip((4, 2), wanted):
        # A pass that holds much when a gradient comes: no other moment can be the one with most.
        held = [Event(0, False, True, 10**6, 0, event.weight) for event in events]
        shapes = Shapes(tuple(Weight(numel, size, True) for numel in numels), {0: ()})
        assert per_rank(shapes, held, zero, 2)[0]["buckets"] == bytes_


def test_gloo_copies_what_it_scatters():
    shapes = Shapes((Weight(200, 4, True), Weight(40, 4, True)), {0: ()})
    zero = {"stage": 3, "reduce_bucket_size": 100, "stage3_param_persistence_threshold": 10**6}
    held = [Event(0, False, True, 10**6, 0, number) for number in range(2)]
    assert per_rank(shapes, held, zero, 2, gpu=False)[0]["buckets"] == 400 + 4 * 200 + 4 * 200


@pytest.mark.parametrize(("stage", "largest"), [(2, 12_000_000), (3, 8_000_000)])
def test_norms_are_of_float64(stage, largest):
    """At stage 2 a rank owns a half of all end to end, 4 and 8 or 12 million of the two, at stage 3 a half of each."""
    shapes = Shapes((Weight(8_000_000, 2, True), Weight(16_000_000, 2, True)), {0: ()})
    zero = {"stage": stage, "sub_group_size": 1_000_000, "reduce_bucket_size": 0}
    assert per_rank(shapes, NOTHING, zero, 2)[0]["update"] == 8 * largest


def test_float32_at_stage_2_keeps_gradients_of_whole_weights():
    shapes = Shapes((Weight(8_000_000, 4, True), Weight(16_000_000, 4, True)), {0: ()})
    assert per_rank(shapes, NOTHING, {"stage": 2}, 2)[0]["gradients"] == 4 * 24_000_000
    assert per_rank(shapes, NOTHING, {"stage": 2}, 3)[0]["gradients"] == 4 * 16_000_000


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("model", ["builtin:tiny-lm", "builtin:tiny-vl"])
def test_a_rehearsal_holds_what_the_pass_holds(recipe_file, repo, model, checkpointing):
    """The real module on the CPU, by torch's own record of allocations."""
    given = f"model.gradient_checkpointing={str(checkpointing).lower()}"
    recipe = load_recipe(recipe_file(model), [given, f"deepspeed={repo}/ds_configs/zero2.json"])
    processing = load_processing(recipe.model.path)
    data = load_data(recipe, processing)
    batch, objective = heaviest(data), Objective(data.losses, 1)
    foretold = max(event.peak for event in rehearse(skeleton(recipe, processing, gpu=False), batch, objective))
    module = build_module(recipe, processing.family, {"zero_optimization": {"stage": 2}})
    module.core.lm_head.checked = True
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

    def run():
        loss, *_ = module(batch.rows, batch.targets, objective, batch.policy, batch.sequences, **batch.model_inputs)
        (loss * 1.0).backward()

    run()
    assert foretold == pytest.approx(peak_bytes(run, CPU), rel=0.03)


def test_a_rehearsal_tells_of_every_gradient_and_keeps_embeddings_to_the_last(recipe_file):
    recipe = load_recipe(recipe_file("builtin:tiny-lm"))
    processing = load_processing(recipe.model.path)
    data = load_data(recipe, processing)
    module = skeleton(recipe, processing)
    events = rehearse(module, heaviest(data), Objective(data.losses, 1))
    learning = [number for number, parameter in enumerate(module.parameters()) if parameter.requires_grad]
    assert sorted(event.weight for event in events if event.weight is not None) == learning
    embedding = list(module.modules()).index(module.core.get_input_embeddings())
    assert [event.begins for event in events if event.module == embedding] == [True, False, True]


@pytest.fixture
def one_thread():
    """torch's CPU kernels have scratch memory of each thread's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_packed_attention_on_a_cpu_holds_no_square_of_the_length(one_thread):
    layer = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)
    segments = torch.tensor([0, 1500, 2000], dtype=torch.int32)

    def attend(attention, device):
        query, key, value = (torch.zeros(1, h, 2000, 128, device=device, requires_grad=True) for h in (4, 2, 2))
        out, _ = attention(layer, query, key, value, None, cu_seq_lens_q=segments, max_length_q=1500)
        out.backward(torch.ones_like(out))

    with (ledger := rehearsal._Ledger()):
        attend(rehearsal._attend_segments, "meta")
    real = peak_bytes(lambda: attend(segment_attention, "cpu"), CPU)
    assert ledger.take_peak()[0] == pytest.approx(real, rel=0.03)


def test_what_does_not_fit_is_tried_smaller_in_a_fixed_order(recipe_file, repo):
    path = recipe_file()
    recipe = load_recipe(path, [f"deepspeed={repo}/ds_configs/zero2.json"])
    tiny = "memory_gib=0.01,tflops=100,intra_gb_s=100,inter_gb_s=10"
    told = plan(recipe, 2, tiny, path)
    changes = [each["changes"] for each in told["tried"]]
    zero3 = f"deepspeed={repo}/ds_configs/zero3.json"
    offload = f"deepspeed={repo}/ds_configs/zero3_offload.json"
    recompute, less = "model.gradient_checkpointing=true", "train.micro_tokens=256"
    assert changes == [
        [], [recompute], [less, recompute], [recompute, zero3], [less, recompute, zero3], [recompute, offload],
        [less, recompute, offload],
    ]  # fmt: skip
    assert not told["fits"]
    assert told["smallest_gpus"] is None
    assert "nothing fits; nor would it on 1024 GPUs" in to_text(told)


def test_the_fewest_gpus_that_would_do_are_named(recipe_file, tmp_path):
    """Alone in its folder, the DeepSpeed config has no offloading one beside it to go on to."""
    zero = {"stage": 3, "reduce_bucket_size": 100_000, "stage3_prefetch_bucket_size": 0}
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))
    path = recipe_file()
    recipe = load_recipe(path, [f"deepspeed={tmp_path}/zero3.json"])
    study = planning._Study(recipe, 1, DEVICES["H100"])
    totals = {n: min(study.found(each, n).bytes["total"] for each in study.candidates()) for n in range(1, 7)}
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    usable = totals[5] / planning.ASSUMED["usable"] / planning.GIB
    told = plan(recipe, 1, f"memory_gib={usable * 1.0001},tflops=100,intra_gb_s=100,inter_gb_s=10", path)
    assert not told["fits"]
    assert told["smallest_gpus"] == 5


def test_several_nodes_are_launched_by_a_hostfile(tmp_path):
    line = launch_line(tmp_path / "r.yaml", [], ["train.micro_tokens=4096"], 64)
    assert line == f"deepspeed --hostfile hosts --module dft_mm train {tmp_path}/r.yaml train.micro_tokens=4096"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus 0: a number from 1 to 1024"),
        (["--device", "TPU"], "--device TPU: not known; there are H100, H200, A100, 4090"),
        (["--device", "memory_gib=0,tflops=1,intra_gb_s=1,inter_gb_s=1"], "not known"),
        (["deepspeed=nowhere.json"], "DeepSpeed config not found: nowhere.json"),
        (["model.path=nowhere"], "'nowhere' is neither a folder"),
    ],
)
def test_wrong_input_is_one_message(recipe_file, capsys, words, message):
    assert main(["plan", str(recipe_file()), *words]) == 2
    assert message in capsys.readouterr().err


def test_devices_have_a_peak_each():
    assert all(device.tflops > 100 for device in DEVICES.values())
