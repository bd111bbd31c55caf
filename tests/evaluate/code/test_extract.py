"""Where the code is in an answer."""

import time

import pytest

from dft_mm.evaluate.code.extract import Code, code_of, cut
from dft_mm.evaluate.code.languages import LANGUAGES

PROMPT = 'def twice(x):\n    """Twice x."""\n'
WHOLE = "def twice(x):\n    return 2 * x"
BODY = "    return 2 * x"
STOP = ("\ndef ", "\n#", "\nprint(")


def python(text, completion=False):
    return code_of(text, LANGUAGES["py"], "twice", PROMPT, completion, STOP)


def cpp(text, completion=False):
    prompt = "#include<assert.h>\n// Twice.\nlong twice(long x) {\n"
    return code_of(text, LANGUAGES["cpp"], "twice", prompt, completion, ["\n}"])


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{WHOLE}\n```",
        f"Sure! Here it is:\n\n```python\n{WHOLE}\n```\nIt doubles.",
        f"```\n{WHOLE}\n```",
        f"```py\r\n{WHOLE}\r\n```".replace("\n    ", "\r\n    "),
        f"~~~python\n{WHOLE}\n~~~",
        f"```python\n{WHOLE}\n",  # cut off, or never closed
        "1. So:\n   ```python\n   def twice(x):\n       return 2 * x\n   ```",
        f"```python\ndef twice(x):\n    return x\n```\nNo, that is wrong:\n```python\n{WHOLE}\n```",
        f"```python\n{WHOLE}\n```\nUse it so:\n```python\nprint(twice(2))\n```\nOutput:\n```\n4\n```",
        f"```bash\npip install x\n```\n```python\n{WHOLE}\n```",
        f"<think>```python\ndef twice(x): return 0\n```</think>\n<answer>```python\n{WHOLE}\n```</answer>",
        f"<think>hm</think>\n```python\n{WHOLE}\n```",
        f"<answer>\n{WHOLE}\n</answer>",
        WHOLE,
        f"Here is the function.\n\n{WHOLE}\n\nIt doubles its argument.",
    ],
)
def test_a_whole_function_is_found(text):
    code = python(text)
    assert code.whole
    assert code.text.strip() == WHOLE


def test_what_the_function_needs_comes_with_it():
    needs = f"import math\n\nLIMIT = 3\n\ndef helper(x):\n    return x\n\n{WHOLE}\n\ndef after():\n    pass"
    assert python(f"```python\n{needs}\n```").text.strip() == needs
    assert python(f"I would say\n{needs}\nThat is all.").text.strip() == needs


@pytest.mark.parametrize(
    "text", [BODY, "return 2 * x", f"```python\n{BODY}\n```", "```python\nreturn 2 * x\n```", f"\n{BODY}\n"]
)
def test_a_body_goes_on_from_the_prompt(text):
    code = python(text)
    assert not code.whole
    assert code.text.rstrip() == BODY


def test_a_body_of_which_only_the_first_line_lost_its_white_space():
    assert python("y = x\n    return 2 * y").text == "    y = x\n    return 2 * y"
    assert python("if x:\n    return 2 * x\nreturn 0").text == "    if x:\n        return 2 * x\n    return 0"


def test_a_repeated_prompt_is_no_part_of_the_body():
    assert python(f"{PROMPT}{BODY}\n") == Code(f"\n{BODY}\n", False, False)
    assert python(f"\n\n{PROMPT}{BODY}\n\ndef other():\n    pass", True) == Code(f"\n{BODY}\n", False, False)


@pytest.mark.parametrize("text", ["", "  \n", "I cannot do that.", "The answer is 42", "```json\n{}\n```", "<think>hm"])
def test_no_code(text):
    assert python(text) is None


def test_a_completion_ends_at_the_stop_texts_whatever_follows():
    assert python(f"{BODY}\n\ndef twice(x):\n    return 7\n", True) == Code(f"{BODY}\n", False, False)
    assert python(f"{BODY}\n# Test\nprint(twice(2))", True).text == BODY
    assert python("", True) is None
    assert python("\n \n", True) is None


def test_a_completion_that_starts_the_function_anew():
    assert python(f"\n{WHOLE}\n\nprint(twice(1))", True) == Code(f"{WHOLE}\n", True)
    assert cpp("long twice(long x) {\n  return 2 * x;\n}\nint main() {}", True) == Code(
        "long twice(long x) {\n  return 2 * x;", True
    )


def test_a_call_is_no_definition():
    assert not cpp("    if (x > 0) {\n        return twice(x - 1) + 2;\n    }\n    return 0;").whole
    assert not cpp("    return twice(x); }").whole
    assert cpp("template <class T>\nstd::vector<T> *twice(const T &x, int y = 2)\n{\n}").whole


def test_cut_takes_the_first_of_them():
    assert cut("a\n#b\ndef c", ["\ndef ", "\n#"]) == "a"
    assert cut("abc", []) == "abc"


@pytest.mark.parametrize(
    "text",
    [
        " " * 10**6,
        "`" * 10**6,
        "```\n" * 10**5,
        "twice(" * 10**5,
        "long twice(" + ")" * 10**5,
        "a " * 10**5 + "twice (",
        "class a " * 10**5,
        "class a {\n" * 10**5,
        "<answer>" * 10**5,
        "(" * 10**6,
        '"' * 10**6,
        "{" * 10**5 + "long twice(int x) {",
        "int main(" * 10**5,
        "a" + " " * 10**6 + "x",
        "import " * 10**5,
    ],
)
def test_no_text_takes_long(text):
    from dft_mm.evaluate.code.assemble import Row, assemble

    row = Row(
        "twice", "import java.util.*;\nclass Problem {\n    public static long twice(long x) {\n", "    }\n}\n}\n"
    )
    begin = time.monotonic()
    for key in ("py", "cpp", "java", "js", "sh"):
        for wrapped in (text, f"```{key}\n{text}\n```", f"long twice(long x) {{\n{text}"):
            code = code_of(wrapped, LANGUAGES[key], "twice", row.prompt, False, ["\n}"])
            if code is not None:
                assemble(code, row, LANGUAGES[key])
    assert time.monotonic() - begin < 10
