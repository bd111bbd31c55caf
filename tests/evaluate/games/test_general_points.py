"""General Points against brute force over all expressions, written here anew."""

import ast
import itertools
import operator
import random
import re
from collections import Counter
from fractions import Fraction
from functools import cache

import pytest

from dft_mm.evaluate.games import make, verify
from dft_mm.evaluate.games.arithmetic import solve, written

SPLITS = ("in_distribution", "face_cards", "five_cards")
COUNTS = {"A": 1, **{str(n): n for n in range(2, 11)}}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@cache
def reachable(numbers):
    """Values of all expressions over a sorted tuple of numbers, negative ones too."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    values = set()
    for size in range(1, len(numbers)):
        for places in itertools.combinations(range(len(numbers)), size):
            left = reachable(tuple(numbers[place] for place in places))
            right = reachable(tuple(numbers[place] for place in range(len(numbers)) if place not in places))
            for a, b in itertools.product(left, right):
                values |= {a + b, a - b, a * b}
                if b:
                    values.add(a / b)
    return values


def judged(text, numbers, target):
    """Python's own reading of an expression, with Fractions."""
    if not re.fullmatch(r"[0-9+\-*/() \t]+", text):
        return False
    used = []

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise KeyError(node)

    try:
        result = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return False
    return Counter(used) == Counter(numbers) and result == target


def all_trees(numbers):
    """Texts of all expressions with the numbers in this order, fully in parentheses."""
    if len(numbers) == 1:
        yield str(numbers[0])
    for cut in range(1, len(numbers)):
        for left, right in itertools.product(all_trees(numbers[:cut]), all_trees(numbers[cut:])):
            for sign in "+-*/":
                yield f"({left} {sign} {right})"


def accepted(numbers, text, target=24):
    grade = verify("general_points", {"numbers": list(numbers), "target": target}, f"Let me see.\nAnswer: {text}")
    assert grade.status in ("correct", "wrong")
    return grade.status == "correct"


def changed(text, rng):
    """The text with one or two of its characters taken out, put in, changed or exchanged."""
    chars = list(text)
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(chars))
        match rng.randrange(4):
            case 0:
                del chars[place]
            case 1:
                chars.insert(place, rng.choice("0123456789+-*/() "))
            case 2:
                chars[place] = rng.choice("0123456789+-*/() ")
            case _:
                other = rng.randrange(len(chars))
                chars[place], chars[other] = chars[other], chars[place]
    return "".join(chars)


@pytest.mark.parametrize("split", SPLITS)
def test_ten_thousand_hands_have_a_right_answer_and_only_right_ones_are_taken(split):
    rng = random.Random(split)
    rows = make("general_points", split=split, n=3400, seed=5)
    assert len({tuple(row["cards"]) for row in rows}) == 3400
    right = wrong = 0
    for row in rows:
        numbers = row["state"]["numbers"]
        values = COUNTS | ({"J": 11, "Q": 12, "K": 13} if split == "face_cards" else dict.fromkeys("JQK", 10))
        assert numbers == [values[card] for card in row["cards"]]
        assert len(numbers) == (5 if split == "five_cards" else 4)
        assert (set(row["cards"]) & set("JQK")) or split != "face_cards"
        assert row["state"]["target"] == 24
        assert judged(row["answer"], numbers, 24)
        assert accepted(numbers, row["answer"])
        for text in (changed(row["answer"], rng), changed(row["answer"].replace(" ", ""), rng)):
            expected = bool(text.strip()) and judged(text, numbers, 24)
            assert accepted(numbers, text) == expected, (numbers, text)
            right, wrong = right + expected, wrong + (not expected)
    assert min(right, wrong) > 300


def _check_solvable(hands):
    unsolvable = 0
    for numbers in hands:
        tree = solve(numbers, 24)
        assert (tree is not None) == (24 in reachable(numbers)), numbers
        assert tree is None or judged(written(tree), numbers, 24)
        unsolvable += tree is None
    return unsolvable


def test_a_hand_is_solved_exactly_when_an_expression_exists():
    hands = list(itertools.combinations_with_replacement(range(1, 14), 4))
    assert _check_solvable(random.Random(0).sample(hands, 150)) > 10
    assert _check_solvable([(1, 1, 1, 1), (3, 3, 8, 8), (1, 5, 5, 5), (4, 4, 10, 10)]) == 1


@pytest.mark.long
def test_every_hand_is_solved_exactly_when_an_expression_exists():
    assert _check_solvable(itertools.combinations_with_replacement(range(1, 14), 4)) == 1820 - 1362
    fives = list(itertools.combinations_with_replacement(range(1, 11), 5))
    assert _check_solvable(random.Random(0).sample(fives, 200) + [(1, 1, 1, 1, 1), (1, 1, 1, 1, 2)]) >= 2


