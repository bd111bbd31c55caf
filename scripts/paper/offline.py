"""Offline RL (section 4.2): answers that a base model gives to mathematics questions, the correct ones as rows to learn
from, and pairs for DPO. `dft-mm sample` does it; here are the paper's settings."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dft_mm.atomic import write_atomically
from scripts.paper.experiment import Options
from scripts.paper.tiny import there

QUESTIONS = "data/numinamath/questions_100k.jsonl"
ANSWERS = 4
"""To each question, at temperature 1."""


@dataclass(frozen=True)
class Sampled:
    folder: Path
    questions: Path

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def source(self) -> str:
        """The recipe's `data.train` that learns from the correct answers."""
        stats = json.loads((self.folder / "stats.json").read_text(encoding="utf-8"))
        return f"data.train=[{json.dumps(stats['source'])}]"


def sampled(recipe: str, changes: Sequence[str], wanted: Options) -> Sampled:
    """Answers below OUT/sampled; goes on where it was stopped. Their correct ones need not be of all questions."""
    from dft_mm.study.launch import run_verb

    wanted.out.mkdir(parents=True, exist_ok=True)
    questions, more = (Path(QUESTIONS), wanted.scoring.split()) if not wanted.tiny else _tiny(wanted)
    found = Sampled(wanted.out / "sampled", questions)
    if not (found.folder / "stats.json").is_file():
        words = [recipe, *changes, "--questions", str(questions), "--n", str(ANSWERS), "--pairs", *more]
        run_verb(wanted.out / "sample.log", "sample", *words, "--out", str(found.folder))
    return found


def _tiny(wanted: Options) -> tuple[Path, list[str]]:
    """Questions, and answers to replay: a model of random weights solves nothing. Of GSM8K's own solutions, two that
    are right and two with another final number."""
    rows = there(wanted.data / "train_text/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    asked, replay = [], []
    for number, row in enumerate(map(json.loads, rows)):
        steps, _, gold = re.sub(r"<<.*?>>", "", row["answer"]).rpartition("\n#### ")
        asked.append({"id": str(number), "problem": row["question"], "answer": gold})
        boxed = [gold, gold, f"{gold}1", f"{gold}7"]
        for sample, (value, end) in enumerate(zip(boxed, ["", " So it is.", "", ""], strict=True)):
            text = rf"{steps}\nThe answer is \boxed{{{value}}}.{end}".replace(r"\n", "\n")
            replay.append({"benchmark": "sample", "id": str(number), "sample": sample, "text": text})
    files = []
    for name, lines in (("questions", asked), ("replay", replay)):
        files.append(wanted.out / f"{name}.jsonl")
        write_atomically(files[-1], "".join(json.dumps(line) + "\n" for line in lines))
    return files[0], ["--replay", str(files[1])]
