"""What the benches share: contestants that take turns, peak memory, machine and versions, targets, tables, JSON.

A bench ends with a `Found`, which `report` prints and writes: `scripts/bench/results/*.json` hold exactly these values,
and `python -m scripts.bench.readme` makes the figures of README.md of them.
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Kineto tells of every start and stop of the profiler; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

REPO = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
VERSIONS = ("torch", "transformers", "deepspeed", "trl", "liger_kernel", "cut-cross-entropy", "triton", "pillow")
Row = dict[str, Any]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done with it."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round: A B C A B C …, so that a busy machine slows all of them alike.

    `warm_up`: one more round, the first, is not counted.
    """
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + warm_up):
        for name, run in contestants.items():
            taken = seconds(run, device)
            if turn >= warm_up:
                spent[name].append(taken)
    return spent


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Greatest number of bytes that one call holds beyond those held before it, by the allocator's own record."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the norm of the exact values."""
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    versions: dict[str, str | None] = {"torch": str(torch.__version__)}  # with its build, such as +cpu
    for package in VERSIONS[1:]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Target(NamedTuple):
    """A number to reach."""

    name: str
    """Of the list of targets, such as C1."""
    what: str
    limit: float
    at_least: bool = False
    """Else at most."""

    def judged(self, reached: float | None, note: str = "") -> Row:
        """What goes into the JSON; `reached` is None where it was not measured, and `note` says why."""
        met = None if reached is None else reached >= self.limit if self.at_least else reached <= self.limit
        return {**self._asdict(), "reached": reached, "met": met, "note": note}


def verdict(judged: Row) -> str:
    """A line such as `C1 time over TRL's ≤ 0.4: reached 0.31 yes`. A target missed is told, and fails nothing."""
    limit = f"{judged['name']} {judged['what']} {'≥' if judged['at_least'] else '≤'} {shown(judged['limit'])}"
    note = f" ({judged['note']})" if judged["note"] else ""
    if judged["met"] is None:
        return f"{limit}: not measured{note}"
    return f"{limit}: reached {shown(judged['reached'])} {'yes' if judged['met'] else 'no'}{note}"


@dataclass(frozen=True)
class Found:
    """What one run of a bench found."""

    bench: str
    setting: dict[str, Any]
    machine: dict[str, Any]
    columns: dict[str, str]
    """Key of a row → title of the table's column."""
    rows: list[Row]
    targets: list[Row]
    """`Target.judged` of each."""
    absent: dict[str, str]
    """Contestants that cannot run here, and why."""


def report(found: Found, out: Path | None) -> None:
    """Print the targets and the absent, and write all of it as JSON."""
    for name, why in found.absent.items():
        print(f"not run: {name}: {why}")
    for judged in found.targets:
        print(verdict(judged))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {out}")


def result_file(bench: str, preset: str, dry: bool) -> Path:
    """Where a preset's JSON goes; that of a dry run says nothing about speed and is kept apart."""
    return (REPO / "build/bench" if dry else RESULTS) / f"{bench}_{preset}.json"


def table(rows: Iterable[Row], columns: Mapping[str, str]) -> str:
    """Markdown, aligned so that it reads well on a terminal too."""
    lines = [list(columns.values()), *([shown(row.get(key)) for key in columns] for row in rows)]
    first, *others = [max(map(len, cells)) for cells in zip(*lines)]
    lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return "\n".join(
        "| " + " | ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others))]) + " |"
        for name, *cells in lines
    )


def shown(value: object) -> str:
    """Three digits of a number; nothing for what was not measured."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
