"""Are two formulas the same by computer algebra, as Qwen2.5-Math's grader asks SymPy; but without running model text.

SymPy's `parse_expr` hands its text to Python's eval. Here a text reaches it only when it can be nothing but a formula.
The rest of that grader is kept: three parsers in turn, then equality of text, of value, of equations, of numbers.
"""

import builtins
import keyword
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from sympy.parsing.latex import _parse_latex_antlr, parse_latex
from sympy.parsing.sympy_parser import parse_expr

from dft_mm.evaluate.mathematics.official import numerically_close

_FUNCTIONS = frozenset(
    (
        "sqrt", "cbrt", "root", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "sinh",
        "cosh", "tanh", "log", "ln", "exp", "Abs", "factorial", "binomial", "pi", "oo", "Rational", "Integer", "Float",
        "floor", "ceiling", "gcd", "lcm", "Mod", "Max", "Min", "max", "min", "abs", "re", "im", "zoo", "nan",
    )
)  # fmt: skip
"""Names of SymPy that may be called or used. Any other name that Python or SymPy knows is refused; an unknown one is
only a symbol."""

_KNOWN = (vars(builtins).keys() | vars(sympy).keys() | set(keyword.kwlist)) - _FUNCTIONS
_LETTERS = frozenset("EINOQC")
_FORMULA = re.compile(r"[\w\s+\-*/^=().,!<>|&~%]*")


def is_formula(text: str) -> bool:
    """No quotes, brackets, attributes, dunders or names of Python: nothing that eval could turn into anything else."""
    if not _FORMULA.fullmatch(text) or "__" in text or re.search(r"\.\s*[^\W\d]", text):
        return False
    return all(name in _LETTERS or name not in _KNOWN for name in re.findall(r"[^\W\d]\w*", text))


def _expression(text: str) -> Any:
    if not is_formula(text):
        raise ValueError("not a formula")
    return parse_expr(text)


# SymPy refuses any antlr but 4.11, while math-verify's parser is at its best with 4.13. Both read the grammar that
# SymPy ships, whose serialised form has not changed since 4.10.
_parse_latex_antlr.version = lambda package: "4.11"
_PARSERS = (parse_latex, _expression, latex2sympy)


def _parse(text: str) -> Any:
    for parser in _PARSERS:
        for form in (text.replace("\\\\", "\\"), text):
            try:
                return parser(form)
            except Exception:  # parsers fail in every way there is; the next one is asked
                continue
    return text


def same(answer: str, gold: str) -> bool:
    left, right = _parse(answer), _parse(gold)
    if isinstance(left, str) or isinstance(right, str):
        return str(left) == str(right)  # SymPy would parse a text anew, with eval
    return any(
        _holds(check, left, right) for check in (_identical, _equivalent, _same_equation, _same_value, _same_matrix)
    )


def _holds(check: Any, left: Any, right: Any) -> bool:
    try:
        return bool(check(left, right))
    except Exception:  # a check that does not apply to such objects fails in its own way
        return False


def _identical(left: Any, right: Any) -> bool:
    return str(left) == str(right) or left == right


def _equivalent(left: Any, right: Any) -> bool:
    return left.equals(right) or sympy.simplify(left - right) == 0


def _same_equation(left: Any, right: Any) -> bool:
    return abs(left.lhs - left.rhs).equals(abs(right.lhs - right.rhs))


def _same_value(left: Any, right: Any) -> bool:
    return numerically_close(float(sympy.N(left)), float(sympy.N(right)))


def _same_matrix(left: Any, right: Any) -> bool:
    rounded = [matrix.applyfunc(lambda value: round(value, 3)) for matrix in (left, right)]
    return left.shape == right.shape and rounded[0].equals(rounded[1])
