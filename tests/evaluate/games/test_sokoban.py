"""Sokoban against a simulator and a search, written here anew."""

import random
import re

import pytest

from dft_mm.evaluate.games import make, verify

SPLITS = ("in_distribution", "larger_board", "more_boxes")
STEPS = {"U": -1j, "D": 1j, "L": -1, "R": 1}


class Played:
    """Cells as complex numbers."""

    def __init__(self, board):
        cells = {complex(x, y): c for y, line in enumerate(board.split("\n")) for x, c in enumerate(line)}
        self.open = {cell for cell, c in cells.items() if c != "#"}
        self.goals = {cell for cell, c in cells.items() if c in ".+*"}
        self.boxes = frozenset(cell for cell, c in cells.items() if c in "$*")
        (self.player,) = (cell for cell, c in cells.items() if c in "@+")

    def step(self, player, boxes, move):
        """The next position, or None when the move is illegal."""
        there = player + STEPS[move]
        if there in boxes:
            beyond = there + STEPS[move]
            if beyond in boxes or beyond not in self.open:
                return None
            boxes = boxes - {there} | {beyond}
        return (there, boxes) if there in self.open else None

    def right(self, moves):
        position = self.player, self.boxes
        for move in moves:
            position = self.step(*position, move)
            if position is None:
                return False
        return position[1] <= self.goals

    def least_moves(self):
        """By breadth-first search; None when there is no solution."""
        seen, front, count = {(self.player, self.boxes)}, [(self.player, self.boxes)], 0
        while front:
            if any(boxes <= self.goals for _, boxes in front):
                return count
            following = []
            for position in front:
                for move in STEPS:
                    later = self.step(*position, move)
                    if later is not None and later not in seen:
                        seen.add(later)
                        following.append(later)
            front, count = following, count + 1
        return None


def accepted(board, moves):
    grade = verify("sokoban", {"board": board}, f"Answer: {moves}")
    assert grade.status in ("correct", "wrong")
    return grade.status == "correct"


def _check_boards(split, count, searched):
    rng = random.Random(split)
    rows = make("sokoban", split=split, n=count, seed=5)
    assert len({row["state"]["board"] for row in rows}) == count
    right = wrong = 0
    for number, row in enumerate(rows):
        board, answer = row["state"]["board"], row["answer"]
        lines = board.split("\n")
        side = 10 if split == "larger_board" else 6
        assert [len(line) for line in lines] == [side] * side
        assert set(lines[0] + lines[-1] + "".join(line[0] + line[-1] for line in lines)) == {"#"}
        game = Played(board)
        assert len(game.boxes) == len(game.goals)
        assert len(game.boxes) in ((2, 3) if split == "more_boxes" else (1,))
        assert not game.boxes & game.goals
        assert game.right(answer)
        assert accepted(board, answer)
        if number < searched:
            assert game.least_moves() == len(answer)
        # Legal walks that go on after, or leave, the solution; and moves of which most are illegal somewhere.
        place = rng.randrange(len(answer))
        for moves in (
            answer + "".join(rng.choices("UDLR", k=rng.randint(1, 3))),
            answer[:place] + rng.choice("UDLR") + answer[place:],
            answer[:place] + answer[place + 1 :],
            "".join(rng.choices("UDLR", k=rng.randint(1, 12))),
        ):
            expected = game.right(moves)
            assert not moves or accepted(board, moves) == expected, (board, moves)
            right, wrong = right + expected, wrong + (not expected)
    assert min(right, wrong) > count / 10


@pytest.mark.parametrize(("split", "count"), [("in_distribution", 5000), ("larger_board", 1000), ("more_boxes", 4000)])
def test_ten_thousand_boards_have_a_solution_and_only_solutions_are_taken(split, count):
    _check_boards(split, count, searched=100)


@pytest.mark.long
@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_answers_of_ten_thousand_boards_are_the_shortest(split):
    _check_boards(split, 3400, searched=3400)


