"""Qwen2.5-Math's rules, against what its published script gives for these inputs."""

import pytest

from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.official import extract, strip
from dft_mm.evaluate.mathematics.symbolic import is_formula, same


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so $\boxed{\frac12}$.", r"\frac{1}{2}"),
        (r"\boxed{3} but \boxed 4$ ", "4"),
        ("The answer is 12 apples.", "12"),
        ("The final answer is $x=5$. I hope it is correct.", "5"),
        ("there are 3, then 1,234 of them", "1234"),  # the last number of all
        ("nothing", ""),
        (r"\boxed{7 \text{ cm}}", "7"),
        (r"\boxed{twelve}", "12"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{3/4}", r"\frac{3}{4}"),
        (r"\boxed{27.0}", "27"),
        (r"\boxed{\text{(C)}}", "(C)"),
        (r"\boxed{12 was cut off", "12wascutoff"),
    ],
)
def test_the_script_s_answer_is_extracted(response, answer):
    assert extract(response, keep_units=False) == answer


def test_minerva_keeps_its_units():
    assert (strip("3 m", keep_units=False), strip("3 m", keep_units=True)) == ("3", "3m")


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("(x-1)(x+1)", "x^2-1", True),
        ("300", r"3", True),  # as a percentage
        ("0.33333", r"\frac{1}{3}", True),  # one part in ten thousand
        ("(1,2)", "(1,3)", False),
        ("(3,4]+1", "(3,4]", True),  # its parser stops where it no longer follows
        ("(1,2)", "(1, 2)", True),
        ("x+y=1", "1=x+y", False),
        ("a=3", "3", True),
        (r"\begin{pmatrix}0.5\\2\end{pmatrix}", r"\begin{bmatrix}\frac12\\2\end{bmatrix}", True),
        ("C. 12", "C", True),
        ("B", "C", False),
        ("x+1", "x+2", False),
        ("", "3", False),
        ("9**9**9**9**9", "4", False),
    ],
)
def test_the_script_s_verdict(answer, gold, verdict):
    with Grader(processes=1) as grader:
        assert list(grader.official_all([(rf"\boxed{{{answer}}}", gold)])) == [verdict]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "x.__class__", "open(x)", "exec(x)", "chr(95)", "eval(x)", "[x]", "'x'",
        "(lambda: 1)()", "S(x)", "sympify(x)", "x.y", "exit()", "print(1)", "f\"{x}\"", "a if b else c", "breakpoint()",
        "input()", "x . y", "getattr(x, y)",
    ],
)  # fmt: skip
def test_what_is_no_formula_never_reaches_python(text):
    assert not is_formula(text)


@pytest.mark.parametrize("text", ["x^2+1", "sqrt(3)/2", "2*pi*r", "3.5", "N", "E", "foo+1", "f(x)", "0.5x", "x=3"])
def test_formulas_are_parsed(text):
    assert is_formula(text)


def test_a_text_that_is_none_is_compared_as_text(tmp_path):
    mark = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    assert same(code, code)
    assert not same(code, "3")
    assert not mark.exists()
