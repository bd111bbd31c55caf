"""What a game is to everything around it. A new game is one `Game`, and its entry in play.py."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

State = Mapping[str, Any]

IN_DISTRIBUTION = "in_distribution"
"""The split that is learned from; every other one is a shift from it."""


@dataclass(frozen=True)
class Instance:
    state: dict[str, Any]
    answer: str
    looks: dict[str, Any]
    """What it looks like, where the state does not say it; fields of the row."""


@dataclass(frozen=True)
class Wordings:
    """How the game is explained: templates with the fields that `Game.words` fills in."""

    seen: Sequence[str]
    """Of demonstrations; the first is the fixed one."""
    unseen: Sequence[str]
    """Of questions alone."""


@dataclass(frozen=True)
class Game:
    splits: tuple[str, ...]
    draw: Callable[[str, random.Random], Instance | None]
    """An instance of a split; None when what was drawn is none."""
    explain: Callable[[Instance], str]
    """A chain of thought, true step by step, that ends with `Answer: ` and the answer."""
    kind: Callable[[State], str]
    """The same text for states that are one problem in another order or turned around."""
    wrong: Callable[[State, str], str]
    """Why an answer is wrong; empty when it is right. Raises ValueError for a state that is none."""
    wordings: Wordings
    words: Callable[[Mapping[str, Any], bool], dict[str, str]]
    """Fields of a wording for a row, and whether a picture shows its state. Raises KeyError or ValueError."""
    picture: Callable[[Mapping[str, Any], bool], Image.Image]
    """The state of a row, drawn; True: in the other colours."""
