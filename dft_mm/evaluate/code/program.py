"""What is run and what came of it: plain values, whichever way a program is contained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one program, all its processes together."""

    wall_s: float = 15.0
    memory_bytes: int = 2 * GIB
    processes: int = 64
    """Threads count, as they do for the system."""
    output_bytes: int = MIB
    """Standard output and error together."""
    disk_bytes: int = 256 * MIB
    address_space: bool = True
    """Bound the address space of each process, too; virtual machines reserve far more than they use."""


@dataclass(frozen=True)
class Program:
    files: Mapping[str, bytes]
    """Name → content, in the folder that it is run in."""
    run: Sequence[str]
    compile: Sequence[str] = ()
    """Run first, where there is something to compile."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Result:
    status: int | None
    """Exit status as a shell has it, 128 + signal; None when it was stopped."""
    stdout: bytes
    stderr: bytes
    compiled: bool
    """Its compiler had nothing against it; true where nothing is compiled."""
    stopped: Literal["time", "memory", "processes", "output"] | None = None
    """The limit that it went beyond."""
    seconds: float = 0.0
    error: str = ""
    """Why the sandbox itself failed; the program is not at fault."""