def test_of_all_expressions_of_a_hand_those_that_make_24_are_taken():
    for hand in ((3, 3, 8, 8), (1, 2, 6, 12)):
        found = 0
        for numbers in set(itertools.permutations(hand)):
            for text in all_trees(numbers):
                expected = judged(text, numbers, 24)
                found += expected
                assert accepted(numbers, text) == expected, text
        assert found


@pytest.mark.parametrize("split", SPLITS)
def test_every_step_of_a_solution_is_true(split):
    for row in make("general_points", split=split, n=300, seed=2):
        first, *lines, summary, answer = row["solution"].split("\n")
        numbers = row["state"]["numbers"]
        assert first == (
            f"The cards are {', '.join(row['cards'])}. They count as {', '.join(map(str, numbers))}."
        )  # fmt: skip
        left = Counter(map(Fraction, numbers))
        assert len(lines) == len(numbers) - 1
        for line in lines:
            a, sign, b, result, rest = re.fullmatch(
                r"\(?([\d/]+)\)? ([-+*/]) \(?([\d/]+)\)? = ([\d/]+)(?:, which leaves (.*))?\.", line
            ).groups()
            a, b, result = map(Fraction, (a, b, result))
            assert OPERATORS[type(ast.parse(f"1{sign}1", mode="eval").body.op)](a, b) == result
            left.subtract([a, b])
            assert min(left.values()) >= 0
            left[result] += 1
            assert rest is None or Counter(map(Fraction, rest.split(", "))) == +left
        assert +left == {Fraction(24): 1}
        assert summary == f"So {row['answer']} = 24."
        assert answer == f"Answer: {row['answer']}"


RIGHT = [
    "(8 - 2) * 4 * 1",
    "((8-2))*4/1",
    "1*4*(8-2) = 24",
    "1*4*(8-2)=24",
    "\t4 * ( 8 - 2 ) * 1 ",
    "(" * 9 + "8-2" + ")" * 9 + "*4*1",
]
WRONG = [
    "8 - 2 * 4 * 1", "(8-2)*4", "(8-2)*4*1*1", "(8-2)*4*1 = 25", "(8-2)*4*1 = 24 = 24", "24", "= 24", "24 = (8-2)*4*1",
    "(8-2)*4**1", "(8-2)*4//1", "(8-2)*4*1!", "(8-2)*4*+1", "-2*4*-(8-1)", "(8-2)*4*1.0", "(8-2)*4*01", "(8-2)*4*0x1",
    "(8-2)*4*1_", "(8-2)(4)*1", "(8-2)*4*1)", "((8-2)*4*1", "(8-2)*4*1+", "*(8-2)*4*1", "()", "8 2 4 1", "8241",
    "(8-2)×4×1", "(8−2)*4*1", "(8-2)*4*１", "(8-2)*٤*1", "(8-2)*4*1 or so", "8*4/(2-2*1)", "[8-2]*4*1", "abs(8-2)*4*1",
    "(8-2)*4*1;", "(8-2),4,1", "8-2\n*4*1", "(8-2)*4*\0001", "__import__('os')", "8*(4-1)", "4*(8-2)*1%5",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_right_forms(text):
    assert accepted((1, 2, 4, 8), text)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_forms(text):
    assert not accepted((1, 2, 4, 8), text)


def test_a_number_that_comes_twice_is_used_twice():
    assert accepted((3, 3, 8, 8), "8 / (3 - 8 / 3)")
    assert not accepted((3, 3, 8, 8), "8 * 3")
    assert not accepted((3, 3, 8, 8), "8 + 8 + 8")


def test_a_wrong_answer_is_told_why():
    def why(text):
        return verify("general_points", {"numbers": [1, 2, 4, 8], "target": 24}, f"Answer: {text}").detail

    assert why("8 - 2 + 4 - 1") == "equals 9, not 24"
    assert why("(8 - 2) * 4") == "does not use 1"
    assert why("8 / (1 - 1)") == "'1' is not among the numbers, or is used too often"
    assert why("1 / (8 - 4 * 2)") == "divides by zero"
    assert why("2 ** 4") == "'*' stands where a number is missing"
    assert why("8 ^ 2") == "'^ 2' is neither a whole number nor one of + - * / ( )"


@pytest.mark.parametrize(
    "state",
    [{}, {"numbers": [1, 2]}, {"numbers": [], "target": 24}, {"numbers": ["1"], "target": 1},
     {"numbers": [True], "target": 1}, {"numbers": [1.0], "target": 1}, {"numbers": [-1], "target": 1},
     {"numbers": [1], "target": "1"}, {"numbers": 1, "target": 1}],
)  # fmt: skip
def test_a_state_that_is_none_raises(state):
    for response in ("Answer: 1", "nothing"):
        with pytest.raises(ValueError, match="a state of general_points"):
            verify("general_points", state, response)
