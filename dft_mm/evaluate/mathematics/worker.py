"""A child process that asks math-verify whether two answers are equal, and the handle that bounds its time and memory.

math-verify can hang and needs the main thread for its own alarm, so it runs apart and is killed when it is late. Only
its LaTeX parser is used: it never reaches Python's eval.
"""

import importlib.metadata
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from functools import lru_cache
from typing import Any, Literal

from dft_mm.errors import InputError

Verdict = Literal["equal", "different", "bad_gold", "timeout"]

_MEMORY_BYTES = 4 << 30
_OFFICIAL_S = 3.0
_OFFICIAL_NEEDS = {"word2number": "1.1"}
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dft_mm.evaluate.mathematics.worker import serve; serve(float(sys.argv[2]))"
)


def official_missing() -> str | None:
    """Why the official rules cannot be applied here, with the way out; None when they can."""
    for package, wanted in _OFFICIAL_NEEDS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if not found.startswith(wanted):
            return f"Qwen's rules need {package} {wanted} (here: {found}): pip install '{package}=={wanted}.*'"
    return None


class MathWorker:
    """One persistent child. Safe to use from several threads; each call waits for its turn."""

    def __init__(self, limit_s: float = 5.0) -> None:
        """`limit_s` bounds one comparison; a child that needs longer is killed and replaced."""
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("grading mathematics needs math-verify: pip install 'dft_mm[eval]'")
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(self.limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._ready = False

    def compare(self, gold: str, answer: str, wait_s: float | None = None) -> Verdict:
        """Are two cleaned LaTeX answers equal? `bad_gold` when the gold one does not equal itself.

        `wait_s` bounds the whole call, the child's start included; None waits for the start as long as it takes.
        `timeout` also stands for a child that ran out of memory or crashed.
        """
        verdict = self._ask(["compare", gold, answer], self.limit_s, wait_s)
        return "timeout" if verdict is None else verdict

    def official(self, response: str, gold: str, keep_units: bool) -> bool:
        """Whether Qwen2.5-Math's rules call a response right (`official`); they call what takes over 3 s wrong."""
        return self._ask(["official", response, gold, keep_units], _OFFICIAL_S, None) is True

    def _ask(self, request: list[Any], limit_s: float, wait_s: float | None) -> Any:
        """What the child answers; None when it is late, ran out of memory or crashed."""
        end = None if wait_s is None else time.monotonic() + wait_s
        with self._lock:
            if not self._ready:
                line = self._read_line(end)
                if line is None and self.process.poll() is None:
                    return None  # still starting, on a slow machine: left alone for the next call
                if line is None:
                    self._replace()
                    return None
                self._ready = True
            limit = time.monotonic() + limit_s
            end = limit if end is None else min(end, limit)
            try:
                self._pipe("stdin").write(json.dumps(request).encode() + b"\n")
                self._pipe("stdin").flush()
            except OSError:  # the child died between two calls
                line = None
            else:
                line = self._read_line(end)
            if line is None:
                self._replace()
                return None
            return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe("stdout").close()
        try:
            self._pipe("stdin").close()
        except OSError:  # what was still to be flushed has nobody to read it
            return

    def _replace(self) -> None:
        self.close()
        self._start()

    def _pipe(self, name: str) -> Any:
        return getattr(self.process, name)

    def _read_line(self, end: float | None) -> bytes | None:
        """One line from the child; None when it ended or is late."""
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe("stdout"), selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                left = None if end is None else end - time.monotonic()
                if (left is not None and left <= 0) or not selector.select(left):
                    return None
                chunk = os.read(self._pipe("stdout").fileno(), 65536)
                if not chunk:
                    return None
                received += chunk
        return received


def serve(limit_s: float) -> None:
    """The child: a line [kind, …] in, a verdict out, until the input ends."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    import math_verify

    parsing = (math_verify.LatexExtractionConfig(),)

    def parse(latex: str) -> list[Any]:
        return math_verify.parse(f"${latex}$", parsing, fallback_mode="no_fallback", parsing_timeout=None)

    def equal(gold: list[Any], answer: list[Any]) -> bool:
        return math_verify.verify(gold, answer, timeout_seconds=None)

    @lru_cache(maxsize=256)
    def parse_gold(latex: str) -> list[Any]:
        gold = parse(latex)
        return gold if gold and equal(gold, gold) else []

    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints may look like a verdict
    out.write(b'"ready"\n')
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Should the parent be gone while a comparison hangs, the system ends this child.
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + 2 * limit_s) + 1, -1))
        kind, *request = json.loads(line)
        verdict: Verdict | bool
        if kind == "official":
            from dft_mm.evaluate.mathematics import official, symbolic  # what grading can do without

            verdict = official.verdict(*request, symbolic.same)
        else:
            gold_text, answer_text = request
            gold = parse_gold(gold_text)
            verdict = "bad_gold"
            if gold:
                verdict = "equal" if equal(gold, parse(answer_text)) else "different"
        out.write(json.dumps(verdict).encode() + b"\n")
