"""Time, memory and error of the loss head beside the peers', one forward and backward pass of DFT's loss each.

    python -m scripts.bench.loss_head --preset cpu          # C1 to C4 of the targets, minutes
    python -m scripts.bench.loss_head --preset gpu          # G1 to G3, on CUDA; with --dry tiny sizes, anywhere
    python -m scripts.bench.loss_head --rows 1024 --dim 512 --vocabulary 32768 --supervised 0.5

Contestants take turns; shown are medians. Memory is what a pass holds at its peak beyond inputs and the gradients
returned. Errors are those of the loss and of both gradients against float64, norm of the difference over norm;
`exact, rounded` has those that the type of the gradients alone brings. The probability of a row's target is anything
between 1 / V and nearly 1, as while fine-tuning. Axes: N rows, D hidden width, V vocabulary.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from dft_mm.batch import IGNORE_INDEX
from dft_mm.loss.head import linear_token_loss
from scripts.bench.measure import (
    Found,
    Row,
    Target,
    machine,
    peak_bytes,
    relative_error,
    report,
    result_file,
    table,
    take_turns,
)  # fmt: skip

Contestant = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden (N, D), weight (V, D), targets (N,) → the summed loss."""

OURS, PLAIN, TRL, LIGER, LIGER_SCALED = "ours", "plain", "TRL", "Liger FLCE", "Liger scaled CE"
ROUNDED = "exact, rounded"


class CannotRunError(Exception):
    """Why a peer cannot run here."""


@dataclass(frozen=True)
class Case:
    """Sizes and types of one comparison."""

    rows: int
    dim: int
    vocabulary: int
    supervised: float
    dtype: str = "float32"
    frozen: bool = False
    """The weight does not learn, as under LoRA."""

    @property
    def title(self) -> str:
        frozen = ", frozen" if self.frozen else ""
        sizes = f"N {self.rows}, D {self.dim}, V {self.vocabulary}"
        return f"{sizes}, {self.supervised:.0%} supervised, {self.dtype}{frozen}"


CPU = [
    Case(2048 if vocabulary < 100_000 else 1024, dim, vocabulary, supervised)
    for vocabulary in (32768, 151936)
    for dim in (256, 1024)
    for supervised in (0.15, 1.0)
]
ERRORS = [Case(256, 256, 4096, 1.0, dtype) for dtype in ("float32", "bfloat16")]
GPU = [
    Case(8192, dim, 151936, supervised, "bfloat16", frozen)
    for dim in (2048, 3584)
    for supervised in (1.0, 0.15)
    for frozen in (False, True)
]
PRESETS = {"cpu": CPU, "gpu": GPU, "errors": ERRORS}


def ours(device: torch.device) -> Contestant:
    return lambda hidden, weight, targets: linear_token_loss(hidden, weight, targets, "dft").loss


def plain(device: torch.device) -> Contestant:
    """Logits of every row, float32 cross-entropy, times the detached probability: what DFT trainers commonly do."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = (hidden @ weight.T).float()
        return weighted(F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX))

    return loss


def plain_compacted(device: torch.device) -> Contestant:
    """The same on the supervised rows only."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        keep = targets != IGNORE_INDEX
        return plain(device)(hidden[keep], weight, targets[keep])

    return loss


