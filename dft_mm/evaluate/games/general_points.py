"""General Points (arXiv 2501.17161, section 4.1): an expression of the cards' numbers that equals 24.

What is learned has four cards and counts J, Q and K as 10. The shifts are the paper's rule, J, Q and K as 11, 12 and 13
with at least one of them in the hand, and the fifth card of arXiv 2510.00237.
"""

import random
from collections.abc import Mapping
from typing import Any

from PIL import Image

from dft_mm.evaluate.games import arithmetic, drawing
from dft_mm.evaluate.games.game import IN_DISTRIBUTION, Game, Instance, State
from dft_mm.evaluate.games.wording import GENERAL_POINTS as WORDINGS

TARGET = 24
FACE_CARDS = "face_cards"
_RANKS = ("A", *map(str, range(2, 11)), "J", "Q", "K")
_FACES = ("J", "Q", "K")
_SIZES = {IN_DISTRIBUTION: 4, FACE_CARDS: 4, "five_cards": 5}


def values_of(split: str) -> dict[str, int]:
    """What each rank counts."""
    faces = (11, 12, 13) if split == FACE_CARDS else (10, 10, 10)
    return dict(zip(_RANKS, (*range(1, 11), *faces), strict=True))


def _draw(split: str, rng: random.Random) -> Instance | None:
    cards = rng.choices(_RANKS, k=_SIZES[split])
    # Without a face card the hand would be one of the learned rule.
    if split == FACE_CARDS and not set(cards) & set(_FACES):
        return None
    values = values_of(split)
    numbers = [values[card] for card in cards]
    tree = arithmetic.solve(tuple(sorted(numbers)), TARGET)
    if tree is None:
        return None
    return Instance({"numbers": numbers, "target": TARGET}, arithmetic.written(tree), {"cards": cards})


def _explain(instance: Instance) -> str:
    numbers, answer = instance.state["numbers"], instance.answer
    tree = arithmetic.solve(tuple(sorted(numbers)), TARGET)
    assert tree is not None
    lines = [
        f"The cards are {', '.join(instance.looks['cards'])}. They count as {', '.join(map(str, numbers))}.",
        *arithmetic.steps(tree, numbers),
        f"So {answer} = {TARGET}.",
        f"Answer: {answer}",
    ]
    return "\n".join(lines)


def _read(state: State) -> tuple[list[int], int]:
    """Numbers and target; raises ValueError."""
    numbers, target = state.get("numbers"), state.get("target")
    whole = isinstance(numbers, list | tuple) and all(type(number) is int and number >= 0 for number in numbers)
    if not whole or not numbers or type(target) is not int:
        raise ValueError(
            f"a state of general_points is {{numbers: [whole numbers], target: whole number}}, not {state}"
        )
    return list(numbers), target


def _kind(state: State) -> str:
    numbers, target = _read(state)
    return f"{sorted(numbers)} {target}"


def _wrong(state: State, answer: str) -> str:
    return arithmetic.wrong(answer, *_read(state))


def _cards(row: Mapping[str, Any]) -> list[str]:
    """Ranks of a row, checked against its numbers: a file may hold anything."""
    cards, split = row["cards"], row["split"]
    numbers, _ = _read(row["state"])
    values = values_of(split)
    if not isinstance(cards, list) or [values.get(card) for card in cards] != numbers:
        raise ValueError(f"its cards {cards} do not count as {numbers} in the split {split}")
    return cards


def _words(row: Mapping[str, Any], pictured: bool) -> dict[str, str]:
    cards, values = _cards(row), values_of(row["split"])
    return {
        "shown": "The cards are in the picture." if pictured else f"Cards: {', '.join(cards)}",
        "count": str(len(cards)),
        "target": str(row["state"]["target"]),
        "jack": str(values["J"]),
        "queen": str(values["Q"]),
        "king": str(values["K"]),
    }


def _picture(row: Mapping[str, Any], other_colours: bool) -> Image.Image:
    return drawing.hand(_cards(row), other_colours)


GENERAL_POINTS = Game(tuple(_SIZES), _draw, _explain, _kind, _wrong, WORDINGS, _words, _picture)
