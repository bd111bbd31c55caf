"""Which languages run here: each counts when a small program with its libraries compiles and ends well."""

import secrets
from collections.abc import Iterable

from dft_mm.errors import InputError
from dft_mm.evaluate.code.languages import LANGUAGES, told
from dft_mm.evaluate.code.program import Result
from dft_mm.evaluate.code.running import python_home, run_python_tests, run_tests
from dft_mm.evaluate.code.sandbox import Sandbox, broken

_HELLO_JOB = {"prompt": "def f():\n    pass\n", "entry_point": "f", "tests": "assert f() == 1", "call_check": False}


def open_sandbox(unsafe_exec: bool = False) -> Sandbox:
    """The sandbox for programs of any language; `unsafe_exec`: plain child processes where there is no sandbox."""
    sandbox = Sandbox(bound=python_home()[1])
    if unsafe_exec and broken(sandbox) is not None:
        return Sandbox(unsafe=True)
    return sandbox


def cannot_run(key: str, sandbox: Sandbox) -> str | None:
    """Why programs of a language cannot run here; None when they can."""
    language = LANGUAGES[key]
    if key == "py":
        result, verdict = run_python_tests(sandbox, "def f():\n    return 1\n", _HELLO_JOB)
        works = verdict is not None and verdict["status"] == "passed"
    else:
        end = secrets.token_hex(8)
        result, works = run_tests(sandbox, language, told(language, language.hello, end), end)
    return None if works else _reason(result)


def _reason(result: Result) -> str:
    text = result.error or (result.stderr or result.stdout).decode(errors="replace").strip() or str(result.stopped)
    return text.splitlines()[0][:200]


def install_line(keys: Iterable[str]) -> str:
    """What to type for these languages."""
    return "apt-get install " + " ".join(LANGUAGES[key].packages for key in keys)


def require(keys: Iterable[str], unsafe_exec: bool) -> None:
    """Raise InputError where programs of one of these languages cannot run."""
    with open_sandbox(unsafe_exec) as sandbox:
        for key in sorted(set(keys)):
            reason = cannot_run(key, sandbox)
            if reason is not None:
                raise InputError(
                    f"programs in {LANGUAGES[key].title} cannot run here ({reason}); {install_line([key])}, "
                    "or run scripts/install_languages.sh; `dft-mm doctor` shows all languages"
                )
