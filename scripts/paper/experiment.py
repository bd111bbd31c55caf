"""What the paper's tables share: models, each trained in several ways from one recipe, scored on one suite, and set
beside the published rows. A table is one `Experiment`; everything that it does is a `dft-mm` command.

Paper: arXiv 2508.05629; its numbers are in eval/published.json.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dft_mm import arguments
from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError

if TYPE_CHECKING:
    from dft_mm.report.published import Published
    from dft_mm.report.tables import Table

REPO = Path(__file__).parents[2]
METHODS = {"sft": "SFT", "dft": "DFT", "iw_sft": "iw-SFT"}
"""Loss → what the paper's tables call it."""


@dataclass(frozen=True)
class Model:
    name: str
    """As the paper has it."""
    path: str
    changes: tuple[str, ...] = ()
    """`section.key=value` where it is trained unlike the others."""


@dataclass(frozen=True)
class Experiment:
    table: str
    """Its number in the paper."""
    recipe: str
    """Of scripts/recipes."""
    suite: str
    models: tuple[Model, ...]
    changes: tuple[str, ...] = ()
    """`section.key=value` beside the recipe, for all models."""
    losses: tuple[str, ...] = ("sft", "dft")
    base: bool = True
    """Whether the untrained models are scored too."""


@dataclass(frozen=True)
class Scored:
    """One row of ours."""

    model: str
    method: str
    results: tuple[Path, ...]
    """Result folders, one a seed."""
    setting: str | None = None


@dataclass(frozen=True)
class Options:
    """What the command line says, the same for every table."""

    out: Path
    models: tuple[str, ...] = ()
    """Names of those that are wanted; none: all."""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ranks: int = 1
    submit: str | None = None
    scoring: str = ""
    tiny: bool = False
    data: Path = Path("../shared/data")

    def chosen(self, models: Sequence[Model]) -> list[Model]:
        names = [model.name for model in models]
        unknown = [name for name in self.models if name not in names]
        if unknown:
            raise InputError(f"--models {unknown[0]}: this table has {', '.join(names)}")
        return [model for model in models if not self.models or model.name in self.models]


def options(about: str, words: Sequence[str] | None = None, out: str = "") -> Options:
    """Read the command line of a table's script."""
    return from_words(command_line(about, out).parse_intermixed_args(words), out)


