"""Solutions of two MultiPL-E problems in all languages, and a way to run answers through a whole evaluation."""

import json

from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite

SUFFIX = "HumanEval_23_strlen"
LENGTH = {
    "py": "def strlen(string: str) -> int:\n    return len(string)\n",
    "cpp": "long string_length(std::string string) {\n    return string.length();\n}\n",
    "java": "    public static long strlen(String string) {\n        return string.length();\n    }\n",
    "ts": "function strlen(string: string): number {\n    return string.length;\n}\n",
    "cs": "    public static long Strlen(string str) {\n        return str.Length;\n    }\n",
    "sh": 'strlen() {\n    echo "${#1}"\n}\n',
    "js": "function strlen(string){\n    return string.length;\n}\n",
}
"""HumanEval_23_strlen. In PHP this name is taken by PHP itself."""

ADD = {
    "py": "def add(x: int, y: int) -> int:\n    return x + y\n",
    "cpp": "long add(long x, long y) {\n    return x + y;\n}\n",
    "java": "    public static long add(long x, long y) {\n        return x + y;\n    }\n",
    "php": "function add($x, $y) {\n    return $x + $y;\n}\n",
    "ts": "function add(x: number, y: number): number {\n    return x + y;\n}\n",
    "cs": "    public static long Add(long x, long y) {\n        return x + y;\n    }\n",
    "sh": "add() {\n    echo $(($1 + $2))\n}\n",
    "js": "function add(x, y){\n    return x + y;\n}\n",
}
"""HumanEval_53_add."""


def body(function: str) -> str:
    """What a model goes on writing behind the function's first line."""
    return function.split("\n", 1)[1]


def scores(benchmarks, answers, out, **options):
    """Lines of scores.jsonl by (benchmark, id, sample), and the summary, of {NAME: {ID: [TEXT, …]}}."""
    samples = max(len(texts) for each in answers.values() for texts in each.values())
    sampling = {"samples": samples, "temperature": 1.0 if samples > 1 else 0.0}
    suite = Suite.model_validate({"name": "programs", "benchmarks": benchmarks, "sampling": sampling})
    replay = out.with_suffix(".replay.jsonl")
    lines = [
        {"benchmark": name, "id": key, "sample": sample, "text": text}
        for name, each in answers.items()
        for key, texts in each.items()
        for sample, text in enumerate(texts)
    ]
    replay.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = out.with_suffix(".model")
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    summary = evaluate(suite, model, out, replay=replay, **options)
    found = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return {(line["benchmark"], line["id"], line["sample"]): line for line in found}, summary


ROWS = {
    "py": (
        'def twice(x: int) -> int:\n    """ Twice x.\n    >>> twice(2)\n    4\n    """\n',
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n\n"
        "def test_check():\n    check(twice)\n\ntest_check()\n",
    ),
    "cpp": (
        "#include<assert.h>\n#include<bits/stdc++.h>\n// Twice x.\nlong twice(long x) {\n",
        "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((2)) == (4));\n"
        "    assert(candidate((-1)) == (-2));\n}\n",
    ),
    "java": (
        "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    // Twice x.\n"
        "    public static long twice(long x) {\n",
        "    }\n    public static void main(String[] args) {\n    assert(twice((2l)) == (4l));\n"
        "    assert(twice((-1l)) == (-2l));\n    }\n\n}\n",
    ),
    "php": (
        "<?php\n// Twice x.\nfunction twice($x) {\n",
        "function candidate(...$args) {\n    return twice(...$args);\n}\n\nfunction test(): void {\n"
        '    if (candidate(2) !== 4) { throw new Exception("Test failed!"); }\n'
        '    if (candidate(-1) !== -2) { throw new Exception("Test failed!"); }\n}\n\ntest();',
    ),
    "ts": (
        "//Twice x.\nfunction twice(x: number): number {\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n"
        "  let candidate = twice;\n  assert.deepEqual(candidate(2),4);\n  assert.deepEqual(candidate(-1),-2);\n"
        "}\n\ntest();",
    ),
    "cs": (
        "using System;\nusing System.Diagnostics;\nusing System.Numerics;\nclass Problem {\n    // Twice x.\n"
        "    public static long Twice(long x) {\n",
        "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Twice((2L)) == (4L));\n"
        "    Debug.Assert(Twice((-1L)) == (-2L));\n    }\n\n}\n",
    ),
    "sh": (
        "#!/bin/bash\n# Twice x.\n#\n# $1 is an integer\ntwice() {\n",
        '}\n\ncandidate() {\n    twice "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "2") = "4" ]]\n'
        '    [[ $(candidate "-1") = "-2" ]]\n}\n\nrun_test',
    ),
    "js": (
        "//Twice x.\nfunction twice(x){\n",
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n"
        "  assert.deepEqual(candidate(2),4);\n  assert.deepEqual(candidate(-1),-2);\n}\n\ntest();",
    ),
}  # fmt: skip
"""Prompt and tests of a problem of our own, in MultiPL-E's form: twice(2) is 4 and twice(-1) is -2."""

_STOP = {
    "py": ["\ndef", "\n#", "\nif", "\nclass"], "cpp": ["\n}"], "sh": ["\n}"],
    "java": ["\n    }\n"], "cs": ["\n    }\n"],
}  # fmt: skip


def row(key: str) -> dict[str, object]:
    prompt, tests = ROWS[key]
    stop = _STOP.get(key, ["\nfunction ", "\n//"])
    return {"name": "twice", "language": key, "prompt": prompt, "tests": tests, "stop_tokens": stop}


ONLY_BODY = {"py": "    return 2 * x\n", "php": "    return 2 * $x;\n}\n", "sh": "    echo $((2 * $1))\n"}
"""A right body; of the others it is `return 2 * x;`, with the brace where the tests bring none."""

CLOSED = {"js", "ts", "php"}
"""Whose completions bring the function's last brace."""


def right(key: str) -> str:
    closing = "}\n" if key in CLOSED else ""
    return ONLY_BODY.get(key, f"    return 2 * x;\n{closing}")


def first_line(key: str) -> str:
    return "def twice(x):" if key == "py" else ROWS[key][0].rstrip().split("\n")[-1]


def whole(key: str, text: str) -> str:
    """The whole function in a fenced block, with a body that a completion would have."""
    closing = "" if key in CLOSED or key == "py" else "}\n"
    return f"Of course:\n\n```\n{first_line(key)}\n{text}{closing}```\nDone."
