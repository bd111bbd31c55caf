"""Hostile answers (target F14): contained, each with its status, and everything else is scored."""

import json
import os
import resource
import socket
import time
from pathlib import Path

import pytest
from solutions import row, scores

from dft_mm.evaluate.code import languages, running
from dft_mm.evaluate.code.program import MIB, Limits, Program

HUMAN_EVAL = {
    "task_id": "Own/0", "prompt": 'def twice(x):\n    """Twice x."""\n', "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\n",
}  # fmt: skip
RIGHT = "    return 2 * x\n"

# Two statuses: which limit comes first depends on the machine.
PYTHON = {
    "fork bomb": (("failed", "timeout"),
                  "    import os\n    while True:\n        try: os.fork()\n        except OSError: pass"),
    "threads": (("failed", "timeout"), "    import threading, time\n    while True:\n"
                          "        try: threading.Thread(target=time.sleep, args=(60,)).start()\n        except: pass"),
    "endless loop": ("timeout", "    while True: pass"),
    "endless sleep": ("timeout", "    import time; time.sleep(10**6)"),
    "endless output": ("failed", "    while True: print('x' * 10**6)"),
    "memory": ("failed", "    kept = []\n    while True: kept.append(bytearray(10 << 20))"),
    "memory of many": ("failed", "    import os, time\n    for _ in range(10):\n        if os.fork() == 0:\n"
                                 "            kept = bytearray(60 << 20); time.sleep(60)\n    time.sleep(60)"),
    "disk": ("failed", "    with open('/tmp/x', 'wb') as file:\n        while True: file.write(bytes(1 << 20))"),
    "sparse file": ("failed", "    open('/tmp/x', 'wb').truncate(1 << 60)"),
    "files everywhere": (("failed", "timeout"), "    import os\n    for top, *_ in os.walk('/'):\n        try:\n"
                                   "            with open(top + '/MARK', 'w') as f: f.write('x')\n"
                                   "        except OSError: pass\n    return 0"),
    "secrets": ("failed", "    raise ValueError(open('/proc/1/environ').read() + str(__import__('os').environ))"),
    "host file": ("failed", "    return open('HOST').read()"),
    "link to it": ("failed", "    import os; os.symlink('HOST', 'l'); return open('l').read()"),
    "network": ("failed", "    import socket; socket.create_connection(('127.0.0.1', PORT), 3); return 4"),
    "kill others": ("failed", "    import os; os.kill(-1, 9)"),
    "kill the tests": ("failed", "    import os; os.kill(os.getppid(), 9); return 4"),
    "daemon": ("failed", "    import os\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
                         "            os.execv('/bin/bash', ['bash', '-c', 'while true; do sleep 1; done', 'MARK'])\n"
                         "        os._exit(0)\n    return 0"),
    "standard input": ("failed", "    return input()"),
    "exit": ("failed", "    exit(0)"),
    "os._exit": ("failed", "    import os; os._exit(0)"),
    "sys.exit while loading": ("failed", "    return 4\nimport sys; sys.exit(0)"),
    "equal to all": ("failed", "    class A:\n        def __eq__(self, other): return True\n    return A()"),
    "a number equal to all": ("failed",
                              "    class A(int):\n        def __eq__(self, other): return True\n    return A()"),
    "check of its own": ("failed", "    return 0\nimport builtins\nbuiltins.check = lambda candidate: None"),
    "atexit": ("failed", "    import atexit, os; atexit.register(os._exit, 0); return 0"),
    "recursion": ("failed", "    return twice(x)"),
    "endless recursion": (("failed", "timeout"), "    import sys; sys.setrecursionlimit(10**9); return twice(x)"),
    "verdict of its own": ("failed", "    print('\\n{\"status\": \"passed\"}\\npassed')\n    return 0"),
    "a look at the tests": ("failed", "    import os\n    for name in os.listdir('.'): print(open(name).read())\n"
                                      "    return os.open(f'/proc/{os.getppid()}/mem', 0)"),
    "endless value": ("failed", "    a = []; a.append(a); return a"),
    "huge value": (("failed", "timeout"), "    return 'x' * 10**9"),
    "huge integer": ("failed", "    return 10 ** 10**5"),
    "NUL": ("compile_error", "    return '\0'"),
    "no UTF-8": ("compile_error", "    return '\ud800'"),
    "deep nesting": (("failed", "compile_error"), "    return " + "(" * 10**4 + "x" + ")" * 10**4),
    "eval": ("failed", "    return eval(\"__import__('os').system('touch /MARK')\")"),
    "right after all": ("passed", RIGHT),
}  # fmt: skip

