"""What a program's processes use, all together: read from /proc while it runs."""

import os
from pathlib import Path
from typing import Protocol

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATE, _PARENT, _THREADS, _STARTED, _RSS = 0, 1, 17, 19, 21  # fields of /proc/PID/stat behind the name in brackets


class Tree(Protocol):
    def threads(self) -> int:
        """How many are alive, of all processes."""

    def memory_bytes(self, enough: int) -> int:
        """Memory and files kept in memory. Beyond `enough` shared pages are counted once, which takes longer."""


def _stat(folder: str) -> list[str] | None:
    """Fields behind the process's name; None when it is gone."""
    try:
        with open(f"{folder}/stat", "rb") as file:  # noqa: PTH123 - some hundred times a second
            return file.read().decode(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def runs(pid: int) -> bool:
    """Whether it is there, and more than an entry that nobody has collected."""
    fields = _stat(f"/proc/{pid}")
    return fields is not None and fields[_STATE] != "Z"


def _shared_once(folder: str, fields: list[str]) -> int:
    try:
        rollup = Path(folder, "smaps_rollup").read_text()
    except OSError:  # gone, or a kernel that does not tell
        return int(fields[_RSS]) * _PAGE
    return sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))


def _usage(processes: dict[str, list[str]], enough: int) -> int:
    total = sum(int(fields[_RSS]) for fields in processes.values()) * _PAGE
    if total <= enough:
        return total
    return sum(_shared_once(folder, fields) for folder, fields in processes.items())


class SandboxTree:
    """Everything in the process namespace whose first process is `first`, by the sandbox's own /proc."""

    def __init__(self, first: int) -> None:
        self._root = f"/proc/{first}/root"
        self._namespace = f"/proc/{first}/ns/pid"
        self._ready = False
        self._processes: dict[str, list[str]] = {}

    def threads(self) -> int:
        self._processes = self._read()
        return sum(int(fields[_THREADS]) for fields in self._processes.values())

    def memory_bytes(self, enough: int) -> int:
        if not self._processes:
            return 0
        try:
            disk = os.statvfs(f"{self._root}/tmp")
        except OSError:  # it has just ended
            return 0
        files = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return files + _usage(self._processes, enough - files)

    def _read(self) -> dict[str, list[str]]:
        proc = f"{self._root}/proc"
        try:
            # While it starts, its root is still the machine's.
            if not self._ready and os.stat(f"{proc}/1/ns/pid").st_ino != os.stat(self._namespace).st_ino:  # noqa: PTH116
                return {}
            self._ready = True
            names = [name for name in os.listdir(proc) if name.isdecimal() and name != "1"]  # noqa: PTH208
        except OSError:
            return {}
        found = {f"{proc}/{name}": _stat(f"{proc}/{name}") for name in names}
        return {folder: fields for folder, fields in found.items() if fields}


class ChildTree:
    """A child and all that it started, as far as it did not slip away between two looks."""

    def __init__(self, child: int) -> None:
        self._seen: dict[int, str] = {child: self._started(child)}
        self._processes: dict[str, list[str]] = {}

    @staticmethod
    def _started(pid: int) -> str:
        fields = _stat(f"/proc/{pid}")
        return fields[_STARTED] if fields else ""

    def threads(self) -> int:
        every = {int(name): _stat(f"/proc/{name}") for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208
        alive = {pid: fields for pid, fields in every.items() if fields}
        self._seen = {pid: start for pid, start in self._seen.items() if self._is(alive.get(pid), start)}
        grown = True
        while grown:
            new = {
                pid: fields[_STARTED]
                for pid, fields in alive.items()
                if pid not in self._seen and int(fields[_PARENT]) in self._seen
            }
            self._seen |= new
            grown = bool(new)
        self._processes = {f"/proc/{pid}": alive[pid] for pid in self._seen}
        return sum(int(fields[_THREADS]) for fields in self._processes.values())

    @staticmethod
    def _is(fields: list[str] | None, start: str) -> bool:
        return fields is not None and fields[_STARTED] == start

    def memory_bytes(self, enough: int) -> int:
        return _usage(self._processes, enough)

    def pids(self) -> list[int]:
        self.threads()
        return [pid for pid in self._seen if runs(pid)]
