"""One answer about a program → its grade: extract the code, put the tests behind it, run it, read the verdict."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dft_mm.evaluate.code.assemble import Row, assemble
from dft_mm.evaluate.code.extract import Code, code_of
from dft_mm.evaluate.code.languages import LANGUAGES, Language, told
from dft_mm.evaluate.code.program import GIB, Limits, Result
from dft_mm.evaluate.code.running import run_python_tests, run_tests
from dft_mm.evaluate.code.sandbox import Sandbox
from dft_mm.evaluate.task import Grade

_LONGEST_DETAIL = 200
_TELLING = re.compile(
    r"(?:Error|Exception)\b[^()]*:|Exception in|[Ee]rror:|error [A-Z]|Assertion.*failed|[Ff]atal|not found|fault"
)


def judge_all(items: Sequence[tuple[str, Mapping[str, Any], bool]], sandbox: Sandbox) -> Iterator[Grade]:
    """Grades of (text, about, completion), in their order, as they become known; several programs at once."""
    return sandbox.map(lambda item: judge(*item, sandbox), items)


def judge(text: str, about: Mapping[str, Any], completion: bool, sandbox: Sandbox) -> Grade:
    """Grade an answer; `about` is what `tasks/programs.py` keeps of a row."""
    language = LANGUAGES[about["language"]]
    if tests := about["tests"].strip():
        text = text.partition(tests)[0]  # an answer may repeat them
    code = code_of(text, language, about["entry_point"], about["prompt"], completion, about["stop"])
    if code is None:
        return Grade("no_code", None)
    if about["language"] == "py":
        return _judge_python(code, about, sandbox)
    end = secrets.token_hex(16)
    row = Row(about["entry_point"], about["prompt"], about["tests"])
    source = assemble(code, replace(row, tests=told(language, row.tests, end)), language)
    result, passed = run_tests(sandbox, language, source, end)
    shown = assemble(code, row, language)  # as the benchmark would run it
    return Grade("passed", shown) if passed else _unsuccessful(result, shown, language)


def _judge_python(code: Code, about: Mapping[str, Any], sandbox: Sandbox) -> Grade:
    stub = f"{about['prompt'].rstrip()}\n    pass\n\n"
    source = stub + code.text if code.whole else about["prompt"] + code.text
    result, verdict = run_python_tests(sandbox, source + "\n", {**about["job"], "prompt": stub})
    if verdict is not None:
        return Grade(verdict["status"], source, verdict["detail"])
    return _unsuccessful(result, source, LANGUAGES["py"])


def _unsuccessful(result: Result, source: str, language: Language) -> Grade:
    if result.error:
        return Grade("sandbox_error", source, result.error[:_LONGEST_DETAIL])
    if result.stopped:
        detail = _beyond(result.stopped, language.limits)
        if result.stopped == "time":
            return Grade("timeout", source, detail if result.compiled else f"{detail} while it was compiled")
        return Grade("failed" if result.compiled else "compile_error", source, detail)
    if not result.compiled:
        return Grade("compile_error", source, _first_error(result) or "the compiler fails")
    return Grade("failed", source, _first_error(result) or _how_it_ended(result))


def _beyond(stopped: str, limits: Limits) -> str:
    amounts: dict[str, str] = {
        "time": f"{limits.wall_s:g} s",
        "memory": f"{limits.memory_bytes / GIB:g} GiB of memory",
        "processes": f"{limits.processes} processes",
        "output": f"{limits.output_bytes >> 10} KiB of output",
    }
    return f"more than {amounts[stopped]}"


def _first_error(result: Result) -> str:
    """The first line that tells; compilers of some languages speak on standard output."""
    texts = (result.stderr,) if result.compiled else (result.stderr, result.stdout)
    lines = [line.strip() for text in texts for line in text.decode(errors="replace").splitlines() if line.strip()]
    found = next((line for line in lines if _TELLING.search(line)), lines[-1] if lines else "")
    return found[:_LONGEST_DETAIL]


def _how_it_ended(result: Result) -> str:
    assert result.status is not None
    if result.status == 0:
        return "it ended before its tests did"
    return f"signal {result.status - 128}" if result.status > 128 else f"exit status {result.status}"
