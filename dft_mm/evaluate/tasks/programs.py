"""Programming: HumanEval, HumanEval+ and MultiPL-E. A problem's tests run on the code in an answer, in a sandbox."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.code.assemble import CLASS
from dft_mm.evaluate.code.judge import judge_all
from dft_mm.evaluate.code.languages import LANGUAGES, told
from dft_mm.evaluate.code.toolchain import open_sandbox, require
from dft_mm.evaluate.task import Answer, Grade, Question, Scored, Scoring, Task
from dft_mm.evaluate.tasks.rows import IDS, Published, load_rows, put, resolve_prompt

_STOP = (
    "\ndef ", "\nclass ", "\n@", "\n#", "\nif ", "\nprint(", "\nassert ", "\nimport ", "\nfrom ", "\n```",
    '\n"""', "\n'''",
)  # fmt: skip
"""What ends a Python function that a base model goes on writing behind."""
_ROOT = "HumanEval/32"
_ROOT_NOTE = f"{_ROOT} (find_zero) passes with any root; evalplus' own check of it fails every answer."
_ROOT_CHECK = ("_poly(*candidate(*inp), inp) <= 0.0001", "is_root(*inp, candidate(*inp), 0.0001)")
"""What evalplus published, which unpacks a number, and what `python_runner` has in its place."""


def _style(key: str) -> Prompt:
    language = LANGUAGES[key]
    word = {"py": "python", "sh": "bash", "cs": "csharp"}.get(key, key)
    return Prompt(
        user=f"Complete this {language.title} function. Answer with the whole function, and all that it needs, in one "
        f"code block; keep its name and its parameters.\n\n```{word}\n{{question}}\n```"
    )


def _question(bench: BenchmarkConfig, prompt: str, gold: str, about: Mapping[str, Any]) -> Question:
    own = _style(about["language"])
    completion = resolve_prompt(bench, own).completion
    asked = put(prompt if completion else prompt.strip(), bench, own)
    stop = asked["stop"] or tuple(about["stop"])
    if completion:
        asked["stop"] = stop
    return Question("", gold=gold, about={**about, "stop": list(stop)}, **asked)


def _texts(row: Mapping[str, Any], *names: str) -> list[str]:
    for name in names:
        if not isinstance(row[name], str):
            raise ValueError(f"its `{name}` must be text, and is {row[name]!r}")
    return [row[name] for name in names]


def _human_eval(bench: BenchmarkConfig, row: Mapping[str, Any]) -> Question:
    prompt, name, solution, tests = _texts(row, "prompt", "entry_point", "canonical_solution", "test")
    job = {"entry_point": name, "tests": tests, "call_check": True}
    return _question(bench, prompt, solution, _about("py", prompt, name, tests, _STOP, job))


def _human_eval_plus(bench: BenchmarkConfig, row: Mapping[str, Any]) -> Question:
    if "base_input" not in row:  # as the hub has it: base and plus inputs, and what they give, stand in the test
        (tests,) = _texts(row, "test")
        return _human_eval(bench, {**row, "test": tests.replace(*_ROOT_CHECK)})
    prompt, name, solution = _texts(row, "prompt", "entry_point", "canonical_solution")
    job = {
        "entry_point": name, "reference": prompt + solution, "atol": float(row["atol"]),
        "base_input": row["base_input"], "plus_input": row["plus_input"],
    }  # fmt: skip
    for kind in ("base_input", "plus_input"):
        if not isinstance(job[kind], list) or not all(isinstance(each, list) for each in job[kind]):
            raise ValueError(f"its `{kind}` must be a list of lists of arguments")
    return _question(bench, prompt, solution, _about("py", prompt, name, str(row.get("test") or ""), _STOP, job))


def _multipl_e(bench: BenchmarkConfig, row: Mapping[str, Any]) -> Question:
    key, prompt, tests = _texts(row, "language", "prompt", "tests")
    if key not in LANGUAGES:
        raise ValueError(f"its `language` is {key!r}; there are {', '.join(LANGUAGES)}")
    if bench.split not in (None, key):
        raise ValueError(f"its `language` is {key!r}, and the benchmark's split {bench.split!r}")
    told(LANGUAGES[key], tests, "")
    if LANGUAGES[key].wrapper and CLASS not in prompt:
        raise ValueError(f"its `prompt` has no {CLASS!r}")
    name = _function_name(key, prompt)
    job = {"entry_point": name, "tests": tests, "call_check": False} if key == "py" else {}
    return _question(bench, prompt, "", _about(key, prompt, name, tests, row["stop_tokens"], job))


def _about(key: str, prompt: str, name: str, tests: str, stop: Sequence[str], job: Mapping[str, Any]) -> dict[str, Any]:
    """What `judge` reads; `job` is for `python_runner`."""
    return {
        "language": key, "prompt": prompt, "entry_point": name, "tests": tests, "stop": list(stop), "job": dict(job),
    }  # fmt: skip


def _function_name(key: str, prompt: str) -> str:
    """The function that the prompt ends in the middle of."""
    if key == "py":
        found = re.findall(r"^def\s+(\w+)\s*\(", prompt, re.MULTILINE)[-1:]
    else:
        found = re.findall(r"(\w+)\s*\(", prompt.rstrip().rpartition("\n")[2])[:1]
    if not found:
        raise ValueError("its `prompt` does not end with the first line of a function")
    return found[0]


def _task(
    read: Callable[[BenchmarkConfig, Mapping[str, Any]], Question],
    published: Callable[[BenchmarkConfig], Published],
    id_key: str,
    splits: Sequence[str] = (),
) -> Task:
    def load(bench: BenchmarkConfig, _: Path) -> list[Question]:
        where = published(bench) if bench.data is None else None
        return load_rows(bench, lambda row, _: read(bench, row), where, (id_key, *IDS))

    def score(answers: Sequence[Answer], scoring: Scoring) -> Scored:
        grades: list[Grade] = []
        items = [(each.text, each.question.about, each.question.completion) for each in answers]
        with open_sandbox(scoring.unsafe_exec) as sandbox:
            for grade in judge_all(items, sandbox):
                grades.append(grade)
                scoring.advance(1)
        roots = any(each.question.id == _ROOT and scoring.bench.task == "humaneval_plus" for each in answers)
        notes = {_ROOT_NOTE: roots, "programs ran without a sandbox.": sandbox.unsafe}
        return Scored(grades, notes=tuple(note for note, holds in notes.items() if holds))

    return Task(load, score, splits=tuple(splits), ready=_ready)


def _ready(questions: Sequence[Question], unsafe_exec: bool) -> None:
    require((question.about["language"] for question in questions), unsafe_exec)


def _multipl_e_published(bench: BenchmarkConfig) -> Published:
    if bench.split is None:
        raise InputError(
            f"benchmark {bench.key}: name its language, `split: KEY` with one of {', '.join(LANGUAGES)}, or give its "
            "file, `data: FILE.jsonl`"
        )
    return Published("nuprl/MultiPL-E", subset=f"humaneval-{bench.split}")


PROGRAMS = {
    "humaneval": _task(_human_eval, lambda _: Published("openai/openai_humaneval"), "task_id"),
    "humaneval_plus": _task(_human_eval_plus, lambda _: Published("evalplus/humanevalplus"), "task_id"),
    "multipl_e": _task(_multipl_e, _multipl_e_published, "name", tuple(LANGUAGES)),
}
