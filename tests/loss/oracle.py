"""What tests of the loss compare with: formulas written from the paper, sharing no line with the package."""

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
