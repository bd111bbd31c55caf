"""`plan`: steps and tokens of a run, its memory and time from shapes alone, the setting that fits, the line to type."""

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dft_mm.batch import Batch, Example
from dft_mm.config import LoraConfig, Recipe
from dft_mm.data.patches import blank_patches
from dft_mm.data.plan import Plan
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.model.processing import load_processing
from dft_mm.study.memory import Shapes, per_rank, shapes_of
from dft_mm.study.rehearsal import Event, rehearse, skeleton
from dft_mm.study.work import PEAKS, Shape, step_operations
from dft_mm.train.deepspeed_config import deepspeed_config
from dft_mm.train.feed import RunData, load_data

GIB = 2**30
NODE = 8
"""GPUs of a node."""
LARGEST = 1024


@dataclass(frozen=True)
class Device:
    memory_gib: float
    """What torch can have of it."""
    tflops: float
    """Dense bfloat16, 10¹² operations a second."""
    intra_gb_s: float
    """10⁹ bytes a second of one GPU to the others of its node, in one direction,"""
    inter_gb_s: float
    """and to other nodes."""


# Memory: "total capacity" in torch's own out-of-memory messages. Operations: the makers' data sheets, as in PEAKS.
DEVICES = {
    # NVIDIA H100 SXM data sheet: NVLink 900 GB/s both ways; DGX H100 data sheet: 400 Gb/s InfiniBand a GPU.
    "H100": Device(79.1, PEAKS["H100"] / 1e12, 450, 50),
    # NVIDIA H200 SXM and DGX H200 data sheets: the same links.
    "H200": Device(139.8, PEAKS["H200"] / 1e12, 450, 50),
    # NVIDIA A100 80GB SXM data sheet: NVLink 600 GB/s both ways; DGX A100 data sheet: 200 Gb/s InfiniBand a GPU.
    "A100": Device(79.1, PEAKS["A100"] / 1e12, 300, 25),
    # GeForce RTX 4090: PCIe 4.0 x16 (32 GB/s one way), no NVLink; between nodes one 100 Gb/s port for eight is assumed.
    "4090": Device(23.6, PEAKS["4090"] / 1e12, 32, 1.6),
}
ASSUMED = {
    "mfu": 0.4,  # share of the peak that computing alone reaches: this package's own targets G4 and G5, 35 to 42 %
    "bandwidth_share": 0.7,  # of a link's peak that large collectives reach
    "recompute": 4 / 3,  # a second forward pass, where activations are not kept
    "pcie_gb_s": 25.0,  # between GPU and host memory, where states are offloaded
    "framework_gib": 1.5,  # CUDA context, kernels, workspaces, NCCL's buffers
    "usable": 0.95,  # of a GPU's memory: the allocator's pieces never fit together without a gap
}
_STEPS_LOOKED_AT = 64  # for the heaviest micro-batch
_STEPS_TIMED = 4
_CONFIGS = ((2, "none", "zero2.json"), (3, "none", "zero3.json"), (3, "optimizer+parameters", "zero3_offload.json"))
_SUGGESTED = LoraConfig()


