"""The languages of MultiPL-E as data: how a program is compiled and run, and how its tests tell that they have ended.

The tests' end prints a line that the program cannot know: half of it stands in the source, half in a file beside it.
`{end}` is the first half. What the tests need is put behind the reach of the program before them: C++ reads assert.h
again, C# asserts by a class of ours (Debug.Assert only tells listeners), and Node's `assert` is frozen at the start.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dft_mm.evaluate.code.program import GIB, Limits

SECRET = "end.txt"
_JAVATUPLES = "/usr/share/java/javatuples.jar"
# Fewer threads than a machine with many cores would have; they count as processes.
_JVM = ("-XX:+UseSerialGC", "-XX:ActiveProcessorCount=2", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xmx3g")
_INTERPRETED = Limits()
_COMPILED = Limits(wall_s=40.0)
_NODE = Limits(memory_bytes=4 * GIB, address_space=False)
_MACHINE = Limits(wall_s=40.0, memory_bytes=4 * GIB, address_space=False)
_BRACES = r"\s{0,9}\([^;{}]{0,2000}\{"
_FREEZE = b'Object.freeze(require("node:assert")); Object.freeze(require("node:assert").strict);\n'


@dataclass(frozen=True)
class Language:
    title: str
    source: str
    """Name of its source file."""
    run: Sequence[str]
    fences: frozenset[str]
    """Words that a fenced block of it may carry."""
    before: str
    """Pattern of what stands on its line before the name of a function that is defined."""
    behind: str
    """Pattern of what follows that name."""
    end: Sequence[tuple[str, str]]
    """Substitutions in the trusted tests, each of which must find its place."""
    hello: str
    """A whole program that uses what the tests use, ends well and has `{end}` of its own."""
    packages: str
    """Of Debian."""
    compile: Sequence[str] = ()
    limits: Limits = _INTERPRETED
    files: dict[str, bytes] = field(default_factory=dict)
    """More files beside its source."""
    comment: str = "//"
    main: str | None = None
    """Pattern of the start of a main function, which the tests bring themselves."""
    wrapper: bool = False
    """Functions are members of a class."""


def _node(title: str, source: str, script: str, fences: set[str], **more: object) -> Language:
    return Language(
        title,
        source,
        ("node", "--require", "./freeze.cjs", script),
        frozenset(fences),
        r"\s*(?:export\s+)?(?:default\s+)?(?:async\s+)?(?:function\s*\*?|const|let|var)\s+",
        r"\b",
        [(r"\Z", '\nconsole.log("\\n{end}" + require("node:fs").readFileSync("end.txt", "utf8"));\n')],
        files={"freeze.cjs": _FREEZE},
        **more,  # type: ignore[arg-type]
    )


_JAVA_END = (
    'try {{ System.out.println("\\n{end}" + new java.util.Scanner(new java.io.File("end.txt")).nextLine()); }}\n'
    "    catch (java.io.IOException error) {{ throw new RuntimeException(error); }}\n"
)
_TYPED = r"\s*(?!return\b|else\b|throw\b|new\b)"
_MEMBER = (_TYPED + r"\w[\w<>\[\],.? \t]*\s", _BRACES)
_END_OF_CLASS = r"(?=[ \t]*\}\s*\}\s*\Z)"

LANGUAGES: dict[str, Language] = {
    "py": Language(
        "Python", "program.py", (), frozenset({"py", "python", "python3"}),
        r"\s*(?:async\s+)?def\s+", r"\s{0,9}\(", [], "", "python3", comment="#",
    ),
    "cpp": Language(
        "C++", "program.cpp", ("./program",), frozenset({"cpp", "c++", "cc", "c"}),
        _TYPED + r"\w[\w:<>,&* \t]*[\s&*]", _BRACES,
        [
            (r"(?m)^int main\(\) \{", "#undef assert\n#undef NDEBUG\n#include <assert.h>\nint main() {{"),
            (
                r"(?=\}\s*\Z)",
                '    {{ std::ifstream file("end.txt"); std::string rest; std::getline(file, rest);\n'
                '    std::cout << std::endl << "{end}" << rest << std::endl; }}\n',
            ),
        ],
        "#include<assert.h>\n#include<bits/stdc++.h>\nint main() {\n    assert(true);\n}\n", "g++",
        compile=("g++", "-std=c++17", "-w", "-o", "program", "program.cpp"), limits=_COMPILED,
        main=r"^[ \t]*(?:int|void|auto)\s+main\s*\(",
    ),
    "java": Language(
        "Java", "Problem.java", ("java", *_JVM, "-ea", "-cp", f"{_JAVATUPLES}:.", "Problem"),
        frozenset({"java"}), *_MEMBER, [(_END_OF_CLASS, f"    {_JAVA_END}")],
        "import org.javatuples.*;\nclass Problem {\n    public static void main(String[] args) {\n"
        "    assert(Pair.with(1, 2).getValue0() == 1);\n    boolean on = false; assert on = true;\n"
        '    if (!on) throw new RuntimeException("assertions are off");\n    }\n\n}\n',
        "default-jdk-headless libjavatuples-java",
        compile=("javac", *(f"-J{word}" for word in _JVM), "-nowarn", "-XDsuppressNotes", "-encoding", "UTF8",
                 "-cp", _JAVATUPLES, "Problem.java"),
        limits=_MACHINE, main=r"^[ \t]*public\s+static\s+void\s+main\s*\(", wrapper=True,
    ),
    "php": Language(
        "PHP", "program.php", ("php", "-d", "memory_limit=-1", "program.php"), frozenset({"php"}),
        r"\s*function\s+&?\s*", r"\s{0,9}\(",
        [(r"\Z", '\necho "\\n{end}", file_get_contents("end.txt"), "\\n";\n')], "<?php\n", "php-cli",
    ),
    "ts": _node(
        "TypeScript", "program.ts", "program.js", {"ts", "typescript"},
        hello="declare var require: any;\nconst assert = require('node:assert');\nassert.deepEqual([1],[1]);\n",
        packages="nodejs node-typescript",
        compile=("tsc", "--target", "es2022", "--module", "commonjs", "--pretty", "false", "--skipLibCheck",
                 "program.ts"),
        limits=_MACHINE,
    ),
    "cs": Language(
        "C#", "program.cs", ("mono", "--debug", "program.exe"), frozenset({"cs", "csharp", "c#"}), *_MEMBER,
        [
            (r"Debug\.Assert\(", "DftMmTests.Assert("),
            (_END_OF_CLASS, '    Console.WriteLine("\\n{end}" + System.IO.File.ReadAllText("end.txt"));\n'),
            (
                r"\Z",
                "\nstatic class DftMmTests {{ public static void Assert(bool holds) "
                '{{ if (!holds) throw new Exception("assertion failed"); }} }}\n',
            ),
        ],
        "using System;\nusing System.Numerics;\nclass Problem {\n    public static void Main(string[] args) {\n"
        "    Debug.Assert(BigInteger.One == 1);\n    }\n\n}\n",
        "mono-mcs mono-runtime libmono-system-numerics4.0-cil",
        compile=("mcs", "-debug", "-d:DEBUG", "-warn:0", "-r:System.Numerics.dll", "-out:program.exe", "program.cs"),
        limits=_MACHINE, main=r"^[ \t]*(?:public\s+|private\s+)?static\s+(?:async\s+)?(?:void|int|Task)\s+Main\s*\(",
        wrapper=True,
    ),
    "sh": Language(
        "Bash", "program.sh", ("/bin/bash", "program.sh"), frozenset({"sh", "bash", "shell"}),
        r"\s*(?:function\s+)?", r"\s{0,9}(?:\(\s{0,9}\))?\s{0,99}\{",
        [(r"\Z", "\nbuiltin printf '\\n%s%s\\n' '{end}' \"$(<end.txt)\"\n")],
        "set -e\n[[ a = a ]]\n", "bash", comment="#",
    ),
    "js": _node(
        "JavaScript", "program.js", "program.js", {"js", "javascript", "node"},
        hello="const assert = require('node:assert');\nassert.deepEqual([1],[1]);\n", packages="nodejs", limits=_NODE,
    ),
}  # fmt: skip


def told(language: Language, tests: str, end: str) -> str:
    """The trusted tests, which print `end` and the secret when they have run to their end.

    Raises ValueError for tests that are not formed as the language's are.
    """
    for pattern, text in language.end:
        tests, found = re.subn(pattern, lambda _, text=text: text.format(end=end), tests)
        if not found:
            raise ValueError(f"its `tests` are not those of a program in {language.title}: no place for {pattern!r}")
    return tests
