"""Whole programs: the benchmark's tests behind a model's code."""

import pytest

from dft_mm.evaluate.code.assemble import Row, assemble, mask
from dft_mm.evaluate.code.extract import Code
from dft_mm.evaluate.code.languages import LANGUAGES, told

JAVA = Row(
    "twice",
    "import java.util.*;\nclass Problem {\n    // Twice.\n    public static long twice(long x) {\n",
    "    }\n    public static void main(String[] args) {\n    assert(twice(1l) == (2l));\n    }\n\n}\n",
)
CPP = Row(
    "twice",
    "#include<bits/stdc++.h>\nunion Either{\n    long f0;\n};\n// Twice.\nlong twice(long x) {\n",
    "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((1)) == (2));\n}\n",
)


def program(text, row, key, **more):
    return assemble(Code(text, **more), row, LANGUAGES[key])


def test_a_body_stands_between_prompt_and_tests():
    body = "    return 2 * x;\n"
    assert program(body, CPP, "cpp", whole=False, chat=False) == f"{CPP.prompt}{body}\n{CPP.tests}"


def test_a_body_of_a_chat_answer_ends_before_the_brace_that_the_tests_bring():
    text = program('    if (x) { return 2 * x; } // }\n    puts("}");\n    return 0;\n}\n', CPP, "cpp", whole=False)
    assert mask(text).count("{") == mask(text).count("}")


def test_a_whole_function_brings_its_own_brace_and_leaves_its_main():
    answer = "#include <iostream>\nlong twice(long x) {\n    return 2 * x;\n}\nint main() {\n    return twice(1);\n}\n"
    text = program(answer, CPP, "cpp", whole=True)
    assert text.count("main()") == 1
    assert text.count("union Either") == 1
    assert mask(text).count("{") == mask(text).count("}")


def test_types_that_the_answer_repeats_are_there_once():
    text = program("union Either{\n    long f0;\n};\nlong twice(long x) { return 2; }", CPP, "cpp", whole=True)
    assert text.count("union Either") == 1
    assert "#include<bits/stdc++.h>" in text


def test_members_move_into_the_benchmarks_class():
    answer = (
        "package mine;\nimport java.util.function.*;\n\npublic class Solution {\n    static int calls = 0; // {\n"
        "    public static long twice(long x) {\n        return helper(x);\n    }\n"
        "    static long helper(long x) { return 2 * x; }\n"
        "    public static void main(String[] args) { System.out.println(twice(2)); }\n}\n\nclass Other { }\n"
    )
    text = program(answer, JAVA, "java", whole=True)
    assert text.startswith("import java.util.function.*;\nimport java.util.*;\nclass Problem {")
    assert text.count("void main(") == 1
    assert "Solution" not in text
    assert "package" not in text
    assert text.rstrip().endswith("class Other { }")
    assert "static int calls" in text
    assert mask(text).count("{") == mask(text).count("}")


def test_a_function_that_is_cut_off_is_closed_by_the_tests():
    text = program("public static long twice(long x) {\n    return 2 * x;", JAVA, "java", whole=True)
    assert mask(text).count("{") == mask(text).count("}")


@pytest.mark.parametrize("key", [key for key in LANGUAGES if key != "py"])
def test_tests_of_another_form_are_refused(key):
    language = LANGUAGES[key]
    assert "half" in told(language, language.hello, "half")
    if key in ("cpp", "java", "cs"):
        with pytest.raises(ValueError, match="no place for"):
            told(language, "nothing of the kind", "half")