def plan(recipe: Recipe, gpus: int, device: str, recipe_path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All that is foretold of a run, as `--json` prints it.

    Args:
        gpus: ranks.
        device: a name of DEVICES, or `memory_gib=…,tflops=…,intra_gb_s=…,inter_gb_s=…`.
        recipe_path, overrides: as they were typed, for the launch line.

    Raises InputError for what the user has to mend.
    """
    if not 1 <= gpus <= LARGEST:
        raise InputError(f"--gpus {gpus}: a number from 1 to {LARGEST}")
    chip = device_of(device)
    study = _Study(recipe, gpus, chip)
    tried, chosen = study.choose()
    setting, found = chosen
    data = study.data(setting.micro_tokens)
    result = {
        "parameters": sum(weight.numel for weight in study.shapes(setting).weights),
        "trainable": study.shapes(setting).learning,
        "steps": data.plan.steps,
        "tokens": tokens_of(data),
        "gpus": gpus,
        "device": device,
        "device_memory_gib": chip.memory_gib,
        "bytes_per_gpu": found.bytes,
        "host_bytes_per_gpu": found.host,
        "fits": found.fits,
        "setting": dataclasses.asdict(setting),
        "tried": tried,
        "launch": launch_line(recipe_path, overrides, study.changes(setting), gpus),
    }
    result |= study.timing(setting)
    result["smallest_gpus"] = gpus if found.fits else study.smallest()
    result["suggestion"] = "" if found.fits else study.suggestion()
    return result | {"assumed": ASSUMED}


def device_of(text: str) -> Device:
    if text in DEVICES:
        return DEVICES[text]
    names = [field.name for field in dataclasses.fields(Device)]
    try:
        numbers = {name: float(value) for name, _, value in (part.partition("=") for part in text.split(","))}
        device = Device(**numbers)
        if min(numbers.values()) > 0:
            return device
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"--device {text}: not known; there are {', '.join(DEVICES)}, or one of your own as "
        f"{','.join(f'{name}=…' for name in names)}"
    )


@dataclass(frozen=True)
class Setting:
    """What `plan` may change."""

    zero_stage: int
    offload: str
    """none, or what waits in host memory."""
    micro_tokens: int
    gradient_checkpointing: bool
    lora: bool
    deepspeed: str


@dataclass(frozen=True)
class Found:
    bytes: dict[str, int]
    host: dict[str, int]
    fits: bool


class _Study:
    """One recipe on one device; shapes are looked at once for each setting that changes them."""

    def __init__(self, recipe: Recipe, gpus: int, device: Device) -> None:
        self._recipe, self._gpus, self._device = recipe, gpus, device
        self._config = deepspeed_config(recipe)
        self._processing = load_processing(recipe.model.path, weights=False)
        self._rehearsed = lru_cache(maxsize=None)(self._rehearse)
        self.data = lru_cache(maxsize=None)(self._data)

    @property
    def own(self) -> Setting:
        """The recipe's."""
        recipe = self._recipe
        zero = self._config.get("zero_optimization", {})
        return Setting(
            zero.get("stage", 0), _offload(zero), recipe.train.micro_tokens, recipe.model.gradient_checkpointing,
            recipe.model.lora is not None, recipe.deepspeed,
        )  # fmt: skip

    def choose(self) -> tuple[list[dict[str, Any]], tuple[Setting, Found]]:
        """What was tried, and the first that fits, else the one that takes least."""
        tried, best = [], None
        for setting in self.candidates():
            found = self.found(setting, self._gpus)
            tried.append(
                {"changes": self.changes(setting), "total_gib": found.bytes["total"] / GIB, "fits": found.fits}
            )
            if best is None or found.bytes["total"] < best[1].bytes["total"]:
                best = setting, found
            if found.fits:
                return tried, (setting, found)
        assert best is not None
        return tried, best

    def candidates(self) -> Iterator[Setting]:
        """The recipe's setting; then recomputing, smaller micro-batches, and both at higher stages and offloaded."""
        own, least = self.own, self._recipe.data.max_length
        yield own
        sizes = [own.micro_tokens]
        while sizes[-1] > least:
            sizes.append(max(least, sizes[-1] // 2))
        stages = [(own.zero_stage, own.offload, own.deepspeed)]
        for stage, offload, name in _CONFIGS:
            path = Path(own.deepspeed).with_name(name)
            further = (stage, offload != "none") > (own.zero_stage, own.offload != "none")
            if further and path.is_file() and not (stage == 3 and self._is_quantized):
                stages.append((stage, offload, str(path)))
        for stage, offload, path in stages:
            for size in sizes:
                setting = Setting(stage, offload, size, True, own.lora, path)
                if setting != own:
                    yield setting

    @property
    def _is_quantized(self) -> bool:
        return bool(self._recipe.model.lora and self._recipe.model.lora.quantize)

    def changes(self, setting: Setting) -> list[str]:
        """What has to be said beside the recipe."""
        own = self.own
        names = {
            "micro_tokens": "train.micro_tokens",
            "gradient_checkpointing": "model.gradient_checkpointing",
            "deepspeed": "deepspeed",
        }
        return [
            f"{key}={str(getattr(setting, name)).lower() if name != 'deepspeed' else setting.deepspeed}"
            for name, key in names.items()
            if getattr(setting, name) != getattr(own, name)
        ]

    def found(self, setting: Setting, gpus: int, adapters: bool = False) -> Found:
        """Memory of a setting on so many ranks; with `adapters`, of the suggested ones."""
        shapes, events = self._rehearsed(setting.micro_tokens, setting.gradient_checkpointing, adapters)
        zero = deepspeed_config(self._recipe.model_copy(update={"deepspeed": setting.deepspeed}))
        parts, host = per_rank(shapes, events, zero.get("zero_optimization", {}), gpus)
        parts["framework"] = round(ASSUMED["framework_gib"] * GIB)
        parts["total"] = sum(parts.values())
        return Found(parts, host, parts["total"] <= ASSUMED["usable"] * self._device.memory_gib * GIB)

    def shapes(self, setting: Setting) -> Shapes:
        return self._rehearsed(setting.micro_tokens, setting.gradient_checkpointing, False)[0]

    def _rehearse(self, micro_tokens: int, checkpointing: bool, adapters: bool) -> tuple[Shapes, list[Event]]:
        changed: dict[str, Any] = {"gradient_checkpointing": checkpointing}
        if adapters:
            freeze = [part for part in self._recipe.model.freeze if part not in _SUGGESTED.parts]
            changed |= {"lora": _SUGGESTED, "freeze": freeze}
        recipe = self._recipe.model_copy(update={"model": self._recipe.model.model_copy(update=changed)})
        data = self.data(micro_tokens)
        module = skeleton(recipe, self._processing)
        events = rehearse(module, heaviest(data), Objective(data.losses, data.plan.steps))
        return shapes_of(module, self._processing.family, self._is_quantized), events

    def _data(self, micro_tokens: int) -> RunData:
        train = self._recipe.train.model_copy(update={"micro_tokens": micro_tokens})
        recipe = self._recipe.model_copy(update={"train": train})
        return load_data(recipe, self._processing, self._gpus)

    def smallest(self) -> int | None:
        """The fewest GPUs on which a candidate fits, with micro-batches as they are on those that were asked for."""
        settings = list(self.candidates())

        def fits(gpus: int) -> bool:
            return any(self.found(setting, gpus).fits for setting in settings)

        if not fits(LARGEST):
            return None
        low, high = 0, LARGEST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def suggestion(self) -> str:
        """Whether adapters would fit, which is another run and therefore nobody's choice but the user's."""
        if self._recipe.model.lora:
            return ""
        for setting in self.candidates():
            if self.found(setting, self._gpus, adapters=True).fits:
                more = " ".join(self.changes(setting))
                return f"adapters would fit: 'model.lora={{rank: {_SUGGESTED.rank}}}'" + (f" {more}" if more else "")
        return ""

    def timing(self, setting: Setting) -> dict[str, Any]:
        """Seconds of a step, of the run, and of a step on 1 … 1024 GPUs."""
        data, shapes = self.data(setting.micro_tokens), self.shapes(setting)
        steps = range(1, min(_STEPS_TIMED, data.plan.steps) + 1)
        module = skeleton(self._recipe, self._processing)
        indices = [index for step in steps for index in data.plan.examples(step)]
        operations = sum(step_operations(module.core, list(_sizes(data, indices))).values()) / len(steps)
        seconds = {n: self._step_s(setting, shapes, data, operations, n) for n in (*_powers(), self._gpus)}
        one = seconds[1]
        return {
            "operations_per_step": operations,
            "step_s": seconds[self._gpus],
            "run_s": seconds[self._gpus] * data.plan.steps,
            "scaling": [{"gpus": n, "step_s": seconds[n], "efficiency": one / (n * seconds[n])} for n in _powers()],
        }

    def _step_s(self, setting: Setting, shapes: Shapes, data: RunData, operations: float, gpus: int) -> float:
        """Computing and communicating overlap; the slower of them is what a micro-batch takes."""
        busiest, rounds = _busiest(data.plan.on(gpus))
        compute = operations * busiest / (self._device.tflops * 1e12 * ASSUMED["mfu"])
        compute *= ASSUMED["recompute"] if setting.gradient_checkpointing else 1.0
        weights = sum(weight.numel * weight.bytes for weight in shapes.weights)
        gradients = 4 * shapes.learning
        if setting.zero_stage == 3:  # gathered for forward and backward, reduced, in every micro-batch
            moved = rounds * (2 * weights + gradients)
        elif setting.zero_stage == 2:
            moved = rounds * gradients + weights
        else:
            moved = 2 * gradients
        communicate = _ring_s(moved, gpus, self._device)
        host = 0.0
        if setting.offload != "none":
            host = (gradients + weights) / gpus / (ASSUMED["pcie_gb_s"] * 1e9)
        return max(compute, communicate) + host


def _offload(zero: dict[str, Any]) -> str:
    kinds = [
        kind
        for key, kind in (("offload_optimizer", "optimizer"), ("offload_param", "parameters"))
        if zero.get(key, {}).get("device", "none") != "none"
    ]
    return "+".join(kinds) or "none"


def _powers() -> list[int]:
    return [2**power for power in range(LARGEST.bit_length())]


def _ring_s(size: float, gpus: int, device: Device) -> float:
    """Seconds in which every GPU of a ring receives `size` bytes but for its own share: the slower of the links inside
    a node and, of which its GPUs have one each, between nodes.
    """
    nodes = math.ceil(gpus / NODE)
    inside = size * (gpus - 1) / gpus / device.intra_gb_s
    between = size * (nodes - 1) / nodes / (min(gpus, NODE) * device.inter_gb_s)
    return max(inside, between) / 1e9 / ASSUMED["bandwidth_share"]


def _busiest(plan: Plan) -> tuple[float, float]:
    """Mean share of a step's cost that falls to the busiest rank, and mean number of its micro-batches."""
    shares, rounds = [], []
    for step in range(1, min(_STEPS_TIMED, plan.steps) + 1):
        ranks = plan.micro_batches(step)
        costs = plan.costs(ranks)
        shares.append(max(costs) / sum(costs))
        rounds.append(len(ranks[0]))
    return sum(shares) / len(shares), sum(rounds) / len(rounds)


def tokens_of(data: RunData) -> int:
    """Real tokens of the whole run, as metrics.jsonl counts them."""
    return sum(int(data.train.lengths[data.plan.examples(step)].sum()) for step in range(1, data.plan.steps + 1))


def heaviest(data: RunData) -> Batch:
    """The micro-batch with most to do among those of the first steps, its pictures blank."""
    groups = (
        group
        for step in range(1, min(_STEPS_LOOKED_AT, data.plan.steps) + 1)
        for rank in data.plan.micro_batches(step)
        for group in rank
    )
    chosen = max(groups, key=lambda group: data.plan.costs([[group]])[0])
    return data.collate([_example(data, int(index)) for index in chosen])


def _example(data: RunData, index: int) -> Example:
    """The example without reading its pictures."""
    ids, supervised = data.train.tokens(index)
    grids = [image["grid"] for image in data.train.meta(index)["images"]]
    return Example(
        id=data.train.id(index),
        source="",
        ids=torch.from_numpy(ids.astype("int64")),
        supervised=torch.from_numpy(supervised.copy()),
        patches=torch.cat([blank_patches(grid, data.train.images) for grid in grids]) if grids else None,
        image_grid_thw=torch.tensor(grids) if grids else None,
    )


def _sizes(data: RunData, indices: Sequence[int]) -> Iterator[Shape]:
    for index in map(int, indices):
        grids = [tuple(image["grid"]) for image in data.train.meta(index)["images"]]
        yield Shape(int(data.train.lengths[index]), int(data.train.supervised[index]), grids)


def launch_line(recipe: Path, overrides: Sequence[str], changes: Sequence[str], gpus: int) -> str:
    """What to type. Of several nodes, `hosts` names them: scripts/launch/hostfile.sh says how."""
    where = f"--num_gpus {gpus}" if gpus <= NODE else "--hostfile hosts"
    words = shlex.join([str(recipe), *overrides, *changes])
    return f"deepspeed {where} --module dft_mm train {words}"


_TITLES = {
    "parameters": "weights, this rank's share",
    "gradients": "gradients, float32",
    "optimizer": "master weights and AdamW's moments",
    "gathered": "weights gathered for the layers at work",
    "buckets": "communication buckets",
    "activations": "activations of the heaviest micro-batch",
    "loss_head": "loss head",
    "update": "copies during the update",
    "framework": "CUDA and NCCL (assumed)",
    "total": "total",
}


def to_text(plan: dict[str, Any]) -> str:
    """For reading."""
    setting, memory = plan["setting"], plan["bytes_per_gpu"]
    lines = [
        f"{plan['parameters']:,} parameters, {plan['trainable']:,} of them learn",
        f"{plan['steps']:,} steps, {plan['tokens']:,} tokens on {plan['gpus']} x {plan['device']}",
        "",
        f"{'memory of a GPU at its fullest':<42}{'GiB':>9}",
        *(f"  {_TITLES[kind]:<40}{size / GIB:>9.2f}" for kind, size in memory.items() if size),
        *(f"  host memory a GPU: {kind:<21}{size / GIB:>9.2f}" for kind, size in plan["host_bytes_per_gpu"].items()),
        f"  {'of':<40}{plan['device_memory_gib']:>9.2f}",
        "",
        *_why(plan),
        f"setting: ZeRO stage {setting['zero_stage']}, offload {setting['offload']}, micro_tokens "
        f"{setting['micro_tokens']}, activations {'recomputed' if setting['gradient_checkpointing'] else 'kept'}"
        + (", adapters" if setting["lora"] else ""),
        f"time, if computing reaches {ASSUMED['mfu']:.0%} of the peak: {plan['step_s']:.3g} s a step, "
        f"{plan['run_s'] / 3600:.3g} h in all",
        "",
        f"{'GPUs':>6}{'s a step':>12}{'efficiency':>12}",
        *(f"{row['gpus']:>6}{row['step_s']:>12.3g}{row['efficiency']:>12.0%}" for row in plan["scaling"]),
        "",
        plan["launch"],
    ]
    return "\n".join(lines)


def _why(plan: dict[str, Any]) -> list[str]:
    """Why this setting, in a line for each that was tried."""
    lines = [
        f"{'fits' if each['fits'] else 'too much':<9}{each['total_gib']:>8.2f} GiB  "
        f"{' '.join(each['changes']) or 'as the recipe says'}"
        for each in plan["tried"]
    ]
    if not plan["fits"]:
        least = plan["smallest_gpus"]
        lines.append(f"nothing fits; {f'it would on {least} GPUs' if least else f'nor would it on {LARGEST} GPUs'}")
        lines += [plan["suggestion"]] if plan["suggestion"] else []
    return lines
