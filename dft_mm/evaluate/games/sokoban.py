"""Sokoban, in text as XSB: `#` wall, `@` player, `+` player on a goal, `$` box, `*` box on a goal, `.` goal, ` ` floor.

Learned from are boards of 6 x 6 cells, walls around them included, with one box; the shifts of arXiv 2510.00237 are
boards of 10 x 10 cells, and more boxes.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dft_mm.evaluate.games import drawing
from dft_mm.evaluate.games.game import IN_DISTRIBUTION, Game, Instance, State
from dft_mm.evaluate.games.wording import SOKOBAN as WORDINGS

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
Cell = tuple[int, int]


@dataclass(frozen=True)
class _Size:
    side: int
    """Cells, the walls around them included."""
    boxes: tuple[int, ...]
    """How many there may be."""


_SIZES = {IN_DISTRIBUTION: _Size(6, (1,)), "larger_board": _Size(10, (1,)), "more_boxes": _Size(6, (2, 3))}
_MOST_WALLS = 0.25  # of the inner cells
_LEAST_MOVES = 3
_MOST_MOVES = 30  # the paper's bound, in its environments


@dataclass(frozen=True)
class Board:
    """Cells are (row, column) from 0. Outside of `inside` is wall, or nothing at all."""

    inside: frozenset[Cell]
    goals: frozenset[Cell]
    boxes: frozenset[Cell]
    player: Cell


def read_board(state: State) -> Board:
    """Raises ValueError for what is no board with one player, boxes, and a goal for each box."""
    text = state.get("board")
    if not isinstance(text, str):
        raise ValueError(f"a state of sokoban is {{board: text}}, not {state}")
    cells = {(row, column): char for row, line in enumerate(text.split("\n")) for column, char in enumerate(line)}
    if unknown := set(cells.values()) - set("#@+$*. "):
        raise ValueError(f"a board is made of # @ + $ * . and space; this has {sorted(unknown)}:\n{text}")
    inside, goals, boxes, players = (
        frozenset(cell for cell, char in cells.items() if char in chars) for chars in ("@+$*. ", "+*.", "$*", "@+")
    )
    if len(players) != 1 or not boxes or len(goals) < len(boxes):
        raise ValueError(
            "a board has one player, at least one box, and a goal for each box; "
            f"this has {len(players)}, {len(boxes)} and {len(goals)}:\n{text}"
        )
    (player,) = players
    return Board(inside, goals, boxes, player)


def _wrong(state: State, answer: str) -> str:
    """Moves are the letters U D L R, with spaces and commas between them as one likes. What counts is the board after
    the last one, so legal moves after a solution do no harm as long as it stands.
    """
    board = read_board(state)
    boxes, player = set(board.boxes), board.player
    count = 0
    for char in answer:
        if char in " \t,":
            continue
        count += 1
        if char not in MOVES:
            return f"move {count} is {char!r}, not one of U D L R"
        down, right = MOVES[char]
        player = (player[0] + down, player[1] + right)
        if player not in board.inside:
            return f"move {count}, {char}, goes into a wall"
        if player in boxes:
            beyond = (player[0] + down, player[1] + right)
            if beyond not in board.inside or beyond in boxes:
                return f"move {count}, {char}, pushes a box into {'another' if beyond in boxes else 'a wall'}"
            boxes.remove(player)
            boxes.add(beyond)
    if off := len(boxes - board.goals):
        return f"after {count} moves {off} of {len(boxes)} boxes are not on a goal"
    return ""


def _draw(split: str, rng: random.Random) -> Instance | None:
    """Random inner walls and goals; then a position from which they can be reached, drawn by its least moves."""
    size = _SIZES[split]
    side = size.side
    inner = [row * side + column for row in range(1, side - 1) for column in range(1, side - 1)]
    walls = rng.sample(inner, rng.randint(0, int(_MOST_WALLS * len(inner))))
    floor = _largest_room(sorted(set(inner) - set(walls)), side)
    goals = sum(1 << cell for cell in rng.sample(floor, rng.choice(size.boxes)))
    moves = _moves_to_solve(floor, goals, side)
    by_moves: dict[int, list[tuple[int, int]]] = {}
    for position, least in moves.items():
        if least >= _LEAST_MOVES and not position[1] & goals:  # a box that stays where it is would make it easier
            by_moves.setdefault(least, []).append(position)
    if not by_moves:
        return None
    player, boxes = rng.choice(by_moves[rng.choice(sorted(by_moves))])
    state = {"board": _written(floor, goals, boxes, player, side)}
    return Instance(state, _descent(moves, player, boxes, side), {})


def _largest_room(floor: list[int], side: int) -> list[int]:
    """The largest connected part of the floor."""
    best: list[int] = []
    left = set(floor)
    while left:
        room = [left.pop()]
        for cell in room:
            for near in (cell - side, cell + side, cell - 1, cell + 1):
                if near in left:
                    left.remove(near)
                    room.append(near)
        best = max(best, sorted(room), key=len)
    return best


def _moves_to_solve(floor: list[int], goals: int, side: int) -> dict[tuple[int, int], int]:
    """Least number of moves that solves each position (player, boxes), nearest positions first, found by playing
    backwards from the solved ones; boxes and goals are sets of cells as bits.
    """
    free = set(floor)
    moves = {(cell, goals): 0 for cell in floor if not goals >> cell & 1}
    queue = list(moves)
    for player, boxes in queue:
        if moves[player, boxes] == _MOST_MOVES:
            break
        for step in (-side, side, -1, 1):
            before = player - step
            if before not in free or boxes >> before & 1:
                continue
            earlier = [(before, boxes)]
            if boxes >> player + step & 1:  # the box before the player may be there by this very move
                earlier.append((before, boxes ^ (1 << player + step) ^ (1 << player)))
            for position in earlier:
                if position not in moves:
                    moves[position] = moves[player, boxes] + 1
                    queue.append(position)
    return moves


def _descent(moves: Mapping[tuple[int, int], int], player: int, boxes: int, side: int) -> str:
    """The first shortest solution in the order U D L R."""
    path = []
    while left := moves[player, boxes]:
        for move, (down, right) in MOVES.items():
            step = down * side + right
            after = boxes
            if boxes >> player + step & 1:
                after = boxes ^ (1 << player + step) | (1 << player + 2 * step)
            if moves.get((player + step, after)) == left - 1 and after.bit_count() == boxes.bit_count():
                path.append(move)
                player, boxes = player + step, after
                break
    return "".join(path)


def _written(floor: list[int], goals: int, boxes: int, player: int, side: int) -> str:
    chars = ["#"] * side * side
    for cell in floor:
        on_goal = goals >> cell & 1
        char = "@+" if cell == player else "$*" if boxes >> cell & 1 else " ."
        chars[cell] = char[on_goal]
    return "\n".join("".join(chars[row * side : (row + 1) * side]) for row in range(side))


def _explain(instance: Instance) -> str:
    board = read_board(instance.state)
    boxes, player = set(board.boxes), board.player
    lines = [
        "Cells are (row, column), counted from (1, 1) at the top left.",
        f"The player is at {_named(player)}; {_listed('box', boxes)}; {_listed('goal', board.goals)}.",
    ]
    for move in instance.answer:
        down, right = MOVES[move]
        player = (player[0] + down, player[1] + right)
        if player in boxes:
            beyond = (player[0] + down, player[1] + right)
            boxes.remove(player)
            boxes.add(beyond)
            lines.append(f"{move}: push the box from {_named(player)} to {_named(beyond)}; stand at {_named(player)}.")
        else:
            lines.append(f"{move}: walk to {_named(player)}.")
    return "\n".join((*lines, "Every box is on a goal.", f"Answer: {instance.answer}"))


def _named(cell: Cell) -> str:
    return f"({cell[0] + 1}, {cell[1] + 1})"


def _listed(what: str, cells: set[Cell] | frozenset[Cell]) -> str:
    plural = what + ("es" if what == "box" else "s")
    places = " and ".join(map(_named, sorted(cells)))
    return f"the {what} is at {places}" if len(cells) == 1 else f"the {plural} are at {places}"


def _kind(state: State) -> str:
    """The least of a square board's eight turns and reflections; another board as it is."""
    board = state["board"]
    lines = board.split("\n")
    if any(len(line) != len(lines) for line in lines):
        return board
    alike = []
    for _ in range(4):
        lines = ["".join(column) for column in zip(*lines[::-1])]
        alike += ["\n".join(lines), "\n".join(line[::-1] for line in lines)]
    return min(alike)


def _words(row: Mapping[str, Any], pictured: bool) -> dict[str, str]:
    read_board(row["state"])
    if pictured:
        return {"shown": "The picture shows the board: brick walls, a figure, crates (boxes) and rings (goals)."}
    legend = "# wall, @ player, + player on a goal, $ box, * box on a goal, . goal, space: floor"
    return {"shown": f"Board ({legend}):\n{row['state']['board']}"}


def _picture(row: Mapping[str, Any], other_colours: bool) -> Image.Image:
    read_board(row["state"])
    return drawing.board(row["state"]["board"], other_colours)


SOKOBAN = Game(tuple(_SIZES), _draw, _explain, _kind, _wrong, WORDINGS, _words, _picture)