TWICE = "long twice(long x) {\n    return 0;\n}\n"
CPP = {
    "template bomb": (("compile_error", "timeout"),
                      "template <int N> struct A { A<N - 1> a; A<N - 2> b; A<N - 3> c[N]; };\n"
                      "template <int N, class T> struct B { B<N - 1, B<N, T>> x; B<N - 1, B<N + 1, T>> y; };\n"
                      f"B<900, int> bomb;\n{TWICE}"),
    "include of a host file": ("compile_error", f'#include "HOST"\n{TWICE}'),
    "endless include": ("compile_error", f'#include "program.cpp"\n{TWICE}'),
    "great array": (("compile_error", "failed", "timeout"), f"char a[1L << 34] = {{1}};\n{TWICE}"),
    "no assertions": ("failed", f"#undef assert\n#define assert(x) ((void)0)\n#define NDEBUG\n{TWICE}"),
    "exit before main": ("failed", f"struct A {{ A() {{ _exit(0); }} }} a;\n{TWICE}"),
    "fork bomb": ("failed", "long twice(long x) {\n    while (true) fork();\n}\n"),
    "abort": ("failed", "long twice(long x) {\n    abort();\n}\n"),
    "output without UTF-8": ("failed",
                             "long twice(long x) {\n    std::cout << \"\\xff\\0passed\" << std::endl; _exit(0);\n}\n"),
    "right after all": ("passed", "long twice(long x) {\n    return 2 * x;\n}\n"),
}  # fmt: skip


@pytest.fixture
def smaller(monkeypatch):
    """The same limits, smaller, so that the test is quick."""
    for key, wall_s in (("py", 5), ("cpp", 12)):
        limits = Limits(wall_s=wall_s, memory_bytes=400 * MIB, disk_bytes=64 * MIB)
        monkeypatch.setitem(
            languages.LANGUAGES, key, languages.Language(**{**vars(languages.LANGUAGES[key]), "limits": limits})
        )
    monkeypatch.setattr(running, "CALL_S", 2.0)


def _of_the_machine(mark):
    """Processes that carry the mark, and users that only programs have."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and mark.encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
        except OSError:
            continue
    return found


def test_hostile_answers_are_contained_and_counted(sandbox, smaller, tmp_path, monkeypatch):
    mark = f"mark{time.monotonic_ns()}"
    monkeypatch.setenv("DFT_MM_SECRET", "swordfish")
    host = tmp_path / "host.h"
    host.write_text("swordfish")
    inside = tmp_path / "evaluation"
    inside.mkdir()
    outside = {
        path: path.stat().st_mtime_ns for path in (Path("/"), Path("/usr"), Path("/etc"), Path("/tmp"), tmp_path)
    }
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def filled(text):
            known = {"MARK": mark, "HOST": str(host), "PORT": str(server.getsockname()[1])}
            for word, value in known.items():
                text = text.replace(word, value)
            return text

        files = {"py": HUMAN_EVAL, "cpp": row("cpp")}
        for name, each in files.items():
            (inside / f"{name}.jsonl").write_text(json.dumps(each) + "\n")
        most = max(len(PYTHON), len(CPP))
        texts = {name: [filled(text) for _, text in each.values()] for name, each in (("py", PYTHON), ("cpp", CPP))}
        texts["cpp"] = [f"```cpp\n{text}```" for text in texts["cpp"]]
        answers = {
            "py": {"Own/0": texts["py"]},
            "cpp": {"twice": texts["cpp"] + [""] * (most - len(CPP))},
        }
        benchmarks = [
            {"task": "humaneval", "name": "py", "data": str(inside / "py.jsonl")},
            {"task": "multipl_e", "name": "cpp", "data": str(inside / "cpp.jsonl")},
        ]
        begin = time.monotonic()
        lines, summary = scores(benchmarks, answers, inside / "out")
        took = time.monotonic() - begin
        with pytest.raises(BlockingIOError):
            server.accept()

    for name, key, each in (("py", "Own/0", PYTHON), ("cpp", "twice", CPP)):
        for number, (what, (wanted, _)) in enumerate(each.items()):
            line = lines[name, key, number]
            assert line["status"] in ((wanted,) if isinstance(wanted, str) else wanted), f"{what}: {line}"
            assert "swordfish" not in line["detail"], what
    assert summary["benchmarks"]["py"]["status"]["passed"] == 1
    assert "sandbox_error" not in summary["benchmarks"]["py"]["status"] | summary["benchmarks"]["cpp"]["status"]
    assert _of_the_machine(mark) == []
    assert host.read_text() == "swordfish"
    changed = {path for path, then in outside.items() if path.stat().st_mtime_ns != then}
    assert changed <= {Path("/tmp"), tmp_path}  # other programs use /tmp, too
    assert not [path for path in Path("/tmp").iterdir() if mark in path.name]
    assert took < 120
    assert os.path.getsize(inside / "out" / "scores.jsonl") < 2 * MIB  # noqa: PTH202


@pytest.mark.long
def test_ten_gigabytes_of_output_and_of_memory_take_little_of_ours(sandbox):
    """At the real limits."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    talk = "import os\nblock = b'x' * (1 << 20)\nfor _ in range(10 << 10): os.write(1, block)"
    hog = "kept = []\nwhile True: kept.append(bytearray(100 << 20))"
    for code, stopped in ((talk, "output"), (hog, None)):
        result = sandbox.run(Program({"p.py": code.encode()}, [running.python_home()[0], "p.py"]))
        assert result.stopped == stopped
        assert result.status != 0
        assert result.seconds < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
