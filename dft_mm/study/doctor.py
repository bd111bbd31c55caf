"""`doctor`: what is here, what is missing, and what to type for it; everything is tried, nothing only looked up."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from dft_mm.evaluate.code.languages import LANGUAGES
from dft_mm.evaluate.code.sandbox import broken
from dft_mm.evaluate.code.toolchain import cannot_run, install_line, open_sandbox

State = Literal["ok", "optional", "missing"]
"""`optional`: something cannot be done here, and the rest can; `missing`: nothing goes on without it."""

_PYTHON = (3, 11)
_COLLECTIVES_S = 60.0
_DISK_GIB = 20
_MEMORY_GIB = 8
_GIB = 1 << 30
# Two processes add up their ranks. One process says what it sees of accelerators, so that torch is not loaded here.
_RANK = """
import json, os, sys, torch, torch.distributed as dist
from datetime import timedelta
rank, path = int(sys.argv[1]), sys.argv[2]
cuda = torch.cuda.device_count()
nccl = cuda >= 2
dist.init_process_group("nccl" if nccl else "gloo", init_method="file://" + path, rank=rank, world_size=2,
                        timeout=timedelta(seconds=40))
value = torch.tensor([rank + 1.0], device=f"cuda:{rank}" if nccl else "cpu")
dist.all_reduce(value)
seen = [[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory] for i in range(cuda)]
print(json.dumps({"sum": value.item(), "backend": dist.get_backend(), "accelerators": seen}), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Finding:
    name: str
    state: State
    found: str
    advice: str = ""
    """What to type, or to know; empty when all is well."""


def examine() -> dict[str, Any]:
    """All findings: {"ok", "sandbox", "languages": {KEY: bool}, "accelerators", "findings"}."""
    with tempfile.TemporaryDirectory(prefix="dft_mm_doctor_") as folder:
        ranks = _start_ranks(Path(folder, "meeting"))
        findings = [_python(), *_packages()]
        programs, runs = _programs()
        accelerators, collectives = _collect(ranks)
    findings += [*accelerators, collectives, _compiler(), *_evaluation(), *programs, *_machine()]
    return {
        "ok": all(each.state != "missing" for each in findings),
        "sandbox": any(each.name == "sandbox" and each.state == "ok" for each in findings),
        "languages": runs,
        "accelerators": [each.found for each in accelerators if each.state == "ok"],
        "findings": [asdict(each) for each in findings],
    }


def to_text(report: dict[str, Any]) -> str:
    """The findings, one a line, with what to do beneath the ones that need it."""
    marks = {"ok": "ok", "optional": "--", "missing": "!!"}
    width = max(len(each["name"]) for each in report["findings"])
    lines = []
    for each in report["findings"]:
        lines.append(f"{marks[each['state']]}  {each['name']:<{width}}  {each['found']}")
        if each["advice"]:
            lines.append(f"    {'':<{width}}  → {each['advice']}")
    missing = sum(each["state"] == "missing" for each in report["findings"])
    lines.append("everything needed is here" if report["ok"] else f"{missing} needed things are missing (!!)")
    return "\n".join(lines)


def _python() -> Finding:
    right = sys.version_info >= _PYTHON
    wanted = ".".join(map(str, _PYTHON))
    return Finding(
        "python", "ok" if right else "missing", platform.python_version(), "" if right else f"install Python {wanted}"
    )


def _packages() -> Iterator[Finding]:
    """What the distribution says it needs, against what is installed: the heart of it one by one, the rest together."""
    shown = ("torch", "transformers", "deepspeed", "peft")
    needed = [Requirement(text) for text in importlib.metadata.requires("dft_mm") or ()]
    others, wrong = 0, []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"'{requirement.name}{requirement.specifier}'")
            yield Finding(
                requirement.name, "missing", found or "not installed", f"pip install {wrong[-1]}, or make install"
            )
        elif requirement.name in shown:
            yield Finding(requirement.name, "ok", found)
        else:
            others += 1
    yield Finding("packages", "ok", f"{others} others as pyproject.toml wants them")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _start_ranks(meeting: Path) -> "list[subprocess.Popen[str]]":
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]


