"""Prompt diversity and chain of thought (arXiv 2510.00237, "Debunk the Myth of SFT Generalization"), by SFT and by DFT:
a model learns General Points or Sokoban from {answers only, chains of thought} x {one wording, many} x {SFT, DFT}, and
is asked harder puzzles and wordings that it has not seen.

    python -m scripts.paper.prompt_diversity --ranks 8 --scoring "--backend vllm"
    python -m scripts.paper.prompt_diversity --games sokoban --model Qwen/Qwen2.5-1.5B-Instruct --seeds 0,1,2
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dft_mm import arguments
from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError
from scripts.paper.experiment import REPO, Options, command_line, from_words, score, script

if TYPE_CHECKING:
    import numpy as np

    from dft_mm.study.arms import Study

GAMES = ("general_points", "sokoban")
RECIPE = REPO / "scripts/recipes/qwen2_5_7b_games_sft.yaml"
MODEL = "Qwen/Qwen2.5-7B"
OUT = "runs/paper/prompt_diversity"
DEMONSTRATIONS = 10_000
"""Rows of the paper's data for General Points, by the name of its data set (gp-l-only-10k); Sokoban's are taken to be
as many."""
FACTORS = {
    "style": {"answer_only": "answer only", "cot": "CoT"},
    "prompts": {"fixed": "fixed wording", "diverse": "diverse wording"},
    "loss": {"sft": "SFT", "dft": "DFT"},
}
"""What arms differ in → its two values, the one to compare with first, and what the table calls them."""
TINY = (
    "model.dtype=float32", "model.gradient_checkpointing=false", "data.workers=0", "optim.batch_size=4",
    "train.micro_tokens=1024", "train.epochs=1", "train.max_steps=2",
)  # fmt: skip
TINY_MODEL, TINY_DEMONSTRATIONS = "builtin:tiny-lm", 16


class Condition(NamedTuple):
    """One arm of a game's study."""

    style: str
    prompts: str
    loss: str

    @property
    def name(self) -> str:
        return "-".join(self)

    @property
    def label(self) -> str:
        return ", ".join(FACTORS[factor][value] for factor, value in self._asdict().items())


CONDITIONS = tuple(itertools.starmap(Condition, itertools.product(*FACTORS.values())))


def pairs_of(factor: str) -> list[tuple[Condition, Condition]]:
    """Conditions that differ in this factor alone, the changed one first."""
    before, after = FACTORS[factor]
    found = [each for each in CONDITIONS if getattr(each, factor) == before]
    return [(each._replace(**{factor: after}), each) for each in found]


PAIRS = tuple((a, b) for factor in reversed(FACTORS) for a, b in pairs_of(factor))
"""What is compared: one factor at a time, the loss first."""


class Wanted(NamedTuple):
    """What the command line says."""

    common: Options
    games: tuple[str, ...]
    model: str
    demonstrations: int


def options(words: Sequence[str] | None = None) -> Wanted:
    parser = command_line(__doc__ or "", OUT)
    parser.add_argument("--games", default=",".join(GAMES), metavar="A,B", help=f"of {', '.join(GAMES)}")
    parser.add_argument("--model", metavar="MODEL", help=f"where all arms begin (default: {MODEL})")
    parser.add_argument(
        "--demonstrations", type=arguments.positive, metavar="N", help=f"rows to learn from (default: {DEMONSTRATIONS})"
    )
    given = parser.parse_intermixed_args(words)
    games = tuple(given.games.split(","))
    unknown = [game for game in games if game not in GAMES]
    if unknown:
        raise InputError(f"--games {unknown[0]}: there are {', '.join(GAMES)}")
    if given.models:
        raise InputError(f"--models {given.models}: here all arms begin from one model; --model names it")
    model, demonstrations = (TINY_MODEL, TINY_DEMONSTRATIONS) if given.tiny else (MODEL, DEMONSTRATIONS)
    return Wanted(
        from_words(given, OUT), games, given.model or model, given.demonstrations or demonstrations
    )


def data_file(out: Path, game: str, condition: Condition) -> Path:
    """What an arm learns from: the same file for both losses."""
    return out / "data" / game / f"{condition.style}-{condition.prompts}" / "train.jsonl"


def write_data(out: Path, game: str, n: int) -> None:
    """The demonstrations of a game: the same puzzles in all four files. InputError where there are others already."""
    from dft_mm.evaluate.games.demonstrations import write_demonstrations
    from dft_mm.study.claim import claim

    for condition in CONDITIONS:
        file = data_file(out, game, condition)
        told = {"style": condition.style, "prompts": condition.prompts}
        claim(file.parent, "demonstrations", {"task": game, "n": n, **told})
        if not file.is_file():
            write_demonstrations(file.parent, game, n, **told)