@pytest.mark.parametrize("split", SPLITS)
def test_every_step_of_a_solution_is_true(split):
    def cell(text):
        row, column = map(int, text.split(", "))
        return complex(column - 1, row - 1)

    def cells(text):
        return [cell(found) for found in re.findall(r"\((\d+, \d+)\)", text)]

    for row in make("sokoban", split=split, n=200, seed=2):
        game = Played(row["state"]["board"])
        _, start, *lines, end, answer = row["solution"].split("\n")
        player, boxes, goals = map(cells, start.split(";"))
        assert (player, set(boxes), set(goals)) == ([game.player], game.boxes, game.goals)
        position = game.player, game.boxes
        assert "".join(line[0] for line in lines) == row["answer"]
        for line in lines:
            later = game.step(*position, line[0])
            if later[1] == position[1]:
                assert line[1:].startswith(": walk")
                assert cells(line) == [later[0]]
            else:
                assert line[1:].startswith(": push")
                assert cells(line) == [*(position[1] - later[1]), *(later[1] - position[1]), later[0]]
            position = later
        assert position[1] == game.goals
        assert (end, answer) == ("Every box is on a goal.", f"Answer: {row['answer']}")


BOARD = "#####\n#@$.#\n#   #\n#####"


@pytest.mark.parametrize(
    ("board", "moves", "right"),
    [
        (BOARD, "R", True),
        (BOARD, "RL", True),  # legal moves after the solution that leave it as it is
        (BOARD, "RR", False),  # against the wall, though the box is on its goal already
        (BOARD, "U", False),
        (BOARD, "DU", False),
        (BOARD, "D, R\tR , LLUR", True),
        (BOARD, "r", False),
        (BOARD, "Right", False),
        (BOARD, "R!", False),
        (BOARD, "→", False),
        (BOARD, "Ｒ", False),
        (BOARD, "R\0", False),
        (BOARD, "R because it is near", False),
        ("#######\n#@$$..#\n#######", "RR", False),  # two boxes in a row
        ("#######\n#@*$ .#\n#######", "R", False),
        ("######\n#@*. #\n######", "R", True),  # off one goal, onto the other
        ("######\n#@*. #\n######", "RR", False),
        ("######\n#+$  #\n######", "R", False),
        ("#####\n#@$.#\n#.*.#\n#####", "R", True),  # more goals than boxes
        ("@$.", "R", True),  # no walls: there is nothing outside of the lines
        ("@$.", "L", False),
        ("@$.", "U", False),
        (".@$\n  .", "DRU", False),
        (" $\n@.\n  ", "UR", False),
        ("######\n#@ $.#\n###", "RR", True),  # lines of different lengths
    ],
)
def test_moves(board, moves, right):
    assert accepted(board, moves) == right


def test_a_wrong_answer_is_told_why():
    def why(moves, board=BOARD):
        return verify("sokoban", {"board": board}, f"Answer: {moves}").detail

    assert why("DU") == "after 2 moves 1 of 1 boxes are not on a goal"
    assert why("D D") == "move 2, D, goes into a wall"
    assert why("RR") == "move 2, R, pushes a box into a wall"
    assert why("R", "#@$$.#\n# .  #") == "move 1, R, pushes a box into another"
    assert why("D") == "after 1 moves 1 of 1 boxes are not on a goal"
    assert why("DX") == "move 2 is 'X', not one of U D L R"


@pytest.mark.parametrize(
    "state",
    [{}, {"board": None}, {"board": ["#@$.#"]}, {"board": ""}, {"board": "#$.#"}, {"board": "#@@$.#"},
     {"board": "#@+$#"}, {"board": "#@ .#"}, {"board": "#@$$.#"}, {"board": "#@$.#\n#X#"}, {"board": "#@$.#\r\n#  #"}],
)  # fmt: skip
def test_a_board_that_is_none_raises(state):
    for response in ("Answer: R", "nothing"):
        with pytest.raises(ValueError, match=r"a (state of sokoban|board) (is|has)"):
            verify("sokoban", state, response)
