"""Code benchmarks, from rows and answers to verdicts."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from asked import load_questions
from solutions import ADD, LENGTH, ROWS, body, right, row, scores, whole

from dft_mm.__main__ import main
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.code import toolchain
from dft_mm.evaluate.code.languages import LANGUAGES
from dft_mm.evaluate.task import Answer, Scoring
from dft_mm.evaluate.tasks.registry import TASKS

HUMAN_EVAL = {
    "task_id": "Own/0", "prompt": 'def twice(x):\n    """Twice x."""\n', "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}  # fmt: skip
PLUS = {
    "task_id": "Own/1", "prompt": 'def half(x):\n    """Half of x."""\n', "entry_point": "half", "atol": 0,
    "canonical_solution": "    return x / 2\n", "base_input": [[2], [3]], "plus_input": [[0.2], [-7], [1e300]],
}  # fmt: skip

# Ways past the tests of a language that trusts an exit status, or that lets programs change what asserts.
PAST_THE_TESTS = {
    "py": ["    import os; os._exit(0)\n", "    raise SystemExit(0)\n"],
    "cpp": ["    exit(0);\n", "```\n#undef assert\n#define assert(x) ((void)0)\nlong twice(long x) { return 0; }\n```"],
    "java": ["    System.exit(0); return 0;\n"],
    "php": ["    exit(0);\n}\n"],
    "ts": ["    throw process.exit(0);\n}\ndeclare var process: any;\n",
           "```\n(require('node:assert') as any).deepEqual = () => {};\nfunction twice(x: number) { return 0; }\n```"],
    "cs": ["    Environment.Exit(0); return 0;\n", "    Debug.Listeners.Clear(); Trace.Listeners.Clear(); return 0;\n"],
    "sh": ["```\ntrap 'exit 0' EXIT\ntwice() {\n    echo 1\n}\n```", "    kill -9 $$\n"],
    "js": ["    process.exit(0);\n}\n",
           "```\nrequire('node:assert').deepEqual = () => {};\nfunction twice(x) { return 0; }\n```"],
}  # fmt: skip
NO_CODE_OF_ITS_LANGUAGE = {"sh": ("failed", "    if then {{ (\n"), "php": ("failed", "    return ((;\n}\n")}


@pytest.fixture(scope="session")
def runs(sandbox_works):
    """By language: why it does not run here, or None."""
    with toolchain.open_sandbox() as sandbox:
        keys = list(LANGUAGES)
        return dict(zip(keys, sandbox.map(lambda key: toolchain.cannot_run(key, sandbox), keys)))


@pytest.fixture(scope="session")
def sandbox_works():
    try:
        with toolchain.open_sandbox():
            return
    except InputError as error:
        pytest.skip(str(error))


def _need(runs, key):
    if runs[key] is not None:
        pytest.skip(f"{LANGUAGES[key].title}: {runs[key]}")


def _write(path, *rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return str(path)


def _answers(key):
    """Answers to our own problem, and what each should come to."""
    status, nonsense = NO_CODE_OF_ITS_LANGUAGE.get(key, ("compile_error", "    return ((;\n"))
    return [
        ("passed", right(key)),
        ("passed", whole(key, right(key))),
        ("failed", right(key).replace("2 *", "3 *")),
        *(("failed", text) for text in PAST_THE_TESTS[key]),
        *([("passed", ROWS[key][0] + right(key) + ROWS[key][1])] if key in ("js", "sh") else []),  # all repeated
        (status, nonsense) if key != "js" else ("failed", nonsense),
        ("no_code", "I am sorry."),
    ]


@pytest.fixture(scope="session")
def own(runs, tmp_path_factory):
    """Scores of one evaluation in all languages that run here."""
    folder = tmp_path_factory.mktemp("own")
    keys = [key for key in LANGUAGES if runs[key] is None]
    benchmarks = [{"task": "multipl_e", "name": key, "data": _write(folder / f"{key}.jsonl", row(key))} for key in keys]
    most = max(len(_answers(key)) for key in keys)
    padded = {key: [text for _, text in _answers(key)] for key in keys}
    answers = {key: {"twice": texts + [""] * (most - len(texts))} for key, texts in padded.items()}
    return scores(benchmarks, answers, folder / "out")


@pytest.mark.parametrize("key", list(LANGUAGES))
def test_a_language_whose_tools_are_here_runs(runs, key):
    tools = [words[0] for words in (LANGUAGES[key].compile, LANGUAGES[key].run) if words and words[0][0] != "."]
    if not all(map(shutil.which, tools)):
        pytest.skip(f"no {' or no '.join(tools)}")
    assert runs[key] is None


@pytest.mark.parametrize("key", list(LANGUAGES))
def test_right_passes_and_wrong_fails(own, runs, key):
    _need(runs, key)
    lines, _ = own
    found = [lines[key, "twice", number] for number in range(len(_answers(key)))]
    assert [line["status"] for line in found] == [status for status, _ in _answers(key)], found
    assert all(line["detail"] for line in found if line["status"] in ("failed", "compile_error"))
    assert "twice" in found[0]["extracted"].lower()
    assert found[-1]["extracted"] is None


def test_statuses_and_metrics_stand_in_the_results(own, runs):
    _need(runs, "py")
    entry = own[1]["benchmarks"]["py"]
    assert entry["status"]["passed"] == 2
    assert set(entry["status"]) == {"passed", "failed", "compile_error", "no_code"}
    assert entry["metrics"]["pass@1"]["value"] == pytest.approx(2 / entry["samples"])


@pytest.mark.parametrize("key", list(LANGUAGES))
def test_solutions_of_published_problems(shared, runs, key, tmp_path):
    _need(runs, key)
    file = shared / "data" / "multipl_e" / f"humaneval-{key}.jsonl"
    solutions = {"HumanEval_53_add": ADD[key], "HumanEval_23_strlen": LENGTH.get(key)}
    known = {name: text for name, text in solutions.items() if text is not None}
    rows = [each for each in map(json.loads, file.read_text().splitlines()) if each["name"] in known]
    wrong = f"```\n{ADD[key].replace('+', '-')}\n```"
    benchmarks = [{"task": "multipl_e", "name": "b", "data": _write(tmp_path / "rows.jsonl", *rows)}]
    answers = {name: [body(text), wrong if name == "HumanEval_53_add" else ""] for name, text in known.items()}
    lines, _ = scores(benchmarks, {"b": answers}, tmp_path / "out")
    assert {line["status"] for (_, _, sample), line in lines.items() if sample == 0} == {"passed"}
    assert lines["b", "HumanEval_53_add", 1]["status"] == "failed"


def _score(task, file, text_of, **entry):
    bench = BenchmarkConfig(task=task, data=str(file), **entry)
    questions = TASKS[task].load(bench, Path("unused"))
    answers = [Answer(each, 0, text_of(each), "stop") for each in questions]
    grades = TASKS[task].score(answers, Scoring(bench, Path("unused"))).grades
    return {each.id: grade for each, grade in zip(questions, grades, strict=True)}


def _not_passed(grades):
    return {key: (grade.status, grade.detail) for key, grade in grades.items() if grade.status != "passed"}


def test_canonical_solutions_of_humaneval_pass(shared, sandbox_works):
    grades = _score("humaneval", shared / "data/humaneval/HumanEval.jsonl", lambda question: question.gold)
    assert len(grades) == 164
    assert _not_passed(grades) == {}


@pytest.mark.parametrize(
    ("name", "number", "limit"),
    [
        ("HumanEvalPlus-Mini.jsonl", 40, 40),
        pytest.param("HumanEvalPlus-Mini.jsonl", 120, None, marks=pytest.mark.long),
        pytest.param("HumanEvalPlus.jsonl", 30, None, marks=pytest.mark.long),
    ],
)
def test_canonical_solutions_of_humaneval_plus_pass(shared, sandbox_works, name, number, limit):
    """HumanEval/32 too, whose published check is broken: ours takes any root."""

    def chat(question):
        return f"```python\n{question.about['prompt']}{question.gold}\n```"

    grades = _score("humaneval_plus", shared / "data/humaneval_plus" / name, chat, limit=limit)
    assert len(grades) == number
    assert _not_passed(grades) == {}


def test_empty_completions_pass_nowhere(shared, sandbox_works):
    file = shared / "data/humaneval/HumanEval.jsonl"
    assert {grade.status for grade in _score("humaneval", file, lambda _: "", limit=20).values()} == {"no_code"}
    grades = _score("humaneval", file, lambda _: "    pass", limit=20)
    assert {grade.status for grade in grades.values()} == {"failed"}


def test_the_harness_own_example_gives_its_pass_at_1(shared, sandbox_works, tmp_path):
    data = shared / "data" / "humaneval"
    samples = [json.loads(line)["completion"] for line in (data / "example_samples.jsonl").read_text().splitlines()]
    benchmarks = [{"task": "humaneval", "data": str(data / "example_problem.jsonl")}]
    lines, summary = scores(benchmarks, {"humaneval": {"test/0": samples}}, tmp_path / "out")
    assert summary["benchmarks"]["humaneval"]["metrics"]["pass@1"]["value"] == pytest.approx(0.5)
    assert [lines["humaneval", "test/0", n]["status"] for n in range(6)] == [
        "failed", "timeout", "failed", "passed", "passed", "passed",
    ]  # fmt: skip


class TestPlus:
    @pytest.mark.parametrize(
        ("text", "status", "detail"),
        [
            ("    return x * 0.5", "passed", ""),
            ("    return x / 2 + 1e-9", "passed", ""),
            ("    return x // 2", "failed", "base input 1: half(3,) is 1, not 1.5"),
            ("    return x / 2 if x > 0 else 0", "failed", "plus input 1: half(-7,) is 0, not -3.5"),
            ("    return [x / 2][x < 0]", "failed", "plus input 1: IndexError: list index out of range"),
            ("    return str(x / 2)", "failed", "base input 0: half(2,) is '1.0', not 1.0"),
        ],
    )
    def test_base_and_plus_inputs_must_pass(self, sandbox_works, tmp_path, text, status, detail):
        grade = _score("humaneval_plus", _write(tmp_path / "r.jsonl", PLUS), lambda _: text)["Own/1"]
        assert (grade.status, grade.detail) == (status, detail)

    def test_any_root_is_one(self, sandbox_works, tmp_path):
        zero = PLUS | {
            "entry_point": "find_zero", "atol": 1e-4, "prompt": 'def find_zero(xs):\n    """A root."""\n',
            "canonical_solution": "    return 3.0\n", "base_input": [[[6, -5, 1]]], "plus_input": [],
        }  # fmt: skip
        file = _write(tmp_path / "r.jsonl", zero)
        grades = [_score("humaneval_plus", file, lambda _, n=n: f"    return {n}")["Own/1"] for n in (2, 3.00001, 4)]
        assert [grade.status for grade in grades] == ["passed", "passed", "failed"]

    def test_the_hubs_check_of_a_root_is_put_right(self, sandbox_works, tmp_path):
        test = (
            "def _poly(xs, x): return sum(c * x**i for i, c in enumerate(xs))\n"
            "def check(candidate):\n"
            "    for i, inp in enumerate([[[6, -5, 1]]]): assert _poly(*candidate(*inp), inp) <= 0.0001\n"
        )
        hub = {key: HUMAN_EVAL[key] for key in ("canonical_solution",)} | {
            "task_id": "HumanEval/32", "prompt": 'def find_zero(xs):\n    """A root."""\n', "entry_point": "find_zero",
            "test": test,
        }  # fmt: skip
        file = _write(tmp_path / "r.jsonl", hub)
        texts = [f"    return {value}" for value in ("2.0", "3", "2.5", "float('inf')", "'2'")]
        found = [_score("humaneval_plus", file, lambda _, text=text: text)["HumanEval/32"].status for text in texts]
        assert found == ["passed", "passed", "failed", "failed", "failed"]
        _, summary = scores([{"task": "humaneval_plus", "data": file}], {"humaneval_plus": {"HumanEval/32": texts[:1]}},
                            tmp_path / "out")  # fmt: skip
        assert "passes with any root" in summary["benchmarks"]["humaneval_plus"]["notes"][0]

    def test_a_canonical_solution_that_fails_is_no_fault_of_the_answer(self, sandbox_works, tmp_path):
        file = _write(tmp_path / "r.jsonl", PLUS | {"canonical_solution": "    return x / 0\n"})
        grade = _score("humaneval_plus", file, lambda _: "    return x / 2")["Own/1"]
        assert grade.status == "sandbox_error"
        assert "the canonical solution: ZeroDivisionError" in grade.detail

    def test_rows_of_the_hub_bring_a_test_that_wants_numpy(self, sandbox_works, tmp_path):
        test = (
            "import numpy as np\ndef is_floats(x):\n    return isinstance(x, float) or isinstance(x, np.ndarray)\n"
            "def assertion(out, exp, atol):\n    exact = out == exp\n    if atol == 0 and is_floats(exp): atol = 1e-6\n"
            "    if not exact and atol != 0: assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
            "    else: assert exact\n"
            "def check(candidate):\n"
            "    for inp, exp in zip([[2], [3]], [1.0, 1.5]): assertion(candidate(*inp), exp, 0)\n"
        )
        hub = {key: PLUS[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution")} | {"test": test}
        file = _write(tmp_path / "r.jsonl", hub)
        texts = ["    return x / 2 + 1e-9", "    return x / 2 + 1e-3"]
        found = [_score("humaneval_plus", file, lambda _, text=text: text)["Own/1"].status for text in texts]
        assert found == ["passed", "failed"]


def test_chat_shows_the_function_and_completion_is_the_prompt_itself(tmp_path):
    file = _write(tmp_path / "r.jsonl", HUMAN_EVAL)
    chat = load_questions("humaneval", file)[0]
    assert chat.id == "Own/0"
    assert f"```python\n{HUMAN_EVAL['prompt'].strip()}\n```" in chat.text
    assert (chat.completion, chat.stop) == (False, ())
    completion = load_questions("humaneval", file, prompt="code_completion")[0]
    assert completion.text == HUMAN_EVAL["prompt"]
    assert completion.completion
    assert "\ndef " in completion.stop
    file = _write(tmp_path / "cpp.jsonl", row("cpp"))
    assert load_questions("multipl_e", file, prompt="code_completion")[0].stop == ("\n}",)
    mine = {"user": "{question}", "completion": True, "stop": ["END"]}
    assert load_questions("multipl_e", file, prompt=mine)[0].stop == ("END",)
    assert "C++" in load_questions("multipl_e", file)[0].text


def test_a_completion_that_goes_on_is_cut(sandbox_works, tmp_path):
    file = _write(tmp_path / "r.jsonl", HUMAN_EVAL)
    text = "    return 2 * x\n\ndef check(candidate):\n    pass\n\nprint(twice('x')\n"
    grades = _score("humaneval", file, lambda _: text, prompt="code_completion")
    assert grades["Own/0"].status == "passed"


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("humaneval", {"test": None}, r"r\.jsonl:1: .*`test` must be text"),
        ("humaneval_plus", {"base_input": [1], "plus_input": [], "atol": 0}, "`base_input` must be a list of lists"),
        ("humaneval_plus", {"base_input": [[1]], "plus_input": []}, "needs the field 'atol'"),
        ("multipl_e", {}, "needs the field 'language'"),
        ("multipl_e", row("cpp") | {"language": "cobol"}, "its `language` is 'cobol'; there are py, cpp"),
        ("multipl_e", row("cpp") | {"tests": "assert(true);"}, "its `tests` are not those of a program in C"),
        ("multipl_e", row("java") | {"prompt": "long twice(long x) {\n"}, "has no 'class Problem {'"),
        ("multipl_e", row("js") | {"prompt": "//Twice\n"}, "does not end with the first line of a function"),
    ],
)
def test_rows_that_are_not_the_tasks_name_file_line_and_field(tmp_path, task, change, message):
    with pytest.raises(InputError, match=message):
        load_questions(task, _write(tmp_path / "r.jsonl", HUMAN_EVAL | change))


def test_multipl_e_needs_a_language_and_keeps_to_it(tmp_path):
    with pytest.raises(InputError, match="name its language, `split: KEY` with one of py, cpp, java"):
        TASKS["multipl_e"].load(BenchmarkConfig(task="multipl_e"), Path("unused"))
    with pytest.raises(InputError, match="its `language` is 'cpp', and the benchmark's split 'js'"):
        load_questions("multipl_e", _write(tmp_path / "r.jsonl", row("cpp")), split="js")


def test_a_language_that_cannot_run_is_refused_before_anything_is_generated(sandbox_works, tmp_path, monkeypatch):
    absent = LANGUAGES["js"].__class__(**{**vars(LANGUAGES["js"]), "run": ("nodejs-that-is-not-here",)})
    monkeypatch.setitem(LANGUAGES, "js", absent)
    benchmarks = [{"task": "multipl_e", "data": _write(tmp_path / "r.jsonl", row("js"))}]
    with pytest.raises(InputError, match=r"programs in JavaScript cannot run here .*apt-get install nodejs.*doctor"):
        scores(benchmarks, {"multipl_e": {"twice": [right("js")]}}, tmp_path / "out")
    assert not (tmp_path / "out" / "generations.jsonl").exists()


def test_the_command_line_refuses_without_a_sandbox_and_takes_unsafe_exec(tmp_path, monkeypatch, capsys):
    suite = {"name": "s", "benchmarks": [{"task": "humaneval", "data": _write(tmp_path / "r.jsonl", HUMAN_EVAL)}]}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    (tmp_path / "config.json").write_text("{}")
    _write(tmp_path / "a.jsonl", {"benchmark": "humaneval", "id": "Own/0", "sample": 0, "text": "    return 2 * x"})
    words = ["eval", "suite.yaml", "--model", ".", "--out", "out", "--replay", "a.jsonl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 2
    assert "bwrap is not installed" in capsys.readouterr().err
    assert main([*words, "--unsafe-exec"]) == 0
    assert "| humaneval | avg@1 | 100.0 |" in (text := (tmp_path / "out" / "results.md").read_text())
    assert "programs ran without a sandbox" in text


def _bench(repo):
    spec = importlib.util.spec_from_file_location("graded_programs", repo / "scripts/bench/graded_programs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Its only input that fails at the harness (57, exponential time) is not among those of the Mini file.
NOT_IN_THE_FILE = {"humaneval_plus_mini": {"HumanEval/63"}}


@pytest.mark.parametrize("limit", [6, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus_mini", "humaneval_plus", "cpp", "js", "php", "sh"])
def test_verdicts_are_those_of_the_benchmarks_own_harness(repo, shared, runs, name, limit, tmp_path, monkeypatch):
    _need(runs, name if name in LANGUAGES else "py")
    monkeypatch.syspath_prepend(str(repo / "scripts" / "bench"))
    import sys

    module = _bench(repo)
    sys.modules["graded_programs"] = module
    number, differ = module.compare(name, shared / "data", tmp_path, limit)
    assert number == (limit or {"humaneval": 164, "humaneval_plus_mini": 120, "humaneval_plus": 30}.get(name, 47))
    assert {each.id for each in differ} <= NOT_IN_THE_FILE.get(name, set())


def test_our_rows_cover_all_languages():
    assert set(ROWS) == set(LANGUAGES) == set(ADD)
