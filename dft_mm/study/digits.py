"""Handwritten arithmetic as image-text reasoning rows in WeThink's layout: pictures of `47+8` made of real digits.

The digits are scikit-learn's copy of the optdigits test set (E. Alpaydin, C. Kaynak 1998): 1,797 digits by 13 writers.
It carries no writer ids, but its rows stand in the order in which the forms were filled in: the same sheet of some 130
digits comes 14 times. The last three sheets are held out, so no digit of theirs is ever learned from.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CELL = 28
"""Pixels of a character's side: 28 x 28 make one image token of Qwen2.5-VL."""
QUESTION = "What is the result?"
FIRST_HELDOUT_DIGIT = 1415
"""Where the twelfth sheet begins."""
_INK = 24  # side of the digit inside its cell
_TILT = 12.0  # degrees to either side
_HELDOUT_PAIRS = 162  # a fifth; more when more questions are asked than they make


@dataclass(frozen=True)
class Problem:
    """a + b or a - b, with 10 <= a <= 99 and 1 <= b <= 9."""

    a: int
    sign: str
    b: int

    @property
    def text(self) -> str:
        return f"{self.a}{self.sign}{self.b}"

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b


@dataclass(frozen=True)
class Sizes:
    """Rows of each file, and the share of wrong answers in the second one."""

    clean: int = 8000
    mixed: int = 2000
    heldout: int = 300
    wrong: float = 0.3


@dataclass(frozen=True)
class Split:
    """Problems by use: a pair (a, b) is either seen, with both signs, or held out, with both."""

    seen: tuple[Problem, ...]
    heldout: tuple[Problem, ...]


def split_problems(seed: int, heldout: int = _HELDOUT_PAIRS) -> Split:
    """All 1,620 problems, with so many of the 810 pairs held out."""
    pairs = [(a, b) for a in range(10, 100) for b in range(1, 10)]
    order = np.random.default_rng([seed, 0]).permutation(len(pairs))
    heldout, seen = (
        tuple(Problem(*pairs[i][:1], sign, pairs[i][1]) for i in sorted(part) for sign in "+-")
        for part in (order[:heldout], order[heldout:])
    )
    return Split(seen, heldout)


def reasoning(problem: Problem, slip: int = 0) -> tuple[str, str]:
    """(steps, answer): read the picture, do the ones, then the tens. `slip` is added to the ones: a wrong answer.

    47+8 becomes 47+8, 7+8=15, 4+1=5, 55. The steps of a wrong answer lead to it.
    """
    tens, ones = divmod(problem.a, 10)
    if problem.sign == "+":
        ones_result = (ones + problem.b + slip) % 20
        line = f"{ones}+{problem.b}={ones_result}"
        carry, ones_result = divmod(ones_result, 10)
        tens_result = tens + carry
        tens_line = f"{tens}+{carry}={tens_result}"
    else:
        borrow = int(ones < problem.b)
        ones_result = (ones + 10 * borrow - problem.b + slip) % 10
        line = f"{ones + 10 * borrow}-{problem.b}={ones_result}"
        tens_result = tens - borrow
        tens_line = f"{tens}-{borrow}={tens_result}"
    answer = str(10 * tens_result + ones_result)
    return f"{problem.text}\n{line}\n{tens_line}", answer


def write_data(folder: Path, seed: int, sizes: Sizes) -> None:
    """Write clean, mixed, writers and pairs `.jsonl` with their pictures.

    - clean: seen pairs, seen sheets, right answers
    - mixed: the same, with `sizes.wrong` of the answers (and the steps to them) wrong
    - writers: problems of `clean`, in digits of held-out sheets
    - pairs: held-out pairs, in digits of held-out sheets
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = [(image / 16 * 255).round().astype(np.uint8) for image in digits.images]
    by_sheet = [
        [np.flatnonzero(digits.target[part] == d) + part.start for d in range(10)]
        for part in (slice(0, FIRST_HELDOUT_DIGIT), slice(FIRST_HELDOUT_DIGIT, len(ink)))
    ]
    split = split_problems(seed, max(_HELDOUT_PAIRS, math.ceil(sizes.heldout / 2)))
    rng = np.random.default_rng([seed, 1])
    clean = [split.seen[i] for i in rng.integers(len(split.seen), size=sizes.clean)]
    mixed = [split.seen[i] for i in rng.integers(len(split.seen), size=sizes.mixed)]
    known = sorted(set(clean), key=lambda problem: problem.text)
    writers = [known[i] for i in rng.permutation(len(known))[: sizes.heldout]]
    pairs = [split.heldout[i] for i in rng.permutation(len(split.heldout))[: sizes.heldout]]
    wrong = set(rng.permutation(sizes.mixed)[: round(sizes.mixed * sizes.wrong)].tolist())
    for name, problems, slips, choice in (
        ("clean", clean, set(), by_sheet[0]),
        ("mixed", mixed, wrong, by_sheet[0]),
        ("writers", writers, set(), by_sheet[1]),
        ("pairs", pairs, set(), by_sheet[1]),
    ):
        _write_file(folder, name, problems, slips, ink, choice, rng)


def _write_file(
    folder: Path,
    name: str,
    problems: Sequence[Problem],
    wrong: Iterable[int],
    ink: Sequence[np.ndarray],
    by_digit: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> None:
    images = folder / "images" / name
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, problem in enumerate(problems):
        slip = int(rng.integers(1, 10)) if number in wrong else 0
        steps, answer = reasoning(problem, slip)
        used = [int(rng.choice(by_digit[int(char)])) if char.isdigit() else char for char in problem.text]
        draw_problem(used, ink, rng).save(images / f"{number:05d}.png")
        row = {
            "id": f"{name}-{number:05d}",
            "problem": QUESTION,
            "answer": answer,
            "category": "handwritten arithmetic",
            "abilities": "reading digits; addition and subtraction",
            "refined_cot": steps,
            "image_path": f"images/{name}/{number:05d}.png",
            "reward": float(slip == 0),
            "digits": [index for index in used if isinstance(index, int)],
        }
        lines.append(json.dumps(row) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def draw_problem(characters: Sequence[int | str], ink: Sequence[np.ndarray], rng: np.random.Generator) -> Image.Image:
    """Dark ink on white, one cell a character: an index into `ink` for a digit, or a sign."""
    picture = Image.new("L", (CELL * len(characters), CELL), 0)
    for place, character in enumerate(characters):
        x, y = (int(value) for value in rng.integers(0, CELL - _INK + 1, size=2))
        if isinstance(character, int):
            stamp = Image.fromarray(ink[character]).resize((_INK, _INK), Image.Resampling.BICUBIC)
            stamp = stamp.rotate(float(rng.uniform(-_TILT, _TILT)), Image.Resampling.BILINEAR)
        else:
            stamp = Image.new("L", (_INK, _INK), 0)
            stamp.paste(230, (4, 11, 20, 14))
            if character == "+":
                stamp.paste(230, (11, 4, 14, 20))
        picture.paste(stamp, (CELL * place + x, y))
    return Image.eval(picture, lambda value: 255 - value).convert("RGB")