def command_line(about: str, out: str) -> argparse.ArgumentParser:
    """What every script of this folder can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the recipe's")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of runs and table (default: {out})")
    parser.add_argument("--models", default="", metavar="A,B", help="only these of the table's models")
    parser.add_argument(
        "--seeds", type=arguments.seeds, default="0", metavar="0,1,2", help="train everything with each (default: 0)"
    )
    parser.add_argument("--ranks", type=arguments.positive, help="processes of a training run (default: one a GPU)")
    parser.add_argument("--submit", metavar="COMMAND", help='queue the runs, as "sbatch scripts/launch/slurm.sh"')
    parser.add_argument("--scoring", default="", metavar="OPTIONS", help='options of dft-mm eval, as "--backend vllm"')
    parser.add_argument(
        "--tiny", action="store_true", help="the whole script in minutes on a CPU, with tiny models of random weights"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="--tiny: folder of real sample rows"
    )
    return parser


def from_words(given: argparse.Namespace, out: str) -> Options:
    from dft_mm.study.launch import accelerators

    models = tuple(name for name in given.models.split(",") if name)
    out_folder = given.out.with_name(f"{given.out.name}_tiny") if given.tiny and given.out == Path(out) else given.out
    return Options(
        out_folder, models, tuple(given.overrides), given.seeds, given.ranks or accelerators(), given.submit,
        given.scoring, given.tiny, given.data,
    )  # fmt: skip


def setting(suite: str, path: str, wanted: Options) -> tuple[str, str, tuple[str, ...]]:
    """The suite, the path of the model, and what is changed in the recipe, each with --tiny another."""
    from scripts.paper.tiny import TINY_MODELS, tiny_changes, tiny_suite

    if not wanted.tiny:
        return suite, path, ()
    return str(tiny_suite(suite, wanted.data, wanted.out)), TINY_MODELS[suite], tiny_changes(suite, wanted.data)


def carry_out(experiment: Experiment, wanted: Options) -> list[Scored] | None:
    """Train and score everything; goes on where it was stopped. None while queued runs are not finished."""
    recipe = str(REPO / "scripts/recipes" / experiment.recipe)
    rows: list[Scored] = []
    waiting = False
    for model in wanted.chosen(experiment.models):
        suite, path, changes = setting(experiment.suite, model.path, wanted)
        own = (*experiment.changes, *changes, *model.changes, f"model.path={path}", *wanted.overrides)
        if experiment.base:
            untrained = score(path, wanted.out / "base" / model.name, suite, wanted)
            rows.append(Scored(model.name, "base", (untrained,)))
        trained = train(recipe, own, suite, experiment.losses, wanted.out / model.name, wanted)
        waiting |= trained is None
        for loss, results in (trained or {}).items():
            rows.append(Scored(model.name, METHODS[loss], results))
    return None if waiting else rows


def train(
    recipe: str, changes: Sequence[str], suite: str, losses: Sequence[str], folder: Path, wanted: Options
) -> dict[str, tuple[Path, ...]] | None:
    """One study: the recipe with each loss, scored and compared. Result folders by loss, one a seed."""
    from dft_mm.study import arms

    study = arms.study_of(Path(recipe), changes, suite, [f"loss.name={','.join(losses)}"], wanted.seeds, folder)
    if arms.carry_out(study, wanted.ranks, wanted.submit, wanted.scoring.split()) is None:
        return None
    return {
        loss: tuple(study.results_folder(arm, seed) for seed in study.seeds)
        for loss, arm in zip(losses, study.arms, strict=True)
    }


def score(model: str, folder: Path, suite: str, wanted: Options) -> Path:
    """The result folder of a model that was not trained here, or not by a study."""
    from dft_mm.evaluate.suite import load_suite
    from dft_mm.study.launch import run_verb

    out = folder / "eval" / load_suite(suite).name
    if not (out / "results.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run_verb(folder / "eval.log", "eval", suite, "--model", model, "--out", str(out), *wanted.scoring.split())
    return out


@dataclass(frozen=True)
class Findings:
    """A table as it is written: ours and the published rows, and what was found in words."""

    number: str
    rows: Sequence[Scored]
    studies: Sequence[Path] = ()
    """Folders with a compare.json."""
    notes: Sequence[str] = field(default=())


def write(found: Findings, out: Path) -> str:
    """OUT/table.md and OUT/table.json: each of our rows above the published one. Returns the text."""
    from dft_mm.report.published import beside, published
    from dft_mm.report.read import read_results
    from dft_mm.report.tables import Table, score_table, to_markdown

    labels: dict[str, tuple[str, str, str | None]] = {}
    ours = []
    for row in found.rows:
        for seed, folder in enumerate(row.results):
            label = _label(row) + (f" ({seed + 1}. seed)" if len(row.results) > 1 else "")
            labels[label] = (row.model, row.method, row.setting)
            ours.append(read_results(folder, label))
    models = list(dict.fromkeys(row.model for row in found.rows))
    theirs = published(models, found.number)
    labels |= {row.label: (row.model, row.method, row.setting) for row in theirs}
    table = comparable(beside(score_table(ours, every_metric=True), theirs), theirs)
    order = list(dict.fromkeys([*((row.model, row.method, row.setting) for row in theirs), *labels.values()]))
    rows = sorted(table.rows, key=lambda row: (order.index(labels[row[0]]), row[0] in {each.label for each in theirs}))
    table = Table(table.columns, tuple(rows), table.notes)
    parts = [f"# Table {found.number}", *found.notes, to_markdown(table), *differences(found.studies)]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    told = [
        {
            "model": labels[label][0], "method": labels[label][1], "setting": labels[label][2],
            "published": label in {row.label for row in theirs},
            "percent": {column: cell.value for column, cell in zip(table.columns[1:], cells) if cell.value is not None},
        }
        for label, cells in rows
    ]  # fmt: skip
    write_atomically(out / "table.json", json.dumps({"table": found.number, "rows": told}, indent=2) + "\n")
    write_atomically(out / "table.md", text)
    return text


def comparable(table: "Table", theirs: "Sequence[Published]") -> "Table":
    """The columns that have a published number."""
    from dft_mm.report.tables import Table

    labels = {row.label for row in theirs}
    kept = [
        place
        for place in range(len(table.columns) - 1)
        if any(cells[place].value is not None for label, cells in table.rows if label in labels)
    ]
    columns = (table.columns[0], *(table.columns[1 + place] for place in kept))
    rows = tuple((label, tuple(cells[place] for place in kept)) for label, cells in table.rows)
    used = sorted({cell.note for _, cells in rows for cell in cells if cell.note})
    numbered = {old: new for new, old in enumerate(used, 1)}
    rows = tuple(
        (label, tuple(replace(cell, note=numbered[cell.note]) if cell.note else cell for cell in cells))
        for label, cells in rows
    )
    return Table(columns, rows, tuple(table.notes[number - 1] for number in used))


def _label(row: Scored) -> str:
    return " ".join([row.model, row.method, *([f"({row.setting})"] if row.setting else []), "ours"])


def differences(studies: Iterable[Path]) -> list[str]:
    """What each study's compare.json says, in words."""
    from dft_mm.report.comparison import in_words

    parts = []
    for folder in studies:
        rows = json.loads((folder / "compare.json").read_text(encoding="utf-8"))["comparisons"]
        official = [row for row in rows if row["metric"].startswith("official")]  # graded as the paper did
        lines = [f"- {in_words(row)}" for row in official or rows]
        parts.append("\n".join([f"{folder.name}, by question:", "", *lines]))
    return parts


TINY_NOTE = (
    "Made with --tiny: models of a few random weights, a few steps, a handful of questions. The script runs; its own "
    "figures say nothing."
)


def main(experiment: Experiment, about: str, words: Sequence[str] | None = None) -> int:
    """The whole script of a table."""

    def work() -> str | None:
        wanted = options(about, words, f"runs/paper/table{experiment.table}")
        rows = carry_out(experiment, wanted)
        if rows is None:
            return None
        studies = [wanted.out / model.name for model in wanted.chosen(experiment.models)]
        return write(Findings(experiment.table, rows, studies, [TINY_NOTE] if wanted.tiny else []), wanted.out)

    return script(work)


def script(work: Callable[[], str | None]) -> int:
    """Print what `work` returns; what goes wrong ends as in dft-mm, with its exit code."""
    from dft_mm.__main__ import exit_code
    from dft_mm.dist import setup_logging

    def told() -> None:
        if text := work():
            print(text)

    setup_logging()
    return exit_code(told)
