"""Time and memory of the loss head beside plain PyTorch and TRL, one forward and backward of DFT's loss each.

    python scripts/bench/loss_head.py --rows 1024 --dim 512 --vocabulary 32768 --supervised 0.5 --out loss_head.json

Contestants take turns, so that a busy machine slows all of them alike; shown are medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dft_mm.batch import IGNORE_INDEX
from dft_mm.loss.head import linear_token_loss

Contestant = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_token_loss(hidden, weight, targets, "dft").loss


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of every row, float32 cross-entropy, times the detached probability: what DFT trainers commonly do."""
    logits = (hidden @ weight.T).float()
    nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    return (nll * torch.exp(-nll).detach()).sum()


def plain_compacted(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same on the supervised rows only."""
    keep = targets != IGNORE_INDEX
    return plain(hidden[keep], weight, targets[keep])


def trl_head() -> Contestant | None:
    """TRL's tiled log-probabilities, with the tile width and the choice of rows of its fused head, weighted by p."""
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    except ImportError as error:
        print(f"TRL is left out: {error}")
        return None

    def tiled(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        keep = targets != IGNORE_INDEX
        if hidden.is_cuda:  # elsewhere it scores every row
            hidden, targets, keep = hidden[keep], targets[keep], keep[keep]
        log_p = ChunkedLogProbFunction.apply(hidden, weight, None, targets.clamp(min=0), 1.0, 32768, None, 1.0, ())[0]
        return -(log_p * torch.exp(log_p).detach())[keep].sum()

    return tiled


def once(contestant: Contestant, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    hidden.grad = weight.grad = None
    synchronise(hidden)
    start = time.perf_counter()
    contestant(hidden, weight, targets).backward()
    synchronise(hidden)
    return time.perf_counter() - start


def synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def extra_mib(contestant: Contestant, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """MiB at the peak beyond inputs and the gradients returned, by the allocator's own record."""
    returned = hidden.nbytes + (weight.nbytes if weight.requires_grad else 0)
    hidden.grad = weight.grad = None
    if hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(contestant, hidden, weight, targets)
        return (torch.cuda.max_memory_allocated() - before - returned) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        once(contestant, hidden, weight, targets)
    live = peak = 0
    events = (e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return (peak - returned) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="N, tokens of a micro-batch")
    parser.add_argument("--dim", type=int, default=512, help="D, hidden width")
    parser.add_argument("--vocabulary", type=int, default=32768, help="V")
    parser.add_argument("--supervised", type=float, default=0.5, help="share of the rows that are learned")
    parser.add_argument("--frozen", action="store_true", help="the weight does not learn, as under LoRA")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.rows, args.dim, device=args.device).to(dtype).requires_grad_()
    weight = torch.randn(args.vocabulary, args.dim, device=args.device).mul_(args.dim**-0.5).to(dtype)
    weight.requires_grad_(not args.frozen)
    targets = torch.randint(args.vocabulary, (args.rows,), device=args.device)
    targets[torch.rand(args.rows, device=args.device) >= args.supervised] = IGNORE_INDEX

    contestants: dict[str, Contestant] = {"ours": ours, "plain": plain, "plain, compacted": plain_compacted}
    if (trl := trl_head()) is not None:
        contestants["TRL"] = trl
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(args.repeats + 1):
        for name, contestant in contestants.items():
            spent = once(contestant, hidden, weight, targets)
            if turn:  # the first turn warms up
                seconds[name].append(spent)

    logits_mib = args.rows * args.vocabulary * 4 / 2**20
    rows = [
        {
            "name": name,
            "ms": 1000 * statistics.median(seconds[name]),
            "times_ours": statistics.median(seconds[name]) / statistics.median(seconds["ours"]),
            "extra_mib": (extra := extra_mib(contestant, hidden, weight, targets)),
            "extra_of_logits": extra / logits_mib,
        }
        for name, contestant in contestants.items()
    ]
    sizes = f"N {args.rows}, D {args.dim}, V {args.vocabulary}"
    print(f"{sizes}, {args.supervised:.0%} supervised, {args.dtype}, {args.device}")
    print(f"{'':18}{'ms':>9}{'x ours':>8}{'extra MiB':>11}{'of logits':>11}")
    for row in rows:
        print(
            f"{row['name']:18}{row['ms']:9.0f}{row['times_ours']:8.2f}{row['extra_mib']:11.1f}"
            f"{row['extra_of_logits']:11.3f}"
        )
    if args.out:
        setting = {name: value for name, value in vars(args).items() if name != "out"}
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        args.out.write_text(json.dumps({"setting": setting, "machine": machine, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
