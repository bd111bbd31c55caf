"""Reasoning games as tasks: questions are generated, or come from a file of such rows, in text or in pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.games.drawing import save
from dft_mm.evaluate.games.game import IN_DISTRIBUTION
from dft_mm.evaluate.games.play import GAMES, make, problem, verify
from dft_mm.evaluate.task import Answer, Question, Scored, Scoring, Task
from dft_mm.evaluate.tasks.rows import load_rows, put

DEFAULT_LIMIT = 500
_SEED = 0  # a benchmark's questions are the same for everybody


def _load(bench: BenchmarkConfig, work: Path) -> list[Question]:
    def ask(row: dict[str, Any], _: Path) -> Question:
        return _question(row, bench, work)

    if bench.data is not None:
        return load_rows(bench, ask)
    rows = make(bench.task, bench.split or IN_DISTRIBUTION, bench.limit or DEFAULT_LIMIT, _SEED)
    return [_question(row, bench, work) for row in rows]


def _question(row: dict[str, Any], bench: BenchmarkConfig, work: Path) -> Question:
    """A row as the entry wants it put; what a file's row itself says of problem and picture does not count."""
    row = {"task": bench.task, "split": IN_DISTRIBUTION, **row}
    game = GAMES[bench.task]
    if row["task"] != bench.task or row["split"] not in game.splits or row["split"] != (bench.split or row["split"]):
        raise ValueError(f"it is of {row['task']}, split {row['split']}")
    if not isinstance(row["answer"], str):
        raise ValueError(f"its answer {row['answer']!r} is no text")
    pictured = bench.pictures != "none"
    images = ()
    if pictured:
        image = game.picture(row, bench.pictures == "other_colours")
        images = (f"images/{save(image, work / 'images')}",)
    # The fixed wording is in every set of demonstrations, also in those of many wordings.
    text = problem(row, "unseen" if bench.instructions == "unseen" else "fixed", pictured)
    return Question(
        id=str(row.get("id", "")),
        gold=row["answer"],
        images=images,
        image_root=str(work),
        about={"state": row["state"]},
        **put(text, bench, Prompt(), len(images)),
    )


def _score(answers: Sequence[Answer], scoring: Scoring) -> Scored:
    grades = []
    for answer in answers:
        grades.append(verify(scoring.bench.task, answer.question.about["state"], answer.text, answer.finish_reason))
        scoring.advance(1)
    return Scored(grades)


GAME_TASKS = {
    name: Task(
        _load,
        _score,
        splits=game.splits,
        takes=frozenset({"prompt", "pictures", "instructions"}),
        local=lambda bench: bench,  # without a file they are made anew, and come out the same
    )
    for name, game in GAMES.items()
}