class Passing:
    """A model for TRL's fused output layer to be put on, which hands the hidden states on as they are."""

    weight: Tensor
    config = SimpleNamespace(get_text_config=SimpleNamespace)

    def base_model(self, hidden: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def get_output_embeddings(self) -> SimpleNamespace:
        return SimpleNamespace(weight=self.weight, bias=None)


def trl(device: torch.device, outputs: Sequence[str] = ("log_probs", "entropy", "is_top1")) -> Contestant:
    """TRL's fused output layer, asked for what its SFTTrainer asks for and weighted as there; which rows and what
    tiles it takes is its own choice by device.
    """
    from trl.trainer.utils import add_fused_lm_head

    model = Passing()
    add_fused_lm_head(model, outputs=outputs)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        model.weight = weight
        return weighted(-model.forward(hidden[None], shift_labels=targets[None], fused_lm_head=True).log_probs)

    return loss


def liger(device: torch.device) -> Contestant:
    """Liger's fused linear cross-entropy with its own DFT weighting."""
    if device.type != "cuda" and not _interpreted():
        raise CannotRunError("Triton kernels; on the CPU in Triton's interpreter only, too slow to be timed")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return partial(_liger_loss, liger_fused_linear_cross_entropy)


def _liger_loss(function: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return function(hidden, weight, targets, reduction="sum", use_token_scaling=True)


def liger_scaled(device: torch.device) -> Contestant:
    """Liger's newest kernel: cross-entropy of each token, weighted outside. Chunks in plain PyTorch but on Hopper."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return weighted(LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets))

    return loss


def cut(device: torch.device) -> Contestant:
    """Apple's cut cross-entropy, weighted outside; off CUDA its compiled variant, which holds the supervised logits."""
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if device.type == "cuda" else "torch_compile"

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return weighted(linear_cross_entropy(hidden, weight, targets, reduction="none", impl=impl))

    return loss


def weighted(nll: Tensor) -> Tensor:
    """DFT's loss of -log p; zero where nothing is learned."""
    return (nll * torch.exp(-nll).detach()).sum()


CONTESTANTS: dict[str, Callable[[torch.device], Contestant]] = {
    OURS: ours,
    PLAIN: plain,
    "plain, compacted": plain_compacted,
    TRL: trl,
    "TRL, log p only": partial(trl, outputs=("log_probs",)),
    LIGER: liger,
    LIGER_SCALED: liger_scaled,
    "cut cross-entropy": cut,
}


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def line_up(device: torch.device, dtype: str) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that run here on a small try, and why the others do not."""
    present, absent = {}, {}
    for name, make in CONTESTANTS.items():
        try:
            contestant = make(device)
            gradients(contestant, *inputs(Case(64, 256, 2048, 0.5, dtype), device))
        except Exception as error:  # whatever a peer fails with on this machine, it is told and the others go on
            if name == OURS:
                raise
            reason = str(error) if isinstance(error, CannotRunError) else f"{type(error).__name__}: {error}"
            absent[name] = reason.strip().splitlines()[0]
        else:
            present[name] = contestant
    return present, absent


def inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight and targets; the logit of a row's target is raised by 0 to 2 log V."""
    draw = torch.Generator(device).manual_seed(0)
    scale = case.dim**-0.5
    weight = torch.randn(case.vocabulary, case.dim, device=device, generator=draw) * scale
    targets = torch.randint(case.vocabulary, (case.rows,), device=device, generator=draw)
    raised = torch.rand(case.rows, 1, device=device, generator=draw) * 2 * torch.tensor(case.vocabulary).log().item()
    hidden = torch.randn(case.rows, case.dim, device=device, generator=draw) + raised * weight[targets]
    ignored = torch.randperm(case.rows, device=device, generator=draw)[round(case.rows * case.supervised) :]
    targets[ignored] = IGNORE_INDEX
    dtype = getattr(torch, case.dtype)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(not case.frozen), targets


def gradients(contestant: Contestant, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss; the gradients are left in `.grad`, in place of those that were there."""
    hidden.grad = weight.grad = None
    loss = contestant(hidden, weight, targets)
    loss.backward()
    return loss.detach()


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of hidden and weight in float64, some rows at a time."""
    wide, loss, grad_weight = weight.detach().double().requires_grad_(), 0.0, 0.0
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float64)
    for index in (targets != IGNORE_INDEX).nonzero().squeeze(1).split(rows):
        h = hidden.detach()[index].double().requires_grad_()
        part = weighted(F.cross_entropy(h @ wide.T, targets[index], reduction="none"))
        grad_hidden[index], of_weight = torch.autograd.grad(part, (h, wide))
        loss, grad_weight = loss + part.detach(), grad_weight + of_weight
    return loss, grad_hidden, grad_weight


def measure(case: Case, contestants: dict[str, Contestant], rounds: int, device: torch.device) -> list[Row]:
    """A row for each; with no `rounds` only errors are measured."""
    hidden, weight, targets = inputs(case, device)
    runs = {name: partial(gradients, run, hidden, weight, targets) for name, run in contestants.items()}
    rows = {name: {"case": case.title, **asdict(case), "name": name} for name in (*runs, ROUNDED)}
    true = exact(hidden, weight, targets)
    for name, run in runs.items():  # warms up, too
        rows[name] |= errors((run(), hidden.grad, weight.grad), true)
    rows[ROUNDED] |= errors((true[0].float(), *(grad.to(hidden.dtype) for grad in true[1:])), true)
    if rounds:
        del true
        spent = take_turns(runs, rounds, device, warm_up=False)
        returned = hidden.nbytes + (0 if case.frozen else weight.nbytes)
        for name, run in runs.items():
            hidden.grad = weight.grad = None
            rows[name] |= {
                "ms": 1000 * statistics.median(spent[name]),
                "extra_mib": (peak_bytes(run, device) - returned) / 2**20,
            }
        for key in ("ms", "extra_mib"):
            for name in runs:
                rows[name][f"ours_{key}"] = rows[OURS][key] / rows[name][key]
    return list(rows.values())


def errors(found: Sequence[Tensor | None], true: Sequence[Tensor]) -> dict[str, float]:
    """Of the loss and the gradients of hidden and weight; none for a weight that does not learn."""
    pairs = zip(ERROR_KEYS, found, true)
    return {key: relative_error(value, exact) for key, value, exact in pairs if value is not None}


ERROR_KEYS = ("error_loss", "error_hidden", "error_weight")
COLUMNS = {
    "case": "", "name": "", "ms": "ms", "ours_ms": "ours / it", "extra_mib": "extra MiB", "ours_extra_mib": "ours / it",
    "error_loss": "error: loss", "error_hidden": "of hidden's gradient", "error_weight": "of weight's gradient",
}  # fmt: skip

Reach = Callable[[list[Row]], float | None]
"""The figure that a target is about; None where it was not measured."""


def chosen(rows: list[Row], name: str, fields: dict[str, object]) -> list[Row]:
    return [row for row in rows if row["name"] == name and all(row[key] == value for key, value in fields.items())]


def share(key: str, peer: str, **fields: object) -> Reach:
    """Ours over the peer's, the worst of the chosen cases."""
    return lambda rows: max((row[key] for row in chosen(rows, peer, fields) if key in row), default=None)


def error(**fields: object) -> Reach:
    """Ours, the worst of the chosen cases."""
    return lambda rows: max(
        (row[key] for row in chosen(rows, OURS, fields) for key in ERROR_KEYS if key in row), default=None
    )


def error_share(peer: str, **fields: object) -> Reach:
    """Ours over the peer's, the worst of the chosen cases and of loss and gradients."""
    return lambda rows: max(
        (
            mine[key] / its[key]
            for mine, its in zip(chosen(rows, OURS, fields), chosen(rows, peer, fields))
            for key in ERROR_KEYS
            if key in its
        ),
        default=None,
    )


ERROR_TARGETS: list[tuple[Target, Reach]] = [
    (Target("C4", "error of loss and gradients, float32", 2e-6), error(dtype="float32")),
    (Target("C4", "error over Liger's, bfloat16", 0.5), error_share(LIGER, dtype="bfloat16")),
]
TARGETS: dict[str, list[tuple[Target, Reach]]] = {
    "cpu": [
        (Target("C1", "time over TRL's, 15 % supervised", 0.40), share("ours_ms", TRL, supervised=0.15)),
        (Target("C1", "time over plain, 15 % supervised", 0.12), share("ours_ms", PLAIN, supervised=0.15)),
        (Target("C2", "time over TRL's, all supervised", 0.50), share("ours_ms", TRL, supervised=1.0)),
        (Target("C3", "extra memory over plain", 0.10), share("ours_extra_mib", PLAIN)),
        *ERROR_TARGETS,
    ],
    "gpu": [
        (Target("G1", "time over TRL's", 0.85), share("ours_ms", TRL, supervised=1.0, frozen=False)),
        (Target("G1", "time over Liger's newest", 1.0), share("ours_ms", LIGER_SCALED, supervised=1.0, frozen=False)),
        (Target("G1", "time over Liger FLCE", 0.30), share("ours_ms", LIGER, supervised=1.0, frozen=False)),
        (Target("G2", "time over Liger FLCE, 15 %", 0.08), share("ours_ms", LIGER, supervised=0.15, frozen=False)),
        (Target("G3", "extra memory, MiB", 358), lambda rows: max(row["extra_mib"] for row in chosen(rows, OURS, {}))),
        ERROR_TARGETS[1],
    ],
    "errors": ERROR_TARGETS,
}


def run(cases: Collection[Case], rounds: int, device: torch.device) -> tuple[list[Row], dict[str, str]]:
    """Rows of all cases, printed as they come, and the peers that cannot run."""
    rows: list[Row] = []
    line_ups = {dtype: line_up(device, dtype) for dtype in {case.dtype for case in cases}}
    for case in cases:
        rows += (found := measure(case, line_ups[case.dtype][0], rounds, device))
        print(f"\n{case.title}, {device}")
        print(table(found, {key: title for key, title in COLUMNS.items() if key != "case"}), flush=True)
    return rows, {name: why for _, absent in line_ups.values() for name, why in absent.items()}


def interpreted(dry: bool) -> list[Row]:
    """Rows of the preset `errors`, in a process where Triton's interpreter stands in for a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "errors.json"
        command = [sys.executable, "-m", "scripts.bench.loss_head", "--preset", "errors", "--out", str(out)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        subprocess.run(command + ["--dry"] * dry, check=True, env=environment)
        return json.loads(out.read_text(encoding="utf-8"))["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="the cases that a target is about, in place of one case")
    parser.add_argument("--dry", action="store_true", help="the preset in tiny sizes, to see whether it runs")
    parser.add_argument("--rows", type=int, default=1024, help="N, tokens of a micro-batch")
    parser.add_argument("--dim", type=int, default=512, help="D, hidden width")
    parser.add_argument("--vocabulary", type=int, default=32768, help="V")
    parser.add_argument("--supervised", type=float, default=0.5, help="share of the rows that are learned")
    parser.add_argument("--frozen", action="store_true", help="the weight does not learn, as under LoRA")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", help="default: cuda where there is one; the presets cpu and errors: cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON; default with a preset: among the results of the benches")
    args = parser.parse_args()

    on_cpu = args.preset in ("cpu", "errors") or not torch.cuda.is_available()
    device = torch.device(args.device or ("cpu" if on_cpu else "cuda"))
    if args.preset == "gpu" and device.type != "cuda" and not args.dry:
        sys.exit("the preset gpu needs a CUDA device; --dry tries the same in tiny sizes on the CPU")
    one = Case(args.rows, args.dim, args.vocabulary, args.supervised, args.dtype, args.frozen)
    cases = PRESETS.get(args.preset, [one])
    if args.dry:
        cases = list(dict.fromkeys(replace(case, rows=96, dim=32, vocabulary=1024) for case in cases))
    rows, absent = run(cases, 0 if args.preset == "errors" else args.rounds, device)
    if args.preset == "cpu":
        print("\nErrors, with Triton's interpreter:", flush=True)
        rows += interpreted(args.dry)
    targets = [target.judged(reach(rows)) for target, reach in TARGETS.get(args.preset, [])]
    setting = {"preset": args.preset, "rounds": args.rounds, "dry": args.dry}
    out = args.out or (result_file("loss_head", args.preset, args.dry) if args.preset else None)
    report(Found("loss_head", setting, machine(device), COLUMNS, rows, targets, absent), out)


if __name__ == "__main__":
    main()