def _collect(ranks: "Sequence[subprocess.Popen[str]]") -> tuple[list[Finding], Finding]:
    """What the two processes told about accelerators, and whether they could add up."""
    end = time.monotonic() + _COLLECTIVES_S
    said, errors = [], []
    for rank in ranks:
        try:
            output, error = rank.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            output, error = rank.communicate()
            error = f"no answer within {_COLLECTIVES_S:g} s"
        said.append(output)
        errors.append(error)
    try:
        told = [json.loads(output.splitlines()[-1]) for output in said]
    except (IndexError, ValueError):
        reason = next((error.strip().splitlines()[-1] for error in errors if error.strip()), "no answer")
        return [], Finding(
            "collectives", "missing", f"two processes cannot add up: {reason[:150]}",
            "the network interface they shall use: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more",
        )  # fmt: skip
    right = all(each["sum"] == 3.0 for each in told)
    collectives = Finding(
        "collectives", "ok" if right else "missing", f"{told[0]['backend']}, two processes",
        "" if right else f"their sum is {told[0]['sum']}, not 3: this PyTorch is broken; reinstall it",
    )  # fmt: skip
    seen = [Finding("accelerator", "ok", f"{name}, {size / _GIB:.0f} GiB") for name, size in told[0]["accelerators"]]
    none = Finding("accelerator", "optional", "none", "training runs on the CPU: tiny models only")
    return seen or [none], collectives


def _compiler() -> Finding:
    """DeepSpeed compiles parts of itself when they are first used."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    absent = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=beside) is None]
    lines = {"g++": "apt-get install g++", "ninja": "pip install ninja"}
    return Finding(
        "compiler", "optional" if absent else "ok", f"no {', no '.join(absent)}" if absent else "g++ and ninja",
        f"training on a CPU needs it: {' && '.join(lines[tool] for tool in absent)}" if absent else "",
    )  # fmt: skip


def _evaluation() -> Iterator[Finding]:
    """What single benchmarks need beside the core."""
    for package, line in (
        ("math-verify", "pip install 'dft_mm[eval]'"),
        ("ms-vlmeval", "pip install 'dft_mm[eval]' && pip install --no-deps ms-vlmeval"),
    ):
        found = _version(package)
        yield Finding(package, "ok" if found else "optional", found or "not installed", "" if found else line)


def _programs() -> tuple[list[Finding], dict[str, bool]]:
    """The sandbox, and which languages it runs."""
    unchecked = open_sandbox()
    reason = broken(unchecked)
    if reason is not None:
        refused = Finding("sandbox", "optional", "none: code benchmarks are refused", reason)
        return [refused], dict.fromkeys(LANGUAGES, False)
    reasons = dict(zip(LANGUAGES, unchecked.map(lambda key: cannot_run(key, unchecked), list(LANGUAGES))))
    absent = [key for key, each in reasons.items() if each is not None]
    findings = [Finding("sandbox", "ok", "bubblewrap: no network, no files, no privileges")]
    if works := [LANGUAGES[key].title for key in LANGUAGES if key not in absent]:
        findings.append(Finding("languages", "ok", ", ".join(works)))
    for key in absent:
        findings.append(Finding(LANGUAGES[key].title, "optional", str(reasons[key])[:100], install_line([key])))
    return findings, {key: key not in absent for key in LANGUAGES}


def _machine() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / _GIB
    yield Finding(
        "disk", "ok" if free >= _DISK_GIB else "optional", f"{free:.0f} GiB free in {Path.cwd()}",
        "" if free >= _DISK_GIB else "checkpoints of large models take tens of GiB each: give another `output`",
    )  # fmt: skip
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) / (1 << 20)
    yield Finding(
        "memory", "ok" if available >= _MEMORY_GIB else "optional", f"{available:.0f} GiB available",
        "" if available >= _MEMORY_GIB else "the demo fits; models of billions of parameters do not",
    )  # fmt: skip
    shared = shutil.disk_usage("/dev/shm").free / _GIB
    yield Finding(
        "shared memory", "ok" if shared >= 1 else "optional", f"{shared:.1f} GiB free in /dev/shm",
        "" if shared >= 1 else "DeepSpeed on a CPU takes 66 MiB a rank; in a container: --shm-size=2g",
    )  # fmt: skip