def write_suite(out: Path, game: str, tiny: bool) -> Path:
    """The game's own benchmarks of eval/suites/games.yaml, as OUT/games_GAME.yaml."""
    import yaml

    from dft_mm.evaluate.suite import load_suite

    told = load_suite("games").model_dump(mode="json", exclude_unset=True)
    told["name"] = f"games_{game}"
    told["benchmarks"] = [bench for bench in told["benchmarks"] if bench["task"] == game]
    if tiny:
        told["sampling"]["max_tokens"] = 8
        told["benchmarks"] = [bench | {"limit": 2} for bench in told["benchmarks"]]
    path = out / f"games_{game}.yaml"
    write_atomically(path, yaml.safe_dump(told, sort_keys=False))
    return path


def study_of_game(game: str, wanted: Wanted) -> "Study":
    """Eight arms from one recipe. InputError for a wrong setting, or a folder that holds another study."""
    from dft_mm.study.arms import Arm, study_of_arms

    common = wanted.common
    arms = tuple(
        Arm(
            each.name,
            (f"data.train.path={json.dumps(str(data_file(common.out, game, each)))}", f"loss.name={each.loss}"),
        )
        for each in CONDITIONS
    )
    changes = (f"model.path={wanted.model}", *(TINY if common.tiny else ()), *common.overrides)
    suite = write_suite(common.out, game, common.tiny)
    pairs = tuple((a.name, b.name) for a, b in PAIRS)
    return study_of_arms(RECIPE, changes, str(suite), arms, common.seeds, common.out / game, pairs)


class Score(NamedTuple):
    """Of one benchmark, over all seeds."""

    value: float
    ci95: tuple[float, float]
    n: int
    truncated: int
    """Answers that were cut before they came to an end."""


def accuracy(right: "np.ndarray") -> tuple[float, tuple[float, float]]:
    """Mean of `right` (seeds, questions), each a share of right answers, and its 95 % interval: Wilson's for one answer
    a question; for several seeds one that covers the luck of training and the choice of questions
    (statistics.crossed)."""
    from dft_mm.evaluate.statistics import crossed, metric

    once = len(right) == 1 and not (right % 1).any()
    found = metric(right.mean(axis=0).tolist(), binomial=once)
    low, high = found["ci95"]
    if len(right) > 1 and right.min() < right.max():
        low, high = crossed(right)["ci95"]
    return found["value"], (max(0.0, low), min(1.0, high))


def scores_of(folders: Sequence[Path]) -> dict[str, Score]:
    """Benchmark → score, from result folders of the same questions, one a seed."""
    import numpy as np

    from dft_mm.evaluate.task import RIGHT
    from dft_mm.report.read import read_lines

    seeds: list[dict[str, dict[str, list[str]]]] = []
    for folder in folders:
        seeds.append(status := {})
        for line in read_lines(folder / "scores.jsonl"):
            status.setdefault(line["benchmark"], {}).setdefault(line["id"], []).append(line["status"])
    found = {}
    for name, questions in seeds[0].items():
        # (seeds, questions, answers to each)
        table = np.array([[seed[name][question] for question in questions] for seed in seeds])
        value, interval = accuracy(np.isin(table, sorted(RIGHT)).mean(axis=2))
        found[name] = Score(value, interval, len(questions), int((table == "truncated").sum()))
    return found


class Outcome(NamedTuple):
    """What came of a game."""

    game: str
    base: dict[str, Score]
    arms: dict[Condition, dict[str, Score]]
    comparison: dict[str, Any]
    """compare.json of the study."""


def play(game: str, study: "Study", wanted: Wanted) -> Outcome | None:
    """Train and score what is not there yet; None while queued runs are not finished."""
    from dft_mm.study.arms import carry_out

    common = wanted.common
    write_data(common.out, game, wanted.demonstrations)
    base = score(wanted.model, common.out / "base" / game, study.suite_name, common)
    comparison = carry_out(study, common.ranks, common.submit, common.scoring.split())
    if comparison is None:
        return None
    arms = {
        condition: scores_of([study.results_folder(arm, seed) for seed in study.seeds])
        for condition, arm in zip(CONDITIONS, study.arms, strict=True)
    }
    return Outcome(game, scores_of([base]), arms, comparison)


NOTES = (
    "Right answers in percent, with 95 % intervals. SFT and DFT of one cell learn from the same file, in the same "
    "steps. The other comparisons are of the same puzzles told otherwise: what is learned differs there too.",
    "The question is that of arXiv 2510.00237. Puzzles, wordings and shifts are not: there, diverse prompts also "
    "rename the moves and revalue the face cards, and chains of thought are a model's own. So none of its numbers "
    "stands here.",
)
TINY_NOTE = (
    "**Made with --tiny: {model}, two steps on {n} demonstrations, two questions a column, answers of 8 tokens. It "
    "shows that the script runs; its figures mean nothing.**"
)


