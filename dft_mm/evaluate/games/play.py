"""Making instances of a game, putting them as questions, and judging answers."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

from dft_mm.errors import InputError
from dft_mm.evaluate.games.game import IN_DISTRIBUTION, Game, Instance, State
from dft_mm.evaluate.games.general_points import GENERAL_POINTS
from dft_mm.evaluate.games.response import final_answer
from dft_mm.evaluate.games.sokoban import SOKOBAN
from dft_mm.evaluate.task import Grade

GAMES: dict[str, Game] = {"general_points": GENERAL_POINTS, "sokoban": SOKOBAN}
Row = dict[str, Any]
_PATIENCE = 20_000
"""Draws without a new instance after which there are no more."""
_LONGEST_SHOWN = 500


def game_of(task: str) -> Game:
    if task not in GAMES:
        raise InputError(f"unknown game {task!r}; there are {', '.join(GAMES)}")
    return GAMES[task]


def make(task: str, split: str = IN_DISTRIBUTION, n: int = 500, seed: int = 0) -> list[Row]:
    """Rows of a split for evaluation, every one solvable, none of a kind that demonstrations have.

    A row holds `id`, `task`, `split`, `state` and `answer` (verified), `problem` (in the fixed wording, without
    pictures), `solution` (a chain of thought that ends with the answer), and of general_points `cards` (ranks as they
    look; `numbers` of the state is what they count). The first rows of more are the same. Raises InputError for an
    unknown game or split, and when there are not so many different instances.
    """
    return [
        {**row, "problem": problem(row)}
        for row in itertools.islice(rows(task, split, seed, "evaluation"), _count(n))
    ]  # fmt: skip


def rows(task: str, split: str, seed: int, use: Literal["evaluation", "demonstration"]) -> Iterator[Row]:
    """Rows without a problem. Kinds of the learned split are halved, by their hash, between the two uses."""
    game = game_of(task)
    if split not in game.splits:
        raise InputError(f"{task} has no split {split!r}; there are {', '.join(game.splits)}")
    rng = random.Random(f"{task}/{split}/{use}/{seed}")
    for number, instance in enumerate(_different(game, task, split, use, rng)):
        yield {
            "id": f"{task}-{split}-{use}-{seed}-{number:05d}",
            "task": task,
            "split": split,
            "state": instance.state,
            **instance.looks,
            "answer": instance.answer,
            "solution": game.explain(instance),
        }


def _different(game: Game, task: str, split: str, use: str, rng: random.Random) -> Iterator[Instance]:
    """Instances with different states; when there are no more of them, such that look different."""
    seen: set[str] = set()
    for look in (lambda instance: [instance.state], lambda instance: [instance.state, instance.looks]):
        patience = _PATIENCE
        while patience:
            patience -= 1
            instance = game.draw(split, rng)
            if instance is None or (split == IN_DISTRIBUTION and _use(task, game.kind(instance.state)) != use):
                continue
            key = json.dumps(look(instance))
            if key in seen:
                continue
            seen |= {key, json.dumps([instance.state, instance.looks])}
            patience = _PATIENCE
            yield instance
    raise InputError(f"{task}, split {split}: no more different instances than those made; ask for fewer")


@lru_cache(maxsize=100_000)
def _use(task: str, kind: str) -> str:
    return "evaluation" if sha256(f"{task}/{kind}".encode()).digest()[0] & 1 else "demonstration"


def _count(n: int) -> int:
    if type(n) is not int or n < 0:
        raise InputError(f"n is {n!r}; a whole number from 0 on is wanted")
    return n


def problem(row: Mapping[str, Any], instructions: str = "fixed", pictured: bool = False) -> str:
    """The question of a row as text. `instructions`: fixed; or seen, unseen: one of those, by the row's state.

    With a picture the text does not give the state away. Raises KeyError or ValueError for a row that is none.
    """
    game = game_of(row["task"])
    wordings = game.wordings.unseen if instructions == "unseen" else game.wordings.seen
    if instructions == "fixed":
        wordings = wordings[:1]
    chosen = random.Random(json.dumps(row["state"], sort_keys=True)).choice(wordings)
    return chosen.format(**game.words(row, pictured))


def verify(
    task: str, state: State, response: str, finish_reason: Literal["stop", "length"] = "stop"
) -> Grade:  # fmt: skip
    """Grade of a response by what follows its last `Answer:`, on that line or the next one with text.

    The mark is taken as it is written, the answer may be bold, in backticks, dollars or a box (response.py).
    general_points: integer literals, + - * / and parentheses, each number used once; `= TARGET` may follow.
    sokoban: the letters U D L R, spaces and commas at will; an illegal move is wrong, the last position counts.
    Raises InputError for an unknown game, ValueError for a state that is none, and nothing for any response.
    """
    game = game_of(task)
    if not isinstance(state, Mapping):
        raise ValueError(f"a state maps names to values, not {state!r}")
    answer = final_answer(response)
    wrong = game.wrong(state, answer or "")
    if answer is None:
        return Grade("truncated" if finish_reason == "length" else "no_answer", None)
    shown = answer if len(answer) <= _LONGEST_SHOWN else answer[:_LONGEST_SHOWN] + "…"
    return Grade("wrong" if wrong else "correct", shown, wrong)
