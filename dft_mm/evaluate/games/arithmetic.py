"""Arithmetic of General Points: the search for an expression, and the reading of one that a model wrote."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

Tree: TypeAlias = int | tuple[str, Any, Any]
"""A number, or (sign, left tree, right tree)."""

_SIGNS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}
# [0-9], since \d would take the digits of every script. What is written as 08 is none of the given numbers' texts.
_TOKEN = re.compile(r"[ \t]*(?:(?P<number>[0-9]+)|(?P<sign>[-+*/()]))")


@cache
def solve(numbers: tuple[int, ...], target: int) -> Tree | None:
    """An expression that uses each number once and equals the target; None where there is none.

    One with whole intermediate results is taken where there is one.
    """
    return _search(numbers, target, whole=True) or _search(numbers, target, whole=False)


def _search(numbers: tuple[int, ...], target: int, whole: bool) -> Tree | None:
    # For each set of places in `numbers`, as bits, the values that they can take and a tree for each.
    found: dict[int, dict[int | Fraction, Tree]] = {
        1 << place: {number if whole else Fraction(number): number} for place, number in enumerate(numbers)
    }
    everything = (1 << len(numbers)) - 1
    for places in range(1, everything + 1):
        values = found.setdefault(places, {})
        part = (places - 1) & places
        while part > places - part:
            for (a, left), (b, right) in itertools.product(found[part].items(), found[places - part].items()):
                for value, tree in _joined(a, left, b, right, whole):
                    values.setdefault(value, tree)
            if places == everything and target in values:
                break
            part = (part - 1) & places
    return found[everything].get(target)


def _joined(
    a: int | Fraction, left: Tree, b: int | Fraction, right: Tree, whole: bool
) -> Iterator[tuple[int | Fraction, Tree]]:
    """What two values make. Negative ones are not needed: where one helps, its opposite does, with another sign."""
    if a < b:
        a, left, b, right = b, right, a, left
    yield a + b, ("+", left, right)
    yield a - b, ("-", left, right)
    yield a * b, ("*", left, right)
    if b and not (whole and a % b):
        yield (a // b if whole else a / b), ("/", left, right)
    if a and not (whole and b % a):
        yield (b // a if whole else b / a), ("/", right, left)


def written(tree: Tree) -> str:
    """The expression of a tree, with parentheses around every part that is not a number."""
    if isinstance(tree, int):
        return str(tree)
    sign, left, right = tree
    return " ".join((_inner(left), sign, _inner(right)))


def _inner(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({written(tree)})"


def steps(tree: Tree, numbers: Sequence[int]) -> list[str]:
    """One line a sign, innermost first: what is reckoned, and which numbers that leaves."""
    left_over = [Fraction(number) for number in numbers]
    lines: list[str] = []

    def reckon(tree: Tree) -> Fraction:
        if isinstance(tree, int):
            return Fraction(tree)
        sign, left, right = tree
        a, b = reckon(left), reckon(right)
        value = _SIGNS[sign](a, b)
        left_over.remove(a)
        left_over.remove(b)
        left_over.append(value)
        leaves = f", which leaves {', '.join(map(str, left_over))}" if len(left_over) > 1 else ""
        lines.append(f"{_operand(a)} {sign} {_operand(b)} = {value}{leaves}.")
        return value

    reckon(tree)
    return lines


def _operand(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"({value})"


def wrong(text: str, numbers: Sequence[int], target: int) -> str:
    """Why a text is no expression of integer literals, + - * / and parentheses that uses each number once and equals
    the target; empty when it is one.

    It may end with `= TARGET`. Signs stand between two values: there is no -3. The text is read from left to right with
    a stack of our own, and a number that is not (or no longer) among the given ones ends the reading before anything
    is reckoned with it, so neither depth nor length nor the size of a number can do harm.
    """
    expression, equals, result = text.partition("=")
    if equals and result.strip() != str(target):
        return f"after the = stands {_cut(result)}, not {target}"
    expression = expression.strip()
    unused = Counter(map(str, numbers))
    values: list[Fraction] = []
    signs: list[str] = []
    after_value = False
    place = 0
    while place < len(expression):
        token = _TOKEN.match(expression, place)
        if token is None:
            return f"{_cut(expression[place:].lstrip())} is neither a whole number nor one of + - * / ( )"
        place = token.end()
        number, sign = token["number"], token["sign"]
        if after_value != (sign is not None and sign != "("):
            return f"{_cut(number or sign)} stands where {'a sign' if after_value else 'a number'} is missing"
        if number is not None:
            if not unused[number]:
                return f"{_cut(number)} is not among the numbers, or is used too often"
            unused[number] -= 1
            values.append(Fraction(int(number)))
            after_value = True
        elif sign == "(":
            signs.append(sign)
        else:
            # What binds at least as strongly as this sign is reckoned first; a closing parenthesis ends everything.
            while signs and signs[-1] != "(" and _BINDS[signs[-1]] >= _BINDS.get(sign, 0):
                if not _apply(signs.pop(), values):
                    return "divides by zero"
            if sign != ")":
                signs.append(sign)
                after_value = False
            elif signs:
                signs.pop()
            else:
                return "closes a parenthesis that is not open"
    if not after_value:
        return "ends where a number is missing"
    while signs:
        sign = signs.pop()
        if sign == "(":
            return "leaves a parenthesis open"
        if not _apply(sign, values):
            return "divides by zero"
    if left := list(unused.elements()):
        return f"does not use {', '.join(left)}"
    return "" if values[0] == target else f"equals {values[0]}, not {target}"


def _apply(sign: str, values: list[Fraction]) -> bool:
    """Reckon with the last two values; False for a division by zero."""
    right, left = values.pop(), values.pop()
    if sign == "/" and right == 0:
        return False
    values.append(_SIGNS[sign](left, right))
    return True


def _cut(text: str) -> str:
    """For a message, the beginning of a text that may be a megabyte."""
    return repr(text.strip()[:20])
