"""What tests of the loss compare with: formulas written from the paper, sharing no line with the package."""

import math

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def dft_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """-∇ Σ p in float64: DFT's gradient, by the softmax alone, no logarithm and no detached weight."""
    inputs = [x.detach().double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    logits = inputs[0] @ inputs[1].T + (inputs[2] if bias is not None else 0)
    keep = targets != -100
    p = torch.softmax(logits[keep], dim=1)[torch.arange(int(keep.sum())), targets[keep]]
    return list(torch.autograd.grad(-p.sum(), inputs))


def plain_dft_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What DFT trainers commonly do: logits in the model's type, float32 cross-entropy, times detached p."""
    logits = (hidden @ weight.T).float()
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    return (nll * torch.exp(-nll).detach()).sum()


def peak_bytes(run) -> int:
    """Largest sum of live bytes allocated inside `run`, by the CPU allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm())


def paper_loss(name: str, logits: Tensor, targets: Tensor, ref_logits: Tensor, sequences: Tensor) -> Tensor:
    """Σ of a loss over the rows of float64 logits (M, V), each formula as its paper has it, with the defaults."""
    every = torch.softmax(logits, dim=1)
    rows = torch.arange(len(targets))
    p = every[rows, targets]
    q = torch.softmax(ref_logits.detach(), dim=1)
    fixed = p.detach()
    if name == "dft_sequence":
        weight = torch.stack([fixed[sequences == number].prod() for number in sequences])
    elif name == "eaft":
        top = every.detach().sort(dim=1, descending=True).values[:, :20]
        share = top / top.sum(1, keepdim=True)
        weight = torch.special.entr(share).sum(1) / math.log(top.shape[1])
    elif name == "iw_sft":
        weight = (fixed / q[rows, targets]).clip(0.2, 1.8)
    else:
        weight = {
            "sft": torch.ones_like(fixed), "sed": torch.ones_like(fixed), "dft": fixed, "asft": fixed,
            "power": fixed.sqrt(), "mix": 0.5 * fixed + 0.5, "profit": (fixed > 0.1).double(),
            "chord": fixed * (1 - fixed), "focal": (1 - fixed) ** 2,
        }[name]  # fmt: skip
    loss = -(weight * p.log()).sum()
    if name == "asft":
        loss = loss + 0.1 * (q * (q / every).log()).sum()
    if name == "sed":
        undecided = every.detach().sort(dim=1, descending=True).values[:, :2].sum(1) < 0.95
        loss = loss + 0.2 * (undecided * (p - 0.5) ** 2).sum()
    return loss
