"""Offline RL (arXiv 2508.05629, section 4.2): sample answers to questions, verify them, and keep the correct ones to
learn from, beside preference pairs for DPO and what the pass rates say of each question's difficulty."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dft_mm.atomic import write_atomically
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.answering import Work, answering, score_lines, write_lines
from dft_mm.evaluate.benchmark import BenchmarkConfig, Prompt
from dft_mm.evaluate.generations import writing
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.requests import BackendOptions
from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Answer, Grade, Question
from dft_mm.evaluate.tasks.rows import resolve_prompt
from dft_mm.progress import progress
from dft_mm.study.questions import STYLE, load_questions
from dft_mm.study.solved import Solved, correct_rows, preference_pairs, statistics

NAME = "sample"
"""Where generations, scores and replay files name a benchmark."""
_FILES = ("manifest.json", "generations.jsonl", "scores.jsonl", "correct.jsonl", "pairs.jsonl", "stats.json")
_PACKAGES = frozenset(("math-verify", "latex2sympy2-extended", "sympy"))


def sample(
    recipe: Recipe,
    questions: Path,
    out: Path,
    sampling: SamplingConfig,
    backend: str | None = None,
    cap: int | None = None,
    pairs: bool = False,
    model: str | None = None,
    images: Path | None = None,
    prompt: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write OUT/{manifest.json, generations.jsonl, scores.jsonl, correct.jsonl, pairs.jsonl, stats.json}, going on
    where it stopped.

    Args:
        cap: most answers of one question that are kept, and most of its pairs.
        model: asked instead of the recipe's.
        images: folder of the questions' pictures; default: that of their file.
        prompt: file, or name of one in eval/prompts; default: the chain-of-thought prompt of the mathematics tasks.
        options: the other fields of BackendOptions.

    Raises InputError when a question is damaged, or OUT holds something else; Stopped when a signal came. Returns what
    stands in stats.json; on other ranks than 0, nothing.
    """
    bench = BenchmarkConfig(task=NAME, data=str(questions), prompt=prompt)
    asked, ungradable = load_questions(bench, images)
    wanted = BackendOptions(model or recipe.model.path, sampling, **options)
    work = Work("sampling", _FILES, {"sampling": sampling.model_dump(mode="json")}, _PACKAGES)
    with answering(work, out, lambda: {NAME: asked}, wanted, backend) as found:
        if found is None:
            return {}
        answers = found.answers[NAME]
        grades = verify(answers)
        solved = [
            Solved(question, answers[start : start + sampling.samples], grades[start : start + sampling.samples])
            for question, start in zip(asked, range(0, len(answers), sampling.samples), strict=True)
        ]
        pictured = any(question.images for question in asked)
        kept, paired = list(correct_rows(solved, cap, pictured)), list(preference_pairs(solved, cap)) if pairs else None
        shown = resolve_prompt(bench, STYLE)
        if kept and (shown.completion or shown.user != "{question}"):
            log.warning(
                "training asks %s by the chat template and without the other words of --prompt; see `prompts` of a "
                "source", out / "correct.jsonl",
            )  # fmt: skip
        stats = {
            "model": wanted.model,
            "sampling": sampling.model_dump(mode="json"),
            "prompt": shown.model_dump(mode="json"),
            **statistics(solved, len(kept)),
            **({} if paired is None else {"pairs": len(paired)}),
            "ungradable_gold": ungradable,
            "source": _source(out, shown, asked),
        }
        with writing(out):
            write_lines(out / "scores.jsonl", list(score_lines(NAME, answers, grades)))
            write_lines(out / "correct.jsonl", kept)
            if paired is None:
                (out / "pairs.jsonl").unlink(missing_ok=True)  # of other answers than these, perhaps
            else:
                write_lines(out / "pairs.jsonl", paired)
            write_atomically(out / "stats.json", json.dumps(stats, indent=2) + "\n")  # an id may be no UTF-8
        return stats


def make_sampling(**values: Any) -> SamplingConfig:
    """What the options of the command line ask for; raises InputError naming the option."""
    try:
        return SamplingConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{str(key).replace('_', '-')} {first['input']}: " for key in first["loc"])
        raise InputError((option or "--n, --temperature: ") + first["msg"].removeprefix("Value error, ")) from None


def verify(answers: Sequence[Answer]) -> list[Grade]:
    """A grade for each answer. One that was cut at the token limit is `truncated` whatever it says: learned from, it
    would teach to end anywhere."""
    whole = [answer for answer in answers if answer.finish_reason != "length"]
    graded: list[Grade] = []
    with Grader() as grader, progress("verifying", len(whole)) as advance:
        for grade in grader.grade_all([(each.text, each.question.gold, each.finish_reason) for each in whole]):
            graded.append(grade)
            advance()
    rest = iter(graded)
    cut = Grade("truncated", None, "cut at the token limit")
    return [cut if answer.finish_reason == "length" else next(rest) for answer in answers]


def _source(out: Path, prompt: Prompt, questions: Sequence[Question]) -> dict[str, str]:
    """The entry of `data.train` that learns from correct.jsonl with the system turn that the model was asked with."""
    pictured = [question for question in questions if question.images]
    return {
        "path": str(out / "correct.jsonl"),
        "format": "question_answer" if pictured else "problem_solution",
        **({"images": pictured[0].image_root} if pictured else {}),
        **({} if prompt.system is None else {"system": prompt.system}),
    }


def to_text(stats: Mapping[str, Any]) -> str:
    """The statistics for reading."""
    status = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in stats["status"].items())
    bands = ", ".join(f"{len(ids)} {band.replace('_', ' ')}" for band, ids in stats["bands"].items() if ids)
    pairs = f", {stats['pairs']} preference pairs" if "pairs" in stats else ""
    cut = f" ({stats['duplicates']} said twice, {stats['over_cap']} over the cap)"
    left = len(stats["ungradable_gold"])
    return "\n".join([
        f"{stats['samples']} answers to {stats['questions']} questions: {status}",
        f"kept {stats['kept']} of {stats['correct']} correct{cut}{pairs}",
        f"questions: {bands}" + (f"; {left} not asked, since their gold answer cannot be graded" if left else ""),
        "learn from them with  data: {train: [" + json.dumps(stats["source"], ensure_ascii=False) + "]}"
        if stats["kept"] else "none is kept to learn from: ask more often (--n), by a prompt that the model knows "
        "(--prompt), or ask easier questions or a stronger model",
    ])  # fmt: skip