def table_of(outcome: Outcome, model: str) -> str:
    """Arms down, benchmarks across, in markdown; below it, which answers were cut."""
    from dft_mm.report.tables import Cell, Table, to_markdown

    labelled = {f"{model}, untrained": outcome.base} | {each.label: scores for each, scores in outcome.arms.items()}
    rows = tuple(
        (
            label,
            tuple(Cell(100 * each.value, *(100 * bound for bound in each.ci95), each.n) for each in scores.values()),
        )
        for label, scores in labelled.items()
    )
    cut = []
    for label, scores in labelled.items():
        counts = [f"{score.truncated} of {name}" for name, score in scores.items() if score.truncated]
        cut += [f"{label}: {', '.join(counts)}"] * bool(counts)
    table = to_markdown(Table(("arm", *outcome.base), rows, ()))
    told = f"Answers that were cut before they came to an end, and count as not right: {'; '.join(cut)}."
    return f"{table}\n{told}" if cut else table


def differences(outcome: Outcome) -> str:
    """One factor at a time, in markdown."""
    from dft_mm.report.comparison import verdict

    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in outcome.comparison["comparisons"]:
        found.setdefault((row["a"], row["b"]), []).append(row)
    parts = []
    for factor in reversed(FACTORS):
        before, after = FACTORS[factor].values()
        lines = [
            f"### {after} − {before}", "",
            "| both with | benchmark | points | 95 % interval | p (Holm) | verdict |", "|---|---|---:|---:|---:|---|",
        ]  # fmt: skip
        for a, b in pairs_of(factor):
            shared = ", ".join(FACTORS[key][value] for key, value in a._asdict().items() if key != factor)
            for row in found[a.name, b.name]:
                low, high = (100 * bound for bound in row["ci95"])
                lines.append(
                    f"| {shared} | {row['benchmark']} | {100 * row['difference']:+.1f} | {low:+.1f} to {high:+.1f} | "
                    f"{row['p_adjusted']:.2g} | {verdict(row, after, before)} |"
                )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write(outcomes: Sequence[Outcome], wanted: Wanted) -> str:
    """OUT/table.md and OUT/table.json. Returns the text."""
    common = wanted.common
    parts = ["# Prompt diversity and chain of thought, by SFT and by DFT"]
    weights = "a few random weights" if wanted.model == TINY_MODEL else wanted.model
    parts += [TINY_NOTE.format(model=weights, n=wanted.demonstrations)] if common.tiny else []
    parts += NOTES
    parts += [f"Seeds: {', '.join(map(str, common.seeds))}. {_luck(len(common.seeds))}"]
    for outcome in outcomes:
        tests = len(outcome.comparison["comparisons"])
        parts += [
            f"## {outcome.game}", table_of(outcome, wanted.model),
            f"One factor at a time, question by question; p is corrected for these {tests} rows (Holm).",
            differences(outcome),
        ]  # fmt: skip
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    told = {
        "model": wanted.model, "tiny": common.tiny, "seeds": common.seeds, "demonstrations": wanted.demonstrations,
        "rows": [row for outcome in outcomes for row in _rows(outcome)],
        "differences": [{"game": each.game, **row} for each in outcomes for row in each.comparison["comparisons"]],
    }  # fmt: skip
    write_atomically(common.out / "table.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    write_atomically(common.out / "table.md", text)
    return text


def _rows(outcome: Outcome) -> list[dict[str, Any]]:
    arms = {None: outcome.base} | outcome.arms
    return [
        {
            "game": outcome.game,
            **(condition._asdict() if condition else dict.fromkeys(FACTORS)),
            "scores": {name: score._asdict() for name, score in scores.items()},
        }
        for condition, scores in arms.items()
    ]


def _luck(seeds: int) -> str:
    if seeds > 1:
        return "Values are means over them, and intervals cover the luck of training and the choice of questions."
    return "Intervals cover the choice of questions, not the luck of training: for that, more --seeds."


def work(words: Sequence[str] | None = None) -> str | None:
    wanted = options(words)
    # All games are checked before the first step of one.
    studies = {game: study_of_game(game, wanted) for game in wanted.games}
    outcomes = [play(game, study, wanted) for game, study in studies.items()]
    done = [outcome for outcome in outcomes if outcome is not None]
    return write(done, wanted) if len(done) == len(outcomes) else None


if __name__ == "__main__":
    raise SystemExit(script(work))
