"""Demonstrations of the games to learn from: rows and pictures in a layout that the data part reads by itself."""

import itertools
import json
from pathlib import Path
from typing import Any, Literal

from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError
from dft_mm.evaluate.games.drawing import save
from dft_mm.evaluate.games.game import IN_DISTRIBUTION
from dft_mm.evaluate.games.play import GAMES, problem, rows

Style = Literal["cot", "answer_only"]
Prompts = Literal["fixed", "diverse"]
Pictures = Literal["none", "standard", "other_colours"]


def demonstrations(
    task: str, n: int, seed: int = 0, style: Style = "cot", prompts: Prompts = "fixed", pictures: Pictures = "none"
) -> list[dict[str, Any]]:
    """Training rows of the learned split, of kinds that `make` never gives.

    What is learned is `solution`: a chain of thought, or nothing but its last line, `Answer: …`. `problem` is in one
    wording, or in many (arXiv 2510.00237 compares all four). With pictures the problem does not tell the state.
    """
    for name, value, choices in (
        ("style", style, ("cot", "answer_only")),
        ("prompts", prompts, ("fixed", "diverse")),
        ("pictures", pictures, ("none", "standard", "other_colours")),
    ):
        if value not in choices:
            raise InputError(f"{name} is {value!r}; there are {', '.join(choices)}")
    wording = "seen" if prompts == "diverse" else "fixed"
    made = []
    for row in itertools.islice(rows(task, IN_DISTRIBUTION, seed, "demonstration"), n):
        solution = row["solution"] if style == "cot" else f"Answer: {row['answer']}"
        made.append({**row, "problem": problem(row, wording, pictures != "none"), "solution": solution})
    return made


def write_demonstrations(
    folder: str | Path,
    task: str,
    n: int,
    seed: int = 0,
    style: Style = "cot",
    prompts: Prompts = "fixed",
    pictures: Pictures = "none",
) -> Path:
    """FOLDER/train.jsonl, and its pictures below FOLDER/images; format `auto` reads it. Returns the file."""
    folder = Path(folder)
    lines = []
    for row in demonstrations(task, n, seed, style, prompts, pictures):
        # The answer stands in the solution. A column of its own would be learned once more after it.
        row.pop("answer")
        if pictures != "none":
            image = GAMES[task].picture(row, pictures == "other_colours")
            row["image_path"] = f"images/{save(image, folder / 'images')}"
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    file = folder / "train.jsonl"
    write_atomically(file, "".join(lines))
    return file
